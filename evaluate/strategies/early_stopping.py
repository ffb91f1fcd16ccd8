"""Stop hopeless responses early (the stop of SEC, Sun et al., arXiv 2401.09964, on whole responses).

`budget` responses are read in lockstep, `every` tokens at a time. After each look a response whose running score is
below `threshold` is given up, unless no other that is left has a higher one: somebody has to answer. The paper's
controller stops where p(stop) > τ, τ from 0 to 0.999; here p(stop) is one minus the score, and 0.1 stands for τ = 0.9.
`algorithms/stopping.py` learns a threshold on validation problems. Scores that are logarithms count as their
exponentials, so that for `likelihood` the threshold is a geometric mean of probabilities.

Without a threshold a response is given up where it can win no more: not even with certain tokens up to its full length
would its mean log-probability reach that of one that has finished. With `likelihood` the answer is that of best-of-N.

Budget law: at most `budget` full-length responses; tokens saved are not spent. The last one left is read to its end
without a look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms.stopping import ceiling
from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, extend, growing, sample
from extratime.evaluate.strategies.weighted_vote import weights
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.models.request import Completion


def early_stopping(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = likelihood,
    threshold: float | None = 0.1,
    every: int = 16,
    vote: bool = False,
) -> Program[Answer]:
    """The best of the responses that were not given up.

    Args:
        problem: what to answer.
        budget: responses begun.
        rng: not used.
        verify: scores beginnings and whole responses.
        threshold: running score in [0, 1] below which to give a response up; 0 gives none up. None, with `likelihood`:
            give up what cannot win.
        every: tokens between two looks.
        vote: whether finished responses vote with their scores, instead of the best one answering.
    """
    responses = yield from sample(problem.prompt, budget, max_tokens=every)
    scores = yield from verify(problem, responses)
    left, length = list(range(budget)), every
    while left := _left(problem, responses, scores, left, threshold):
        going = [i for i in left if growing(problem, responses[i])]
        length = length + every if len(left) > 1 else problem.max_tokens
        grown = yield from extend([responses[i] for i in going], max_tokens=length)
        for i, response, score in zip(going, grown, (yield from verify(problem, grown)), strict=True):
            responses[i], scores[i] = response, score
    stopped = sum(growing(problem, response) for response in responses)
    why = f"{stopped} of {budget} given up"
    return elect(problem, responses, weights(scores), why) if vote else best(responses, scores, why)


def _left(
    problem: Problem,
    responses: Sequence[Completion],
    scores: Sequence[float],
    left: Sequence[int],
    threshold: float | None,
) -> list[int]:
    """Who stays in the race, finished ones included; nobody once no one is being read any more."""
    able = [i for i in left if responses[i].finished or growing(problem, responses[i])]
    if threshold is None:
        hopes = [ceiling(problem, r) if growing(problem, r) else s for r, s in zip(responses, scores, strict=True)]
        bar = max((scores[i] for i in able if responses[i].finished), default=-math.inf)
    else:
        hopes = weights(scores)
        bar = min(threshold, max((hopes[i] for i in able), default=0.0))
    kept = [i for i in able if not hopes[i] < bar]
    return kept if any(growing(problem, responses[i]) for i in kept) else []
