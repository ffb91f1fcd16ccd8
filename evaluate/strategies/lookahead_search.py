"""Beam search with lookahead (Snell et al., arXiv 2408.03314, §5.2): a prefix is worth what it leads to.

Beam search in which a prefix is scored where a rollout of up to `lookahead` further steps at temperature 0 takes it,
or where the response ends before. Rollouts are then thrown away: beams go on along paths of their own. Without
lookahead it is beam search.

Budget law: a beam costs as much as `lookahead` + 1 responses, N = budget / (`lookahead` + 1), as the paper counts.
Rollouts have what N full lengths leave: when that is spent, prefixes are scored as they are, so that rollouts take
nothing from the beams. One prefix alone is not looked ahead from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, Verifier, extend, growing
from extratime.evaluate.strategies.beam_search import grow
from extratime.evaluate.strategies.weighted_vote import weights
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.models.request import Completion


def lookahead_search(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    lookahead: int = 1,
    width: int = 4,
    verify: Verifier = likelihood,
    step: Sequence[str] = ("\n",),
    rounds: int = 40,
) -> Program[Answer]:
    """A final beam with the answer of the greatest total score.

    Args:
        problem: what to answer.
        budget: see the budget law.
        rng: not used.
        lookahead: steps of a rollout; published 1 and 3.
        width: continuations of each surviving beam; published 4, and the root of the number of beams.
        verify: scores prefixes and responses.
        step: strings that end a step.
        rounds: steps after which every beam is read to its end.
    """
    n = max(1, budget // (lookahead + 1))
    farther = ahead(verify, lookahead, step, (budget - n) * problem.max_tokens)
    beams, scores = yield from grow(problem, n, width, farther, step, rounds)
    return elect(problem, beams, weights(scores), "weighted vote of the final beams")


def ahead(verify: Verifier, steps: int, step: Sequence[str], tokens: int) -> Verifier:
    """A verifier that scores prefixes after so many greedy steps, as long as its `tokens` last.

    Equal prefixes have one rollout. Where a rollout failed the prefix itself is scored.
    """
    left = tokens

    def look(problem: Problem, responses: Sequence[Completion]) -> Program[list[float]]:
        nonlocal left
        tips = {r.text: r for r in responses if growing(problem, r)}
        for _ in range(steps if len(tips) > 1 else 0):
            before = list(tips.values())
            limit = min(tip.n_tokens for tip in before) + left // len(before)
            after = yield from extend(before, pause=step, max_tokens=limit, temperature=0)
            left -= sum(there.n_tokens - here.n_tokens for here, there in zip(before, after, strict=True))
            tips = dict(zip(tips, after, strict=True))
        there = [tips[r.text] if growing(problem, r) else r for r in responses]
        alive = [r if tip.finish == "failed" else tip for r, tip in zip(responses, there, strict=True)]
        return (yield from verify(problem, alive))

    return look
