"""How many samples are enough (TTSPM, arXiv 2505.20522): pure functions.

With N samples side by side, or N rounds one after the other that never lose what is right,

    F(N) = F_max·(1 − (1 − p)^N),   F(N+1) − F(N) = F_max·p·(1 − p)^N,

p what one more sample finds and F_max what the choice among them can reach. Enough is the least N whose next sample
adds at most ε: ⌈ln(ε / (F_max·p)) / ln(1 − p)⌉; with a value v of a right answer and a cost c of a sample, ε = c/v.

Questions differ, and the mean of many such curves is none of them: it bends sooner and climbs longer. A fit to small
N therefore foretells too little at large N; read N between the points and as a rule to stop by. For pass@N `Spread`
fits the questions' own chances instead, p ~ Beta(a, b), and goes on: 1 − B(a, b + N)/B(a, b).

Rounds may lose what was right. A `Chain` settles at gain/(gain + loss), not at 1, and approaches it as fast as
(1 − gain − loss)^N.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar
from scipy.special import betaln
from scipy.stats import betabinom

from extratime.evaluate.statistics.arrays import Array

_RATES = -np.log1p(-np.concatenate((np.geomspace(1e-4, 0.5, 60), 1 - np.geomspace(0.5, 1e-6, 40)[1:])))
"""Rates −ln(1 − p) among which a fit begins."""


@dataclass(frozen=True, slots=True)
class Saturation:
    """F(N): `ceiling` is F_max and `p` the chance of one sample, both in [0, 1]."""

    ceiling: float
    p: float

    def at(self, n: float) -> float:
        """F(n)."""
        return float(self.ceiling * (1 - (1 - self.p) ** n))

    def gain(self, n: int) -> float:
        """What sample n + 1 adds."""
        return self.ceiling * self.p * (1 - self.p) ** n

    def enough(self, least: float) -> int:
        """N*: the least N whose next sample adds at most `least`, which is more than 0.

        Raises:
            ValueError: `least` is not positive; no number of samples is then enough.
        """
        if least <= 0:
            raise ValueError(f"a gain that is not worth a sample is more than 0, not {least}")
        if self.ceiling * self.p <= least:
            return 0
        if self.p == 1:
            return 1
        n = max(0, math.ceil(math.log(least / (self.ceiling * self.p)) / math.log1p(-self.p)) - 1)
        return n if self.gain(n) <= least else n + 1


def fit(points: Mapping[int, float], variances: Mapping[int, float] | None = None) -> Saturation | None:
    """The curve nearest to measured points, by least squares; None where more samples do not help.

    Args:
        points: F by N, for instance exact pass@N or maj@N at powers of two, and what a selector reaches.
        variances: of the points, question-clustered; their inverses are the weights. Left out, all weigh alike.

    Raises:
        ValueError: fewer than two points, or one that is no probability at an N ≥ 1.
    """
    n, y = np.array(sorted(points), dtype=float), np.array([points[k] for k in sorted(points)])
    if n.size < 2 or n[0] < 1 or not ((y >= 0) & (y <= 1)).all():
        raise ValueError(f"a curve needs two points in [0, 1] at N ≥ 1, not {dict(points)}")
    if np.ptp(y) == 0:
        return Saturation(float(y[0]), 1.0)
    if y[-1] < y[0]:
        return None
    w = np.ones_like(y)
    if variances:
        spread = np.array([variances[k] for k in sorted(points)])
        w = 1 / np.maximum(spread, max(spread.max() * 1e-6, 1e-12))
    g = -np.expm1(-_RATES[:, None] * n)
    ceilings = np.clip((w * g) @ y / (w * g**2).sum(axis=1), 0, 1)
    i = int(np.argmin((w * (y - ceilings[:, None] * g) ** 2).sum(axis=1)))
    ends = (_RATES[max(0, i - 1)], _RATES[min(len(_RATES) - 1, i + 1)])
    rate = float(minimize_scalar(_loss, bounds=ends, args=(n, y, w), method="bounded", options={"xatol": 1e-10}).x)
    return Saturation(_ceiling(rate, n, y, w), -math.expm1(-rate))


def _loss(rate: float, n: Array, y: Array, w: Array) -> float:
    return float(w @ (y + _ceiling(rate, n, y, w) * np.expm1(-rate * n)) ** 2)


def _ceiling(rate: float, n: Array, y: Array, w: Array) -> float:
    """The best F_max in [0, 1] at a given p."""
    g = -np.expm1(-rate * n)
    return float(np.clip((w * g) @ y / ((w * g) @ g), 0, 1))


def from_two(n: int, at_n: float, at_twice: float) -> Saturation | None:
    """The curve through its points at n and 2n: (1 − p)^n = F(2n)/F(n) − 1; None where more samples do not help."""
    ratio = at_twice / at_n - 1 if at_n > 0 else math.nan
    if not 0 <= ratio < 1:
        return None
    return Saturation(at_n / (1 - ratio), 1 - ratio ** (1 / n))


# --- questions that differ


@dataclass(frozen=True, slots=True)
class Spread:
    """Chances of the questions, p ~ Beta(a, b)."""

    a: float
    b: float

    def at(self, n: float) -> float:
        """P(at least one of n samples is right), over the questions."""
        return float(-np.expm1(betaln(self.a, self.b + n) - betaln(self.a, self.b)))


def fit_spread(right: npt.ArrayLike, samples: npt.ArrayLike) -> Spread:
    """The Beta law under which the counts of right samples are the likeliest.

    Args:
        right: right samples of each question, shape (Q,).
        samples: samples of each question, shape (Q,) or one number.

    Raises:
        ValueError: no question, or counts that cannot be.
    """
    c = np.asarray(right, dtype=float)
    m = np.broadcast_to(np.asarray(samples, dtype=float), c.shape)
    if not c.size or (c < 0).any() or (c > m).any():
        raise ValueError(f"{c.size} questions, whose right samples must be 0 to as many as were drawn")
    mean = min(0.999, max(0.001, float(c.sum() / m.sum())))

    def misfit(said: Array) -> float:
        a, b = np.exp(np.clip(said, -12, 12))
        return -float(betabinom.logpmf(c, m, a, b).sum())

    starts = [np.log([mean * size, (1 - mean) * size]) for size in (0.5, 2.0, 20.0)]
    best = min((minimize(misfit, x, method="Nelder-Mead") for x in starts), key=lambda found: found.fun)
    a, b = np.exp(np.clip(best.x, -12, 12))
    return Spread(float(a), float(b))


# --- rounds that may lose


@dataclass(frozen=True, slots=True)
class Chain:
    """Rounds of which each makes a wrong answer right with probability `gain` and a right one wrong with `loss`."""

    gain: float
    loss: float

    @property
    def absorbing(self) -> bool:
        """Whether what is right stays right: otherwise F(N) → 1 is not where it goes."""
        return self.loss == 0

    @property
    def settles(self) -> float:
        """Accuracy in the long run; NaN where nothing ever changes."""
        return self.gain / (self.gain + self.loss) if self.gain + self.loss else math.nan

    def at(self, n: int, start: float = 0.0) -> float:
        """Accuracy after n rounds from an accuracy of `start`."""
        if not self.gain + self.loss:
            return start
        return self.settles + (start - self.settles) * (1 - self.gain - self.loss) ** n


def fit_chain(rounds: Sequence[Sequence[bool]]) -> Chain:
    """The chain of which attempts, one after the other on each question, are the likeliest.

    Args:
        rounds: whether each attempt is right, by question; a wrong one has to have a successor somewhere.

    Raises:
        ValueError: no attempt follows a wrong one, so that nothing can be said of a gain.
    """
    moves = [pair for attempts in rounds for pair in itertools.pairwise(attempts)]
    from_wrong, from_right = ([after for before, after in moves if bool(before) is state] for state in (False, True))
    if not from_wrong:
        raise ValueError("no attempt follows a wrong one: read more rounds, or harder problems")
    lost = 1 - float(np.mean(from_right)) if from_right else 0.0
    return Chain(float(np.mean(from_wrong)), lost)
