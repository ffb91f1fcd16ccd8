"""Best-of-N with mid-generation pruning (Manvi et al., arXiv 2410.02725): kill weak responses early.

Read `budget` responses to `look` tokens, score them, keep the highest ⌈(1 − drop)·budget⌉, read those on and keep the
best. Budget law: at most `budget` full-length samples; about (1 − drop) of them in full.
`random=True` prunes by chance: the control that a pruning signal must beat.
"""

from __future__ import annotations

import math

import numpy as np

from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, extend, ranking, sample
from extratime.evaluate.verifiers.self_eval import self_eval


def pruned_best_of_n(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = self_eval,
    look: int = 64,
    drop: float = 0.5,
    random: bool = False,
) -> Program[Answer]:
    """The best response among those that survive one look.

    Args:
        problem: what to answer.
        budget: responses begun.
        rng: chooses whom to drop if `random`.
        verify: scores prefixes and responses.
        look: tokens after which to prune.
        drop: share of the responses to drop, in [0, 1); published 0.5 to 0.75.
        random: drop by chance instead of by score.
    """
    begun = yield from sample(problem.prompt, budget, max_tokens=look)
    scores = yield from verify(problem, begun)
    order = ranking(list(rng.random(budget)) if random else scores)
    kept = sorted(order[: max(1, math.ceil((1 - drop) * budget - 1e-9))])
    responses = yield from extend([begun[i] for i in kept])
    scores = yield from verify(problem, responses)
    return best(responses, scores, f"highest score of {len(kept)} kept out of {budget}")
