"""Weighted vote ("best-of-N weighted", arXiv 2408.03314 §5): each response votes with its verifier's score.

score(a) = Σ over responses with answer a of the score. Budget law: reads at most `budget` full-length samples. Scores
that are logarithms (likelihood) vote with their exponential.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, Verifier, sample
from extratime.evaluate.verifiers.likelihood import likelihood


def weighted_vote(
    problem: Problem, budget: int, rng: np.random.Generator, verify: Verifier = likelihood
) -> Program[Answer]:
    """A response with the answer of the greatest total score."""
    responses = yield from sample(problem.prompt, budget)
    scores = yield from verify(problem, responses)
    return elect(problem, responses, weights(scores), "weighted vote")


def weights(scores: Sequence[float]) -> list[float]:
    """Scores as voting weights: as they are, or their exponentials if a finite one is negative.

    NaN and -inf, which say that a response must not win, weigh 0 and do not turn the others into logarithms. Positive
    logarithms (a reward model's) are lowered together until the greatest is 0: that changes no vote, and nothing
    overflows.
    """
    finite = [s for s in scores if math.isfinite(s)]
    if min(finite, default=0.0) >= 0:
        return [0.0 if math.isnan(s) or s == -math.inf else s for s in scores]
    top = max(0.0, max(finite))
    return [0.0 if math.isnan(s) else math.exp(s - top) for s in scores]
