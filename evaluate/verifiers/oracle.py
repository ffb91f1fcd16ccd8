"""Oracle: 1 for a right response, 0 for a wrong one. The ceiling of every verifier; it knows the reference answer."""

from __future__ import annotations

from collections.abc import Sequence

from extratime.evaluate.program import Problem, Program
from extratime.models.request import Completion


def oracle(problem: Problem, responses: Sequence[Completion]) -> Program[list[float]]:
    """1.0 where the response is right, else 0.0.

    Raises:
        ValueError: the task gives no way to tell.
    """
    yield from ()
    if problem.correct is None:
        raise ValueError(f"problem {problem.id}: this task has no per-response check, so it has no oracle")
    return [float(problem.correct(r.text)) for r in responses]
