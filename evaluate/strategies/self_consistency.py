"""Self-consistency (Wang et al., arXiv 2203.11171): majority vote over the answers of `budget` responses.

Budget law: reads at most `budget` full-length samples. Answers are compared by the task's own equivalence; unparsed
responses do not vote; ties go to the answer that appeared first.
"""

from __future__ import annotations

import numpy as np

from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, sample


def self_consistency(problem: Problem, budget: int, rng: np.random.Generator) -> Program[Answer]:
    """A response with the answer that most responses give."""
    responses = yield from sample(problem.prompt, budget)
    return elect(problem, responses, [1.0] * len(responses), "majority vote")
