"""Adaptive-Consistency (Aggarwal et al., arXiv 2305.11860): draw until the majority is unlikely to change.

For k = 1 … budget: draw a response; stop when P(the leading answer is the likeliest | votes) reaches `threshold`. The
probability is that of the two leading answers alone ("beta", the published default), or of all seen ("dirichlet").
Unparsed responses do not vote. Budget law: at most `budget` full-length samples, one after the other; at the published
threshold four that agree are enough.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

import numpy as np

from extratime.evaluate.algorithms.vote import ballots, beta_confidence, dirichlet_confidence, elect, tally
from extratime.evaluate.program import Answer, Problem, Program, sample
from extratime.models.request import Completion


def adaptive_consistency(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    rule: Literal["beta", "dirichlet"] = "beta",
    threshold: float = 0.95,
) -> Program[Answer]:
    """A response with the answer that most responses give when the drawing stops.

    Args:
        problem: what to answer.
        budget: draws at most; published 40.
        rng: not used.
        rule: what the leading answer is compared with, its first rival or all that were seen.
        threshold: probability at which to stop.
    """
    responses: list[Completion] = []
    votes: list[Hashable | None] = []
    sure = 0.0
    while len(responses) < budget and sure < threshold:
        drawn = yield from sample(problem.prompt)
        responses += drawn
        votes += ballots(problem, drawn)
        sure = _RULES[rule](list(tally(votes, [1.0] * len(votes)).values()))
    why = f"majority vote after {len(responses)} of {budget} draws"
    return elect(problem, responses, [1.0] * len(responses), why)


_RULES = {"beta": beta_confidence, "dirichlet": dirichlet_confidence}
