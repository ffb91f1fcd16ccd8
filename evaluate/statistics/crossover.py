"""At what budget another way overtakes a vote, and how a budget is best split (arXiv 2504.01005): pure functions.

With accuracy by cost of a vote and of something else (costs in one unit, solutions' worth of tokens or tokens),

    C_sat    the least cost at which the vote is within half a point of its plateau, the best it comes to,
    C_match  the least cost at which the other is as good as that plateau,

and their ratio is the multiplier. It belongs to a model, a verifier and a task; published are 4 to 64. Below C_match
the vote is the better use of tokens. Between the costs that were measured accuracy is read off on a line in log₂ C.

Over a grid of S solutions and V verifications each, C(S, V) = S·(1 + λV), the best split of each budget is traced and
its growth fitted: S ∝ C^a, V ∝ C^b. Where V is large C ≈ λSV, so that a + b is near 1. Budgets whose best split lies
on the edge of the grid are left out: it is best of those measured alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from extratime.evaluate.statistics.arrays import Array, finite
from extratime.evaluate.statistics.resampling import resampled

WITHIN = 0.005
"""How near to its plateau a vote counts as saturated: half a point."""


@dataclass(frozen=True, slots=True)
class Crossover:
    """Where another way matches a vote.

    Attributes:
        plateau: the best accuracy of the vote.
        saturates: C_sat.
        matches: C_match; infinite where the plateau is not reached within what was measured.
    """

    plateau: float
    saturates: float
    matches: float

    @property
    def multiplier(self) -> float:
        """C_match / C_sat."""
        return self.matches / self.saturates


class Frontier:
    """The best accuracy at each cost or less."""

    def __init__(self, cost: npt.ArrayLike, accuracy: npt.ArrayLike) -> None:
        """Take points in any order.

        Raises:
            ValueError: there is none, lengths differ, or a cost is not positive.
        """
        c, a = finite(cost, "cost"), finite(accuracy, "accuracy")
        if c.shape != a.shape or c.min() <= 0:
            raise ValueError(f"{c.size} costs, all above 0, for as many accuracies, not {a.size}")
        order = np.lexsort((-a, c))
        first = np.concatenate(([True], np.diff(c[order]) > 0))
        self.log_cost, self.accuracy = np.log2(c[order][first]), np.maximum.accumulate(a[order])[first]

    def at(self, cost: float) -> float:
        """Accuracy for `cost`; NaN below the least that was measured."""
        return float(np.interp(math.log2(cost), self.log_cost, self.accuracy, left=math.nan)) if cost > 0 else math.nan

    def reaches(self, level: float) -> float:
        """The least cost at which accuracy is `level`; infinite if it never is."""
        level -= 1e-12
        i = int(np.searchsorted(self.accuracy, level))
        if i == self.accuracy.size:
            return math.inf
        if i == 0:
            return float(2 ** self.log_cost[0])
        share = (level - self.accuracy[i - 1]) / (self.accuracy[i] - self.accuracy[i - 1])
        return float(2 ** (self.log_cost[i - 1] + share * (self.log_cost[i] - self.log_cost[i - 1])))


def crossover(vote: Frontier, other: Frontier, within: float = WITHIN) -> Crossover:
    """Where `other` matches `vote`."""
    plateau = float(vote.accuracy[-1])
    return Crossover(plateau, vote.reaches(plateau - within), other.reaches(plateau))


def gain_at(vote: Frontier, other: Frontier, multiple: float, within: float = WITHIN) -> float:
    """What `other` adds to the vote's plateau at so many times C_sat; NaN where that is below all its costs."""
    met = crossover(vote, other, within)
    return other.at(multiple * met.saturates) - met.plateau


@dataclass(frozen=True, slots=True)
class Cells:
    """Accuracy and cost of one way at several budgets, on the same questions: both of shape (budgets, Q)."""

    cost: Array
    right: Array

    def frontier(self, counts: Array) -> Frontier:
        """Over questions that are drawn so often, shape (Q,)."""
        return Frontier(self.cost @ counts / counts.sum(), self.right @ counts / counts.sum())


def multiplier_interval(
    vote: Cells,
    other: Cells,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.8,
    within: float = WITHIN,
) -> tuple[float, float]:
    """The central `level` of the multiplier over resampled questions; an end may be infinite.

    Raises:
        ValueError: the two have not the same questions, or resamples < 2.
    """
    if vote.right.shape[1] != other.right.shape[1]:
        raise ValueError(f"{vote.right.shape[1]} questions against {other.right.shape[1]}: both need the same")
    found = [
        crossover(vote.frontier(counts), other.frontier(counts), within).multiplier
        for chunk in resampled(vote.right.shape[1], resamples, rng)
        for counts in chunk
    ]
    low, high = np.quantile(found, ((1 - level) / 2, (1 + level) / 2), method="inverted_cdf")
    return float(low), float(high)


# --- how the best split grows


@dataclass(frozen=True, slots=True)
class Growth:
    """S = factor_s·C^a and V = factor_v·C^b.

    Attributes:
        a, b: exponents of solutions and verifications.
        factor_s, factor_v: their factors.
        fit_s, fit_v: R² of either in logarithms; 1 where nothing varies.
        splits: (C, S, V) that were fitted.
    """

    a: float
    b: float
    factor_s: float
    factor_v: float
    fit_s: float
    fit_v: float
    splits: tuple[tuple[float, int, float], ...]


def growth(success: Mapping[tuple[int, int], float], relative_cost: float, per_octave: int = 4) -> Growth:
    """How the best split of a budget grows, by least squares in logarithms.

    Args:
        success: accuracy by (S, V), V ≥ 1: a grid, from stored solutions and verdicts.
        relative_cost: λ, tokens of a verification per token of a solution.
        per_octave: budgets looked at between C and 2C.

    Raises:
        ValueError: fewer than three budgets have their best split inside the grid.
    """
    splits = best_splits(success, relative_cost, per_octave)
    if len(splits) < 3:
        raise ValueError(
            f"{len(splits)} budgets have their best split inside the grid, and a law needs three: measure more "
            "solutions and more verifications"
        )
    c, s, v = np.log(np.array(splits)).T
    (a, s0, fit_s), (b, v0, fit_v) = _line(c, s), _line(c, v)
    return Growth(a, b, math.exp(s0), math.exp(v0), fit_s, fit_v, tuple(splits))


def best_splits(
    success: Mapping[tuple[int, int], float], relative_cost: float, per_octave: int = 4
) -> list[tuple[float, int, float]]:
    """(C, S, V) of the best accuracy at each budget.

    For each S accuracy is traced along V, on lines in log₂ C. A best S whose neighbours on the grid do not both reach
    the budget is left out: were there more verifications, another S might be better.
    """
    traces = {
        s: sorted((s * (1 + relative_cost * v), v, accuracy) for (t, v), accuracy in success.items() if t == s)
        for s in sorted({s for s, _ in success})
    }
    costs = [cost for trace in traces.values() for cost, _, _ in trace]
    octaves = math.log2(max(costs) / min(costs))
    found = []
    for budget in min(costs) * 2 ** (np.arange(math.floor(octaves * per_octave) + 1) / per_octave):
        told = [_traced(trace, float(budget)) for trace in traces.values()]
        i = int(np.argmax(told))
        if 0 < i < len(told) - 1 and min(told[i - 1 : i + 2]) > -math.inf:
            s = list(traces)[i]
            found.append((float(budget), s, (float(budget) / s - 1) / relative_cost))
    return found


def _traced(trace: Sequence[tuple[float, int, float]], budget: float) -> float:
    costs, _, accuracies = zip(*trace, strict=True)
    return float(np.interp(math.log2(budget), np.log2(costs), accuracies, left=-math.inf, right=-math.inf))


def _line(x: Array, y: Array) -> tuple[float, float, float]:
    """Slope, intercept and R² of a least-squares line."""
    slope, base = np.polyfit(x, y, 1)
    rest, whole = ((y - base - slope * x) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return float(slope), float(base), float(1 - rest / whole) if whole > 0 else 1.0
