"""Best-of-N: draw `budget` responses, keep the one that a verifier ranks first.

Budget law: reads at most `budget` full-length samples. Ties go to the earlier draw.
"""

from __future__ import annotations

import numpy as np

from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, sample
from extratime.evaluate.verifiers.likelihood import likelihood


def best_of_n(
    problem: Problem, budget: int, rng: np.random.Generator, verify: Verifier = likelihood
) -> Program[Answer]:
    """The response with the highest score of `verify`."""
    responses = yield from sample(problem.prompt, budget)
    scores = yield from verify(problem, responses)
    return best(responses, scores, "highest score")
