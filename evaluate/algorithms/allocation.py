"""Compute-optimal choice: the best strategy for each difficulty (Snell et al., arXiv 2408.03314, §3; 2502.06703).

θ*(q, N) = argmax_θ E[1{y = y*(q)}], with θ an arm (a strategy at a budget) and N what may be spent, is estimated for
questions of like difficulty. What is chosen on the questions it is told by flatters itself, so accuracy is told by
two-fold cross-validation: in each bin the best arm of one half answers the other half, and the reverse.

Shapes: S arms, Q questions; bins and edges begin with the easiest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from extratime.evaluate.statistics.arrays import Array, Ints

ABSOLUTE = (0.5, 0.1)
"""Edges of pass@1 between easy, medium and hard (arXiv 2502.06703); quantiles mean little for a strong model."""
LEAST = 10
"""Questions that a bin needs for a choice of its own."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What was chosen.

    Attributes:
        choices: arm of each bin, chosen on all questions: what to use from now on.
        halves: the same, chosen on either half of the questions alone.
        arms: shape (Q,), of each question the arm that the half without it chose: what to tell accuracy by.
    """

    choices: list[int]
    halves: tuple[list[int], list[int]]
    arms: Ints


def bin_of(value: float, edges: Sequence[float]) -> int:
    """The bin of a difficulty (higher is easier): how many edges it stays below; NaN is below all."""
    return sum(not value >= edge for edge in edges)


def quantile_edges(values: npt.ArrayLike, bins: int) -> list[float]:
    """Edges, the highest first, of bins of about equal size; equal values stay together, which may leave fewer bins.

    Args:
        values: shape (Q,), pass@1 or mean scores.
        bins: how many; 5 as published.

    Raises:
        ValueError: there are no values, or fewer than one bin.
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not x.size or bins < 1:
        raise ValueError(f"quantiles need values and at least one bin, not {x.size} and {bins}")
    inner = np.quantile(x, [1 - i / bins for i in range(1, bins)], method="higher")
    return sorted({float(edge) for edge in inner if edge > x.min()}, reverse=True)


def halves(bins: Ints, rng: np.random.Generator) -> Ints:
    """0 or 1 for each question: every bin is split in two at random, the odd one to either side."""
    half = np.empty_like(bins)
    for b in np.unique(bins):
        members = rng.permutation(np.flatnonzero(bins == b))
        half[members] = (np.arange(members.size) + rng.integers(2)) % 2
    return half


def choose(
    quality: Array, price: Array, cap: Array, bins: Ints, count: int, among: npt.NDArray[np.bool_]
) -> list[int]:
    """The best arm of each bin within its means.

    An arm may be taken where its mean price is not above the mean cap. Ties go to the cheaper arm, then to the
    earlier. A bin of fewer than `LEAST` questions gets the choice of all bins together.

    Args:
        quality: shape (S, Q).
        price: shape (S, Q): budgets, or tokens.
        cap: shape (Q,), in the unit of the price.
        bins: shape (Q,), below `count`.
        count: of bins.
        among: shape (Q,), the questions that tell.

    Raises:
        ValueError: no arm is within its means.
    """
    sizes = np.bincount(bins, minlength=count)
    masks = [among & (bins == b) if size >= LEAST else among for b, size in enumerate(sizes)]
    return [_best(quality[:, mask].mean(axis=1), price[:, mask].mean(axis=1), cap[mask].mean()) for mask in masks]


def _best(quality: Array, price: Array, cap: float) -> int:
    allowed = np.flatnonzero(price <= cap * (1 + 1e-9))
    if not allowed.size:
        raise ValueError(f"no strategy costs at most {cap:g}; the cheapest costs {price.min():g}: allow more")
    return int(min(allowed, key=lambda arm: (-quality[arm], price[arm], arm)))


def allocate(quality: Array, price: Array, cap: Array, bins: Ints, count: int, half: Ints) -> Allocation:
    """Choose an arm for each bin, and for two-fold cross-validation on either half alone; see `choose`.

    Args:
        quality: shape (S, Q).
        price: shape (S, Q).
        cap: shape (Q,).
        bins: shape (Q,), below `count`; a single bin chooses one arm for all questions.
        count: of bins.
        half: shape (Q,), from `halves`.

    Raises:
        ValueError: a half is empty, or no arm is within its means.
    """
    if len(set(half.tolist())) < 2:
        raise ValueError(f"{half.size} questions cannot be split in two halves: evaluate more")
    everyone = choose(quality, price, cap, bins, count, np.ones_like(bins, dtype=bool))
    first, second = (choose(quality, price, cap, bins, count, half == h) for h in (0, 1))
    return Allocation(everyone, (first, second), np.array([second, first])[half, bins])
