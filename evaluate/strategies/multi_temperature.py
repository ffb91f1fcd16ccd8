"""Temperature scaling (Wu et al., arXiv 2510.02611): the budget spread over a grid of temperatures, with early exit.

Round r = 1, 2, …: draw one response at each temperature, side by side. A temperature is sure if its commonest answer
has a share of at least `within` of what it drew, unparsed responses included. If all are sure, and at least `across`
of them of the same answer, that answers; else go on. With the budget spent the whole pool votes, or `verify` ranks it.

Temperature 0 has one response, which is drawn and counted once. Budget law: at most `budget` full-length samples. A
budget that is smaller than a round draws at as many temperatures, evenly out of the grid; a budget of 1 at the
recipe's own temperature.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from extratime.evaluate.algorithms.vote import agreement, ballots, elect, elect_among
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, gather, sample
from extratime.models.request import Completion

T = TypeVar("T")
GRID = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
"""The published grid without 0.1 to 0.3, which solved nothing that the others did not."""


def multi_temperature(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    temperatures: Sequence[float] = GRID,
    within: float = 0.8,
    across: float = 1.0,
    least: int = 1,
    verify: Verifier | None = None,
) -> Program[Answer]:
    """The answer on which the temperatures agree, else the majority's or the best of the pool.

    Args:
        problem: what to answer.
        budget: draws at most; published 1,024 a temperature.
        rng: not used.
        temperatures: the grid.
        within: share of a temperature's responses that must agree.
        across: share of the temperatures that must agree; above 1 the whole budget is always spent.
        least: rounds before agreement counts. After the first each temperature is sure of its only answer.
        verify: ranks the pool where the temperatures do not agree; None takes the majority.
    """
    if budget == 1:
        [response] = yield from sample(problem.prompt)
        return Answer(response, (response,), (1.0,), "one draw")
    grid = _spread(temperatures, budget)
    responses: list[Completion] = []
    pools: list[list[Hashable | None]] = [[] for _ in grid]
    while turn := _spread([i for i, t in enumerate(grid) if t or not pools[i]], budget - len(responses)):
        drawn = yield from gather(sample(problem.prompt, temperature=grid[i]) for i in turn)
        for i, [response] in zip(turn, drawn, strict=True):
            responses.append(response)
            pools[i] += ballots(problem, [response])
        agreed = agreement(pools, within, across)
        if agreed is not None and max(map(len, pools)) >= least:
            voters = [vote == agreed for vote in ballots(problem, responses)]
            return elect_among(problem, responses, voters, f"agreed after {len(responses)} of {budget} draws")
    if verify:
        scores = yield from verify(problem, responses)
        return best(responses, scores, "highest score over all temperatures")
    return elect(problem, responses, [1.0] * len(responses), "majority vote over all temperatures")


def _spread(items: Sequence[T], n: int) -> list[T]:
    """`n` of the items, evenly apart; all of them if there are no more."""
    n = min(n, len(items))
    return [items[(2 * j + 1) * len(items) // (2 * n)] for j in range(n)]
