"""Many strategies at once: Holm's correction of their p-values, and the Pareto frontier of cost and quality.

Membership of the frontier is noisy: `frontier_inclusion` tells how often a strategy stays on it when the questions are
resampled, the same questions for all strategies.
"""

import numpy as np
import numpy.typing as npt

from extratime.evaluate.statistics.arrays import Array, finite, probabilities
from extratime.evaluate.statistics.resampling import resampled


def holm(p_values: npt.ArrayLike) -> Array:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979): reject where they are at most alpha.

    Raises:
        ValueError: there is no p-value or one lies outside [0, 1].
    """
    p = probabilities(p_values, "p_values")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted


def pareto_frontier(cost: npt.ArrayLike, quality: npt.ArrayLike) -> list[int]:
    """Indices on the frontier (cost down, quality up), cheapest first; of identical points the first stays.

    Raises:
        ValueError: there is no point, lengths differ or a number is not finite.
    """
    c, q = finite(cost, "cost"), finite(quality, "quality")
    if c.shape != q.shape:
        raise ValueError(f"{c.size} costs for {q.size} qualities: give one of each a point")
    on = np.flatnonzero(_on_frontier(c[None], q[None])[0])
    return [int(i) for i in on[np.argsort(c[on], kind="stable")]]


def hypervolume(cost: npt.ArrayLike, quality: npt.ArrayLike, reference: tuple[float, float]) -> float:
    """Area that the frontier dominates, up to a fixed reference (highest cost, lowest quality).

    What costs more or is worse than the reference adds nothing. Only areas to one reference can be compared.

    Raises:
        ValueError: as for pareto_frontier.
    """
    c, q = finite(cost, "cost"), finite(quality, "quality")
    area, floor = 0.0, reference[1]
    for i in pareto_frontier(c, q):
        if c[i] < reference[0] and q[i] > floor:
            area += (reference[0] - c[i]) * (q[i] - floor)
            floor = q[i]
    return float(area)


def frontier_inclusion(
    cost: npt.ArrayLike, quality: npt.ArrayLike, rng: np.random.Generator, resamples: int = 10_000
) -> Array:
    """Share of resamples of the questions in which each strategy is on the Pareto frontier of mean cost and quality.

    Args:
        cost: shape (S, Q), per strategy and question.
        quality: shape (S, Q), the same questions.
        rng: draws the resamples.
        resamples: number of them.

    Returns:
        Shape (S,), in [0, 1].

    Raises:
        ValueError: shapes differ, are not (S, Q) with S, Q >= 1, a number is not finite, or resamples < 2.
    """
    c, q = np.asarray(cost, dtype=float), np.asarray(quality, dtype=float)
    if c.ndim != 2 or c.shape != q.shape or not c.size:
        raise ValueError(f"cost {c.shape} and quality {q.shape} must both have shape (strategies, questions)")
    for values, name in ((c, "cost"), (q, "quality")):
        finite(values.ravel(), name)
    # equal rows are averaged once: a rounding difference between them would decide who is dominated
    (costs, c_row), (qualities, q_row) = (np.unique(x, axis=0, return_inverse=True) for x in (c, q))
    hits = np.zeros(len(c))
    for counts in resampled(c.shape[1], resamples, rng):
        hits += _on_frontier((counts @ costs.T)[:, c_row], (counts @ qualities.T)[:, q_row]).sum(axis=0)
    return hits / resamples


def _on_frontier(cost: Array, quality: Array) -> npt.NDArray[np.bool_]:
    """Row by row: sorted by cost, then quality downwards, a point is on when it tops all before it."""
    order = np.lexsort((-quality, cost), axis=1)
    ranked = np.take_along_axis(quality, order, axis=1)
    before = np.maximum.accumulate(ranked, axis=1)[:, :-1]
    on = np.ones(cost.shape, dtype=bool)
    np.put_along_axis(on, order[:, 1:], ranked[:, 1:] > before, axis=1)
    return on
