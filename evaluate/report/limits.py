"""What draws cost and how much that varies, and what it takes to match a vote.

How many tokens the same prompt takes differs from draw to draw; that spread is told as a coefficient of variation,
averaged over questions (arXiv 2504.00294). A strategy matches the vote where its accuracy, at its best budget so far,
is that of the vote's plateau; the multiplier is what that costs, by what the vote's plateau costs (`crossover.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from extratime.evaluate.report.leaderboard import Group, Key, by_task, cells, measured, one_sample, plain
from extratime.evaluate.report.pools import FITS, Pool, Pools, largest
from extratime.evaluate.report.read import Run
from extratime.evaluate.report.reviews import Reviewed, TrueAtK, read_reviews, reviewed, true_at_k
from extratime.evaluate.report.versus import reference
from extratime.evaluate.statistics.crossover import Cells, crossover, multiplier_interval


@dataclass(frozen=True, slots=True)
class Draws:
    """The plain draws of a task.

    Attributes:
        questions: those with two draws at least.
        tokens, right, wrong: mean tokens of a draw, of a right one and of one that is not; failed and cut ones count.
        variation: standard deviation of the tokens of one prompt's draws by their mean, averaged over questions.
    """

    task: str
    questions: int
    tokens: float
    right: float
    wrong: float
    variation: float


@dataclass(frozen=True, slots=True)
class Match:
    """A strategy against the plateau of the vote; costs are mean tokens a problem, a judge's among them.

    Attributes:
        plateau: the best accuracy of the vote, at any of its budgets.
        saturates: what the vote costs half a point below that.
        matches: what the strategy costs where it is as good; NaN where it never is.
        multiplier: of the two, with its central 80 % interval over resampled questions; NaN is beyond all budgets.
        gain: accuracy of the strategy at its best budget, less the plateau.
    """

    task: str
    strategy: str
    plateau: float
    saturates: float
    matches: float
    multiplier: float
    low: float
    high: float
    gain: float


class Limits(NamedTuple):
    """What `limits` tells."""

    draws: tuple[Draws, ...] = ()
    matches: tuple[Match, ...] = ()
    reviewed: tuple[Reviewed, ...] = ()
    true_at_k: tuple[TrueAtK, ...] = ()


def limits(run: Run, resamples: int = 10_000) -> Limits:
    """Of each task, and of all tasks together where there are several.

    Args:
        run: what to tell of.
        resamples: of every bootstrap.
    """
    reviews = read_reviews(run.folder, run.responses)
    draws: list[Draws] = []
    matches: list[Match] = []
    checked: list[Reviewed] = []
    true: list[TrueAtK] = []
    for task, results in by_task(run):
        groups, pools = cells(results), largest([r for r in results if plain(run, r.strategy)], run.responses)
        draws += _draws(task, pools)
        matches += _matches(task, run, groups, min(resamples, FITS))
        if reviews:
            checked += reviewed(task, groups, reviews, resamples)
            true += true_at_k(task, pools, reviews)
    return Limits(tuple(draws), tuple(matches), tuple(checked), tuple(true))


def _draws(task: str, pools: Pools) -> list[Draws]:
    repeated = [pool for pool in pools.values() if len(pool.responses) > 1]
    if not repeated:
        return []
    said = [(r.n_tokens, r.worth > 0) for pool in repeated for r in pool.responses]
    each = [[n for n, good in said if good is right] for right in (True, False)]
    right, wrong = (float(np.mean(tokens)) if tokens else math.nan for tokens in each)
    return [Draws(task, len(repeated), float(np.mean([n for n, _ in said])), right, wrong, variation(repeated))]


def variation(pools: Sequence[Pool]) -> float:
    """Coefficient of variation of the tokens of one prompt's draws, averaged over pools of two draws at least."""
    tokens = [np.array([r.n_tokens for r in pool.responses], dtype=float) for pool in pools]
    return float(np.mean([n.std(ddof=1) / n.mean() if n.any() else 0.0 for n in tokens]))


def _matches(task: str, run: Run, groups: Mapping[Key, Group], resamples: int) -> list[Match]:
    labels = list(dict.fromkeys(label for label, _ in groups))
    vote = reference(run, groups)
    ours = {label: {n: g for (name, n), g in groups.items() if name == label} for label in labels}
    if vote is None or len(ours[vote]) < 2:
        return []
    found = []
    for label in labels:
        if label != vote and label not in run.oracles and not all(one_sample(run, (label, n)) for n in ours[label]):
            found += _match(task, label, ours[vote], ours[label], resamples)
    return found


def _match(
    task: str, label: str, vote: Mapping[int, Group], strategy: Mapping[int, Group], resamples: int
) -> list[Match]:
    """Nothing where they share fewer than two questions, or a budget took no tokens."""
    groups = [*vote.values(), *strategy.values()]
    shared = [q for q in groups[0] if all(q in group for group in groups)]
    if len(shared) < 2:
        return []
    theirs, own = _cells(list(vote.values()), shared), _cells(list(strategy.values()), shared)
    if min(theirs.cost.min(), own.cost.min()) <= 0:
        return []
    whole = np.ones(len(shared))
    met = crossover(theirs.frontier(whole), own.frontier(whole))
    low, high = multiplier_interval(theirs, own, np.random.default_rng(0), resamples)
    gain = float(own.frontier(whole).accuracy[-1]) - met.plateau
    ratio = [_within(x) for x in (met.multiplier, low, high)]
    return [Match(task, label, met.plateau, met.saturates, _within(met.matches), ratio[0], ratio[1], ratio[2], gain)]


def _within(x: float) -> float:
    """NaN for what lies beyond all budgets."""
    return x if math.isfinite(x) else math.nan


def _cells(groups: Sequence[Group], questions: Sequence[tuple[str, str]]) -> Cells:
    right, cost = map(np.array, zip(*(measured(group, questions) for group in groups), strict=True))
    return Cells(cost, right)
