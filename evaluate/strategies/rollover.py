"""Rollover budget forcing (arXiv 2503.19385) for steps of a response: what one step saves, the next may spend.

    quota ← budget + what is left over
    draw candidates of the next step one by one, until one has a score ≥ max(best so far − slack, threshold)
    accepted: left over ← quota − used; none accepted in the quota: the best of them, and nothing is left over

Where candidates end the response the step is the last, and spends all that is left. The paper does this with steps of
a flow and accepts what is better than the best so far; scores of prefixes do not rise at each step, hence the slack
and the threshold. It is rejection sampling step by step out of one purse.

Budget law: `budget` candidates a step on average, each step drawn once; a full length is kept back, so that the
response can always be read to its end. One candidate is drawn after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, extend, growing, rank, standing
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.models.request import Completion


def rollover(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = likelihood,
    slack: float = 0.0,
    threshold: float = -math.inf,
    step: Sequence[str] = ("\n",),
    rounds: int = 40,
) -> Program[Answer]:
    """The last step's best candidate.

    Args:
        problem: what to answer.
        budget: candidates of a step on average.
        rng: not used.
        verify: scores prefixes.
        slack: how far below the best score so far a step may fall and still be accepted.
        threshold: score below which no step is accepted; with a slack of inf it alone decides.
        step: strings that end a step.
        rounds: steps after which the response is read to its end, ≥ 1.
    """
    chosen, record, left, spent = Completion(problem.prompt, "", 0, finish="length"), -math.inf, 0, 0
    for t in range(1, rounds + 1):
        bar, pause = max(record - slack, threshold), step if t < rounds else ()
        spare = (budget - 1) * problem.max_tokens + chosen.n_tokens - spent
        pool, scores, accepted = yield from _candidates(problem, chosen, budget + left, spare, bar, verify, pause)
        spent += sum(candidate.n_tokens - chosen.n_tokens for candidate in pool)
        first = max(range(len(pool)), key=lambda i: (standing(pool[i]) > 0, scores[i], -i))
        chosen = pool[-1 if accepted else first]
        record, left = max(record, *scores), budget + left - len(pool) if accepted else 0
        if not growing(problem, chosen):
            break
    ended = [i for i, candidate in enumerate(pool) if not growing(problem, candidate)]
    ends = yield from extend([pool[i] for i in ended])
    return best(ends, [scores[i] for i in ended], f"best of {len(ends)} ends after {t} steps")


def _candidates(
    problem: Problem,
    chosen: Completion,
    quota: int,
    spare: int,
    bar: float,
    verify: Verifier,
    pause: Sequence[str],
) -> Program[tuple[list[Completion], list[float], bool]]:
    """Candidates of the next step with their scores, up to the first that reaches `bar`; and whether one did.

    After the first they have `spare` tokens among them. Where one ends the response all are drawn.
    """
    pool: list[Completion] = []
    scores: list[float] = []
    while len(pool) < quota and (spare > 0 or not pool):
        limit = chosen.n_tokens + spare if pool else None
        pool += yield from extend([chosen], pause=pause, max_tokens=limit)
        [score] = yield from verify(problem, pool[-1:])
        scores.append(rank(score))
        spare -= pool[-1].n_tokens - chosen.n_tokens
        if scores[-1] >= bar and all(growing(problem, candidate) for candidate in pool):
            return pool, scores, True
    return pool, scores, False
