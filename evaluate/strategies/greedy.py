"""Greedy decoding: one response of the most probable tokens. Budget law: one response whatever the budget."""

from __future__ import annotations

import numpy as np

from extratime.evaluate.program import Answer, Problem, Program, sample


def greedy(problem: Problem, budget: int, rng: np.random.Generator) -> Program[Answer]:
    """The response that the model itself ranks first, token by token."""
    responses = yield from sample(problem.prompt, temperature=0)
    return Answer(responses[0], tuple(responses), (0.0,), "greedy decoding")
