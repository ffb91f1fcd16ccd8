"""Two Weibull laws mixed, fitted by maximum likelihood: which values belong to the lower (RPC, arXiv 2510.15444).

f(x) = w·f(x; k₁, λ₁) + (1 − w)·f(x; k₂, λ₂) with f(x; k, λ) = (k/λ)(x/λ)^(k−1) exp(−(x/λ)^k). Start and bounds are the
authors'; densities stay logarithms, so that no shape overflows. Values are positive, shape (n,).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import gamma, xlogy

Floats = npt.NDArray[np.float64]

START = (0.5, 1.0, 1.0, 1.5, 2.0)
BOUNDS = ((0.2, 0.8), *[(0.01, None)] * 4)
FEWEST = 6
"""Fewer values are never split."""
FLOOR = np.log(1e-300)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The fitted law; index 0 is the component of the higher mean.

    Attributes:
        shares: of the components, shape (2,).
        shapes: k, shape (2,).
        scales: λ, shape (2,).
    """

    shares: Floats
    shapes: Floats
    scales: Floats

    def log_densities(self, x: Floats) -> Floats:
        """Logarithms of share × density of each component, shape (2, n)."""
        k, scale, ratio = self.shapes[:, None], self.scales[:, None], x / self.scales[:, None]
        with np.errstate(over="ignore"):
            return np.asarray(np.log(self.shares[:, None] * k / scale) + xlogy(k - 1, ratio) - ratio**k)

    def means(self) -> Floats:
        """λ·Γ(1 + 1/k), shape (2,)."""
        return np.asarray(self.scales * gamma(1 + 1 / self.shapes))

    def spread(self) -> float:
        """Pooled standard deviation of the components."""
        variances = self.scales**2 * (gamma(1 + 2 / self.shapes) - gamma(1 + 1 / self.shapes) ** 2)
        return float(np.sqrt(np.mean(variances)))


def fit(x: Floats) -> Mixture | None:
    """The mixture of the highest likelihood; None if there are too few values, all are equal, or no fit is found."""
    if x.size < FEWEST or np.ptp(x) <= 1e-9 * x.max():
        return None
    found = minimize(lambda theta: -_log_likelihood(_mixture(theta), x), START, bounds=BOUNDS)
    mixture = _mixture(found.x)
    with np.errstate(all="ignore"):
        if not found.success or not np.isfinite([*mixture.means(), mixture.spread()]).all():
            return None
    order = np.argsort(-mixture.means())
    return Mixture(mixture.shares[order], mixture.shapes[order], mixture.scales[order])


def lower(x: Floats, apart: float) -> npt.NDArray[np.bool_]:
    """Which values are more likely of the lower component, and below the mean of all; the highest never is.

    Args:
        x: the values.
        apart: the least distance of the components' means, in pooled standard deviations; where they are closer
            nothing is said to be of the lower one. The authors' code splits at any distance.
    """
    mixture = fit(x)
    if mixture is None or mixture.means()[0] - mixture.means()[1] < apart * mixture.spread():
        return np.zeros(x.shape, dtype=bool)
    high, low = np.maximum(mixture.log_densities(x), FLOOR)
    return np.asarray((high < low) & (x < x.mean()))


def _mixture(theta: Floats) -> Mixture:
    w, k1, scale1, k2, scale2 = theta
    return Mixture(np.array([w, 1 - w]), np.array([k1, k2]), np.array([scale1, scale2]))


def _log_likelihood(mixture: Mixture, x: Floats) -> float:
    return float(np.sum(np.maximum(np.logaddexp(*mixture.log_densities(x)), FLOOR)))
