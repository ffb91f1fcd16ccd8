"""Early-Stopping Self-Consistency (ESC, arXiv 2401.10480): draw in windows, stop at one that is of one mind.

Draw `window` responses; if all of them give the same answer, stop; else draw the next window. All responses drawn
vote. An unparsed response spoils its window (in the authors' code a window without any answer stops the drawing, and
the last window alone answers). Budget law: at most `budget` full-length samples, `window` at a time.
"""

from __future__ import annotations

import numpy as np

from extratime.evaluate.algorithms.vote import ballots, elect
from extratime.evaluate.program import Answer, Problem, Program, sample
from extratime.models.request import Completion


def early_stopping_consistency(
    problem: Problem, budget: int, rng: np.random.Generator, window: int = 5
) -> Program[Answer]:
    """A response with the answer that most responses give when the drawing stops.

    Args:
        problem: what to answer.
        budget: draws at most; published 40, and 64 for hard tasks.
        rng: not used.
        window: responses that must agree.
    """
    responses: list[Completion] = []
    agreed = False
    while len(responses) < budget and not agreed:
        drawn = yield from sample(problem.prompt, min(window, budget - len(responses)))
        responses += drawn
        votes = set(ballots(problem, drawn))
        agreed = len(votes) == 1 and None not in votes
    why = f"majority vote after {len(responses)} of {budget} draws"
    return elect(problem, responses, [1.0] * len(responses), why)
