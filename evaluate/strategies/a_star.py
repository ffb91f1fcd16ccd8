"""A*-decoding (Chatziveroglou, arXiv 2505.13672): best-first search over steps, the cheapest prefix goes on.

A state is a prefix of whole steps, with h = 1 − its score in [0, 1]. Each time the state of least f = g + h is taken
from the frontier: if it has ended it is the answer, else `width` continuations of one step are sampled and scored. g
is the cost of the way to the state, to which a step from h to h′ adds

    increase    max(0, h′ − h)   only what makes the response look worse (published; f is not monotone)
    consistent  max(0, h − h′)   f never falls along a path
    none        0                greedy best-first search
    sum_h       h′               grows with depth, so that shallow states look best

Ties go to the deeper state, then to the earlier one: breadth first, equal scores would reach no end. Children that say
the same are one. Scores must be comparable across depths: of step rewards take the last, not the minimum or product.

Budget law: `budget` full lengths. A state has at most as many children as can still be read to their ends, so that no
end is cut off and a budget of 1 is a plain draw. The search stops at the first end taken up; it rarely uses all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Literal, NamedTuple

import numpy as np

from extratime.evaluate.algorithms.search import affordable, branch, probabilities, root
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, growing
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.models.request import Completion

UNKNOWN = 0.5
"""The h of the empty response, which no verifier is asked about."""
COSTS: dict[str, Callable[[float, float], float]] = {
    "increase": lambda here, there: max(0.0, there - here),
    "consistent": lambda here, there: max(0.0, here - there),
    "none": lambda here, there: 0.0,
    "sum_h": lambda here, there: there,
}


class State(NamedTuple):
    """A prefix on the frontier; the first three decide whose turn it is."""

    f: float
    height: int
    serial: int
    g: float
    h: float
    prefix: Completion


def a_star(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    width: int = 3,
    verify: Verifier = likelihood,
    cost: Literal["increase", "consistent", "none", "sum_h"] = "increase",
    step: Sequence[str] = ("\n",),
) -> Program[Answer]:
    """The first response taken from the frontier that has ended; the pool holds all that ended by then.

    Args:
        problem: what to answer.
        budget: full lengths that may be read.
        rng: not used.
        width: children of a state (how many was not published; 3 or 4 do well on chains of steps).
        verify: scores prefixes and responses in [0, 1]; negative scores are read as log-probabilities.
        cost: what a step costs.
        step: strings that end a step.
    """
    frontier = [State(UNKNOWN, 0, 0, 0.0, UNKNOWN, root(problem))]
    ends: list[State] = []
    serial, spent = count(1), 0
    while frontier:
        state = heappop(frontier)
        if state.prefix.finished:
            pool, weights = [end.prefix for end in ends], [-end.f for end in ends]
            return Answer(state.prefix, tuple(pool), tuple(weights), f"the cheapest end after {spent} tokens")
        n = min(width, affordable(problem, state.prefix, budget, spent))
        if n < 1:
            continue
        children, tokens = yield from branch(problem, state.prefix, n, step)
        spent += tokens
        scores = yield from verify(problem, children)
        for child, score in zip(children, probabilities(scores), strict=True):
            new = successor(state, child, 1 - score, cost, next(serial))
            if child.finished or growing(problem, child):
                heappush(frontier, new)
            if not growing(problem, child):
                ends.append(new)
    return best([end.prefix for end in ends], [-end.f for end in ends], "nothing came to an end")


def successor(state: State, child: Completion, h: float, cost: str, serial: int) -> State:
    """The state that a step from `state` leads to."""
    g = state.g + COSTS[cost](state.h, h)
    return State(g + h, state.height - 1, serial, g, h, child)
