"""Compute-optimal choice at inference (Snell et al., arXiv 2408.03314, §3; 2502.06703): a strategy a difficulty.

A pilot of `look` draws is scored; the mean score predicts how hard the problem is, and the strategy that was chosen
for such problems answers. `extratime allocate` chooses strategies and edges from a finished run. The papers take 2048
draws and do not charge them; here the pilot counts.

Budget law: the pilot is part of the budget. A strategy that begins with plain draws gets the pilot as the first of
them and costs what it costs alone; any other has `budget` − `look` left, and where that is nothing the pilot answers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from extratime.evaluate.algorithms.allocation import bin_of
from extratime.evaluate.program import Answer, EngineError, Problem, Program, Strategy, Verifier, best, sample
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.models.request import Completion, Sample


def by_difficulty(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = likelihood,
    strategies: Sequence[Strategy] = (),
    edges: Sequence[float] = (),
    most: Sequence[int] = (),
    look: int = 4,
) -> Program[Answer]:
    """The answer of the strategy that stands for the problem's predicted difficulty.

    Args:
        problem: what to answer.
        budget: of the pilot and the strategy together.
        rng: handed on to the strategy.
        verify: scores the pilot.
        strategies: one a bin, the easiest first, each with its own verifier; none is best of N in a single bin.
        edges: mean scores that divide the bins, the highest first; a problem at an edge is on the easier side.
        most: what each strategy may spend at most, for one that gets worse with more; none sets no bound.
        look: draws of the pilot; 4 to 8 tell most of what many would.

    Raises:
        ValueError: `edges` or `most` do not fit the number of strategies, or `look` is below 1.
    """
    choices = strategies or (functools.partial(best_of_n, verify=verify),)
    if len(edges) != len(choices) - 1 or len(most) not in (0, len(choices)) or look < 1:
        raise ValueError(
            f"{len(choices)} strategies need one edge less (not {len(edges)}), as many bounds `most` or none (not "
            f"{len(most)}), and a look of at least 1 (not {look})"
        )
    pilot = yield from sample(problem.prompt, min(look, budget))
    scores = yield from verify(problem, pilot)
    told = [score for score in scores if math.isfinite(score)]
    place = bin_of(sum(told) / len(told) if told else -math.inf, edges)
    shared = _plain(problem, next(choices[place](problem, budget, rng), None))
    left = min(budget if shared else budget - len(pilot), most[place] if most else budget)
    if left < 1:
        return best(pilot, scores, f"nothing is left after a pilot of {len(pilot)}")
    return (yield from supplied(problem, choices[place](problem, left, rng), pilot))


def supplied(problem: Problem, program: Program[Answer], draws: Sequence[Completion]) -> Program[Answer]:
    """`program`, whose first plain draws are `draws`, as far as they go."""
    left = list(draws)
    value: Any = None
    step: Callable[[Any], Any] = program.send
    while True:
        try:
            request = step(value)
        except StopIteration as stop:
            answer: Answer = stop.value
            return answer
        try:
            value = yield from _draws(request, left) if _plain(problem, request) else _asked(request)
            step = program.send
        except EngineError as error:
            step, value = program.throw, error


def _draws(request: Sample, left: list[Completion]) -> Program[list[Completion]]:
    """The draws of a request: those that are left, then fresh ones."""
    given = left[: request.n]
    del left[: request.n]
    return given + ((yield from sample(request.prompt, request.n - len(given))) if len(given) < request.n else [])


def _asked(request: Any) -> Program[Any]:
    return (yield request)


def _plain(problem: Problem, request: Any) -> bool:
    """Whether a request is for whole draws of the problem under the cell's own law."""
    return isinstance(request, Sample) and request == Sample(problem.prompt, request.n)
