"""A reward model behind the role "verifier": outcome reward, or step rewards drawn together.

Aggregation of step rewards r_1 … r_t into one score (arXiv 2502.01618, 2408.03314): last, min, mean or product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from extratime.evaluate.program import Problem, Program, score
from extratime.models.request import Completion, Score


def reward_model(
    problem: Problem,
    responses: Sequence[Completion],
    aggregate: Literal["last", "min", "mean", "prod"] = "last",
    role: str = "verifier",
) -> Program[list[float]]:
    """One reward a response; -inf for failed responses and for those that the model gives no reward."""
    question = next((m["content"] for m in reversed(problem.messages) if m["role"] == "user"), "")
    alive = [r for r in responses if r.finish != "failed"]
    rewards = iter((yield from score(Score(r.prompt, r.text, role, question) for r in alive)))
    return [_AGGREGATES[aggregate](next(rewards)) if r.finish != "failed" else -math.inf for r in responses]


_AGGREGATES = {
    "last": lambda r: float(r[-1]) if r else -math.inf,
    "min": lambda r: float(min(r, default=-math.inf)),
    "mean": lambda r: float(np.mean(r)) if r else -math.inf,
    "prod": lambda r: float(np.prod(r)) if r else -math.inf,
}
