"""Adaptive best-of-N with self-evaluation (Manvi et al., arXiv 2410.02725): draw until one is good enough.

For k = 1 … budget: draw a response at temperature T_k, read its score g; stop when it is finished and g reaches
`threshold`. T_k = T_max·(1 − 2^−(k−1)) exploits first and explores later (the paper's formula is not published; the
schedule is an option). Budget law: at most `budget` full-length samples, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, sample
from extratime.evaluate.strategies.weighted_vote import weights
from extratime.evaluate.verifiers.self_eval import self_eval
from extratime.models.request import Completion


def annealed(k: int, top: float = 1.0) -> float:
    """Temperature of the k-th draw, k ≥ 1: 0, ½, ¾, … of `top`."""
    return top * (1 - 2.0 ** (1 - k))


def adaptive_best_of_n(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = self_eval,
    threshold: float = 0.9,
    schedule: Callable[[int], float] | None = annealed,
    vote: bool = False,
) -> Program[Answer]:
    """The best response among those drawn before one reached the threshold.

    Args:
        problem: what to answer.
        budget: draws at most.
        rng: not used.
        verify: scores complete responses.
        threshold: score at which to stop; set it by a validation quantile of the score, not by hand.
        schedule: temperature of the k-th draw; None keeps the cell's own.
        vote: whether the responses vote with their scores, instead of the best one answering.
    """
    responses: list[Completion] = []
    scores: list[float] = []
    good = False
    while len(responses) < budget and not good:
        temperature = schedule(len(responses) + 1) if schedule else None
        drawn = yield from sample(problem.prompt, temperature=temperature)
        responses += drawn
        scores += yield from verify(problem, drawn)
        good = drawn[0].finished and scores[-1] >= threshold
    why = f"stopped after {len(responses)} of {budget} draws"
    return elect(problem, responses, weights(scores), why) if vote else best(responses, scores, why)
