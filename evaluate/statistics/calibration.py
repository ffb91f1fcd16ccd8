"""How well a number told beforehand ranks and predicts what is right: AUROC, risk, Brier score, calibration error.

Labels are 0 or 1, confidences in [0, 1]; intervals resample whole questions (`questions.py`). AUROC with
one class only is NaN. Deliberate choice: adaptive ECE keeps tied confidences in one bin.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from extratime.evaluate.statistics.arrays import Array, Ints, probabilities
from extratime.evaluate.statistics.questions import Interval, clustered_ci
from extratime.evaluate.statistics.resampling import percentiles, resampled


def auroc(scores: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """P(a right sample outscores a wrong one) + P(tie) / 2 (Mann-Whitney); NaN with one class only.

    Args:
        scores: shape (M,); -inf is allowed and ranks last.
        correct: shape (M,), 0 or 1.

    Raises:
        ValueError: shapes differ, the pool is empty, a score is missing or a label is not 0 or 1.
    """
    right, wrong = _by_class(scores, correct)
    return float(_wins(right, wrong).mean() / wrong.size) if right.size and wrong.size else math.nan


def within_question_auroc(
    scores: Sequence[npt.ArrayLike],
    correct: Sequence[npt.ArrayLike],
    rng: np.random.Generator,
    resamples: int = 10_000,
) -> Interval:
    """AUROC inside each question, averaged over the questions with both classes: blind to difficulty.

    The interval resamples the mixed questions; their number is in `questions`. Without any, all values are NaN.

    Raises:
        ValueError: as for auroc in some question, or the numbers of questions differ.
    """
    each = np.array([auroc(s, y) for s, y in zip(scores, correct, strict=True)])
    mixed = each[~np.isnan(each)]
    return clustered_ci(mixed, rng, resamples) if mixed.size else Interval(math.nan, math.nan, math.nan, 0)


def auroc_ci(
    scores: Sequence[npt.ArrayLike],
    correct: Sequence[npt.ArrayLike],
    rng: np.random.Generator,
    resamples: int = 10_000,
) -> Interval:
    """AUROC over all samples of all questions, with the interval from resampling whole questions.

    A resample's AUROC is a ratio of two quadratic forms in how often each question was drawn, so the wins between
    every two questions (Q x Q) are counted once. Resamples with one class only are left out.

    Raises:
        ValueError: as for auroc in some question, there is none, or the numbers of questions differ.
    """
    split = [_by_class(s, y) for s, y in zip(scores, correct, strict=True)]
    if not split:
        raise ValueError("no questions: there is nothing to rank")
    sizes = np.array([(right.size, wrong.size) for right, wrong in split], dtype=float)
    owner = np.repeat(np.arange(len(split)), sizes[:, 0].astype(int))
    pooled = np.concatenate([right for right, _ in split])
    wins = np.stack([np.bincount(owner, _wins(pooled, wrong), len(split)) for _, wrong in split], axis=1)

    def area(counts: Array) -> Array:
        pairs = (counts @ sizes).prod(axis=1)
        won = ((counts @ wins) * counts).sum(axis=1)
        return np.asarray(np.divide(won, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0))

    draws = np.concatenate([area(counts) for counts in resampled(len(split), resamples, rng)])
    value = float(area(np.ones((1, len(split))))[0])
    usable = draws[~np.isnan(draws)]
    return Interval(value, *percentiles(usable, len(split) if usable.size else 0), len(split))


def risks(scores: npt.ArrayLike, correct: npt.ArrayLike) -> Array:
    """Share of wrong ones among the n highest scores, n = 1 … M: what is wrong of the answers that are given.

    Of equal scores any may come first: a tied group adds wrong ones evenly, as it does on average over its orders.

    Args:
        scores: shape (M,); -inf is allowed and ranks last.
        correct: shape (M,), 0 or 1.

    Raises:
        ValueError: as for auroc.
    """
    right, wrong = _by_class(scores, correct)
    levels, group, sizes = np.unique(np.concatenate((right, wrong)), return_inverse=True, return_counts=True)
    errors = np.bincount(group[right.size :], minlength=levels.size) / sizes
    each = np.repeat(errors[::-1], sizes[::-1])
    return np.asarray(np.cumsum(each) / np.arange(1, each.size + 1))


def aurc(scores: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Area under the curve of risk by coverage, the mean of `risks`: 0 is perfect, the error rate is of blind scores.

    Raises:
        ValueError: as for auroc.
    """
    return float(risks(scores, correct).mean())


def log_loss(confidence: npt.ArrayLike, correct: npt.ArrayLike, least: float = 1e-6) -> float:
    """Mean of -ln of the probability given to what came true, which counts as `least` at least.

    Raises:
        ValueError: as for brier.
    """
    p, y = _confidences(confidence, correct)
    return float(abs(np.log(np.maximum(np.where(y == 1, p, 1 - p), least)).mean()))


def brier(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Mean of (p - y)^2 (Brier 1950); lower is better.

    Raises:
        ValueError: shapes differ, there is no sample, or a value lies outside [0, 1].
    """
    p, y = _confidences(confidence, correct)
    return float(np.mean((p - y) ** 2))


def ece(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 10) -> float:
    """Expected calibration error over equal-width bins (l, u], p = 0 in the first: sum n_b/n |accuracy - confidence|.

    Biased upwards by about sqrt(2 / pi) * mean sqrt(acc (1 - acc) / n_b): compare cells at the same n.

    Raises:
        ValueError: as for brier, or bins < 1.
    """
    p, y = _confidences(confidence, correct)
    edges = np.arange(1, _check_bins(bins) + 1) / bins
    return _calibration_error(p, y, np.searchsorted(edges, p, side="left"))


def adaptive_ece(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 10) -> float:
    """Expected calibration error over bins of equal mass; tied confidences share the bin of their middle rank.

    Raises:
        ValueError: as for brier, or bins < 1.
    """
    p, y = _confidences(confidence, correct)
    _, group, sizes = np.unique(p, return_inverse=True, return_counts=True)
    middle = np.cumsum(sizes) - sizes / 2
    return _calibration_error(p, y, np.floor(middle[group] / p.size * _check_bins(bins)).astype(np.intp))


def _calibration_error(p: Array, y: Array, bin_of: Ints) -> float:
    return float(np.abs(np.bincount(bin_of, weights=y - p)).sum() / p.size)


def _wins(right: Array, wrong: Array) -> Array:
    """Wrong samples that each right one outscores, ties as a half."""
    wrong = np.sort(wrong)
    return np.asarray((np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")) / 2)


def _by_class(scores: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Array, Array]:
    s, y = np.asarray(scores, dtype=float), np.asarray(correct, dtype=float)
    if s.ndim != 1 or s.shape != y.shape or not s.size:
        raise ValueError(f"scores {s.shape} and labels {y.shape} must be two non-empty lists of one length")
    if np.isnan(s).any():
        raise ValueError("a score is missing: drop the sample or give it -inf to rank it last")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    return s[y == 1], s[y == 0]


def _confidences(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Array, Array]:
    p, y = probabilities(confidence, "confidence"), probabilities(correct, "correct")
    if p.shape != y.shape:
        raise ValueError(f"{p.size} confidences for {y.size} labels: give one of each a sample")
    return p, y


def _check_bins(bins: int) -> int:
    if bins < 1:
        raise ValueError(f"bins={bins}: need at least one")
    return bins
