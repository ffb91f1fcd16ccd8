"""Cumulative regret over output tokens (MRT, arXiv 2503.07572): how late a trace comes to be right.

A trace is a curve of points (tokens so far, Ĵ if stopped there); regret is its distance from always being right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

Curve = Sequence[tuple[float, float]]


def normalised_regret(curve: Curve, budget: float) -> float:
    """nR(C₀) = 1 − (1/C₀)·∫₀^{C₀} y(x) dx, by trapezoids from (0, 0); the last y is held where the trace is shorter.

    Args:
        curve: (x, y) with x > 0 in tokens, ascending, and y in [0, 1].
        budget: C₀ in tokens.

    Raises:
        ValueError: the curve is empty or descends in x, a success is no probability, or the budget is not positive.
    """
    points = [(0.0, 0.0), *curve]
    if not curve or not 0 < budget < math.inf:
        raise ValueError(f"regret needs a point at least and a budget > 0, not {len(curve)} and {budget}")
    area = 0.0
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], (math.inf, points[-1][1])], strict=True):
        if not (x0 <= x1 and 0 <= y1 <= 1):
            raise ValueError(f"the point ({x1}, {y1}) after ({x0}, {y0}): tokens must not fall, success is in [0, 1]")
        if x0 < budget:
            right = min(x1, budget)
            at = y0 if x1 == math.inf or x1 == x0 else y0 + (y1 - y0) * (right - x0) / (x1 - x0)
            area += (right - x0) * (y0 + at) / 2
    return 1.0 - area / budget


def success_at(curve: Curve, tokens: float) -> float:
    """Ĵ at the last point within so many tokens; 0 before the first."""
    return next((y for x, y in reversed(curve) if x <= tokens), 0.0)


def progress(successes: Sequence[float]) -> list[float]:
    """What each episode adds: Ĵ_{j+1} − Ĵ_j. Their sum is Ĵ_last − Ĵ_first: over one whole trace, only the outcome."""
    return [after - before for before, after in pairwise(successes)]
