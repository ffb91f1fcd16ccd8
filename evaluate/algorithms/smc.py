"""Sequential Monte Carlo: pure functions on weights.

Weights come as logarithms, shape (n,); randomness is an argument.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Reading: TypeAlias = Literal["odds", "score", "exponential"]
Resampler: TypeAlias = Literal["multinomial", "systematic", "stratified", "residual"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


def normalise(log_weights: npt.ArrayLike) -> tuple[Floats, bool]:
    """Probabilities proportional to exp(log_weights), and whether they are degenerate.

    NaN counts as -inf. If nothing is left all are equal and the flag is True. A +inf takes all (shared among several).
    """
    lw = np.asarray(log_weights, dtype=np.float64)
    lw = np.where(np.isnan(lw), -np.inf, lw)
    top = lw.max()
    if top == -np.inf:
        return np.full(lw.shape, 1.0 / lw.size), True
    with np.errstate(over="ignore"):
        weights = (lw == np.inf).astype(np.float64) if top == np.inf else np.exp(lw - top)
    return weights / weights.sum(), False


def effective_sample_size(weights: Floats) -> float:
    """1 / Σ w², between 1 and n, for normalised weights."""
    return float(1.0 / np.sum(weights**2))


def entropy(weights: Floats) -> float:
    """−Σ w ln w / ln n, between 0 and 1, for normalised weights; 1 for a single one."""
    some = weights[weights > 0]
    return 1.0 if weights.size == 1 else float(-np.sum(some * np.log(some)) / np.log(weights.size))


def annealed(
    weights: Floats,
    progress: float,
    by: Literal["ess", "entropy", "base"] = "ess",
    below: float = 0.5,
    early: float = 0.5,
    top: float = 2.0,
) -> float:
    """Temperature ≥ 1 of an annealed resampling (arXiv 2510.05825, entropic annealing).

    With e the effective share ESS/n, H the entropy and ρ the progress: max(1, (1 − ρ)/e), max(1, 1/(H + (1 − H)ρ)) or
    max(1, top − ρ), as long as e < `below` and ρ < `early`; else 1.

    Args:
        weights: normalised.
        progress: share of the steps that have been made.
        by: which of the three.
        below: effective share from which on nothing is annealed.
        early: progress from which on nothing is annealed.
        top: for "base".
    """
    share, spread = effective_sample_size(weights) / weights.size, entropy(weights)
    if share >= below or progress >= early:
        return 1.0
    base = spread + (1 - spread) * progress
    told = {"ess": (1 - progress) / share, "entropy": 1 / base if base else np.inf, "base": top - progress}
    return float(max(1.0, told[by]))


def log_mean(log_weights: npt.ArrayLike) -> float:
    """Logarithm of the mean of exp(log_weights); -inf if all weights are zero. NaN counts as -inf."""
    lw = np.asarray(log_weights, dtype=np.float64)
    lw = np.where(np.isnan(lw), -np.inf, lw)
    top = lw.max()
    return float(top if np.isinf(top) else top + np.log(np.mean(np.exp(lw - top))))


def multinomial(weights: Floats, n: int, rng: np.random.Generator) -> Indices:
    """`n` independent ancestors."""
    return _invert(weights, np.sort(rng.random(n)))


def systematic(weights: Floats, n: int, rng: np.random.Generator) -> Indices:
    """`n` ancestors by one uniform: positions (i + U)/n. Equal weights copy each particle once if n = len(weights)."""
    return _invert(weights, (np.arange(n) + rng.random()) / n)


def stratified(weights: Floats, n: int, rng: np.random.Generator) -> Indices:
    """`n` ancestors by one uniform in each of n equal strata."""
    return _invert(weights, (np.arange(n) + rng.random(n)) / n)


def residual(weights: Floats, n: int, rng: np.random.Generator) -> Indices:
    """⌊n·w⌋ copies of each particle, the rest multinomial from the remainders."""
    copies = np.floor(n * weights + 1e-12).astype(np.intp)
    fixed = np.repeat(np.arange(weights.size), copies)
    rest = np.clip(n * weights - copies, 0.0, None)
    if fixed.size == n:
        return fixed
    return np.sort(np.concatenate([fixed, multinomial(rest / rest.sum(), n - fixed.size, rng)]))


def _invert(weights: Floats, positions: Floats) -> Indices:
    """First index whose cumulative weight exceeds each position; never one of weight zero."""
    cumulative = np.cumsum(weights)
    cumulative[np.flatnonzero(weights)[-1] :] = np.inf
    return np.searchsorted(cumulative, positions, side="right")


RESAMPLERS = {"multinomial": multinomial, "systematic": systematic, "stratified": stratified, "residual": residual}


def logit(score: npt.ArrayLike, eps: float = 1e-7) -> Floats:
    """Ln s − ln(1 − s) of scores in [0, 1], clipped to [eps, 1 − eps]; NaN stays NaN."""
    s = np.clip(np.asarray(score, dtype=np.float64), eps, 1 - eps)
    return np.asarray(np.log(s) - np.log1p(-s))


def logarithms(scores: Floats) -> bool:
    """Whether scores are log-probabilities: one of them is finite and negative."""
    return bool(np.any((scores < 0) & np.isfinite(scores)))


def potentials(scores: npt.ArrayLike, reading: Reading = "odds") -> Floats:
    """Ln G of scores: ln s/(1 − s), ln s or s itself; -inf for NaN and -inf, and finite where a score is +inf.

    Negative scores are read as ln s, but for "exponential".
    """
    s = np.asarray(scores, dtype=np.float64)
    logs = logarithms(s)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        if reading == "odds":
            told = np.where(np.isneginf(s), -np.inf, logit(np.exp(s) if logs else s))
        else:
            told = s if logs or reading == "exponential" else np.log(s)
    return np.nan_to_num(told, nan=-np.inf, posinf=1e9, neginf=-np.inf)


def ratios(after: Floats, before: Floats) -> Floats:
    """Ln G/G′ of potentials G and those of the ancestors; where these were 0, ln G: a filter that begins anew."""
    return after - np.where(np.isneginf(before), 0.0, before)


def carry(log_weights: Floats, law: Floats, ancestors: Indices) -> Floats:
    """Log-weights after ancestors were drawn in proportion to exp(law): ln W/q.

    Their mean keeps its expectation, so that the normalising constant stays unbiased. Where `law` is the log-weights
    all become the logarithm of their mean.
    """
    with np.errstate(invalid="ignore"):
        left = np.where(np.isneginf(law), 0.0, log_weights - law)
    return left[ancestors] + log_mean(law)
