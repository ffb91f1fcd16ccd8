"""Means over questions with their intervals, and paired tests.

The unit of inference is the question: intervals and tests resample questions and keep a question's samples together,
since samples of one question are correlated. One question has no spread: NaN, never 0. Bad input is a ValueError.
Functions that draw take a generator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from extratime.evaluate.statistics.arrays import Array, finite
from extratime.evaluate.statistics.resampling import flipped, percentiles, resampled


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over questions with its 95 % percentile interval; low and high are NaN below two questions."""

    value: float
    low: float
    high: float
    questions: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired mean difference with its 95 % percentile interval and two-sided sign-flip p-value."""

    value: float
    low: float
    high: float
    p: float
    questions: int


def question_means(samples: Sequence[npt.ArrayLike] | Array) -> Array:
    """Mean of each question's samples, shape (Q,); an element may be an array of samples or already a mean.

    Raises:
        ValueError: there is no question, or a question has no sample or one that is not finite.
    """
    if not len(samples):
        raise ValueError("no questions: there is nothing to average")
    try:
        table = np.asarray(samples, dtype=float, order="C")  # row by row, as each would be summed alone
    except ValueError:  # not as many samples of every question
        table = np.empty(0)
    if not (table.size and table.ndim <= 2 and np.isfinite(table).all()):
        return np.array([finite(x, f"question {i}").mean() for i, x in enumerate(samples)])
    means: Array = table.reshape(len(table), -1).mean(axis=1)
    return means


def clustered_se(samples: Sequence[npt.ArrayLike] | Array) -> float:
    """Standard error of the mean over questions, sd(question means) / sqrt(Q); NaN for one question."""
    means = question_means(samples)
    return float(means.std(ddof=1) / math.sqrt(means.size)) if means.size > 1 else math.nan


def clustered_ci(
    samples: Sequence[npt.ArrayLike] | Array, rng: np.random.Generator, resamples: int = 10_000
) -> Interval:
    """Mean over questions with the percentile bootstrap interval from resampling whole questions.

    Args:
        samples: per question its samples, or its mean; each question weighs the same.
        rng: draws the resamples.
        resamples: number of them.

    Raises:
        ValueError: as for question_means, or resamples < 2.
    """
    means = question_means(samples)
    draws = [counts @ means / means.size for counts in resampled(means.size, resamples, rng)]
    return Interval(float(means.mean()), *percentiles(np.concatenate(draws), means.size), means.size)


def paired_difference(
    a: Sequence[npt.ArrayLike] | Array,
    b: Sequence[npt.ArrayLike] | Array,
    rng: np.random.Generator,
    resamples: int = 10_000,
) -> Difference:
    """Mean of a - b over the same questions: bootstrap interval, and p by flipping the sign of whole questions.

    p = (1 + #{|d*| >= |d|}) / (1 + R), so it is never 0 and its smallest value is 1 / (1 + R).

    Args:
        a: per question its samples, or its mean.
        b: the same questions in the same order.
        rng: draws the resamples and the signs.
        resamples: R, for each of the two.

    Raises:
        ValueError: as for question_means, the numbers of questions differ, or resamples < 2.
    """
    x, y = question_means(a), question_means(b)
    if x.size != y.size:
        raise ValueError(f"{x.size} questions against {y.size}: a paired test needs the same questions on both sides")
    interval = clustered_ci(x - y, rng, resamples)
    return Difference(interval.value, interval.low, interval.high, _sign_flip_p(x - y, rng, resamples), x.size)


def _sign_flip_p(d: Array, rng: np.random.Generator, resamples: int) -> float:
    threshold = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # equal sums in another order count as equal
    extreme = 0
    for signs in flipped(d.size, resamples, rng):
        extreme += int(np.count_nonzero(np.abs(signs @ d) >= threshold))
    return (1 + extreme) / (1 + resamples)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided McNemar p for b and c discordant questions: min(1, 2 P(Binomial(b + c, 1/2) <= min(b, c))).

    Raises:
        ValueError: a count is negative.
    """
    if min(b, c) < 0:
        raise ValueError(f"discordant counts must not be negative, got {b} and {c}")
    n, term, tail = b + c, 1, 0
    for i in range(min(b, c) + 1):
        tail += term
        term = term * (n - i) // (i + 1)
    return float(min(1.0, 2 * tail / 2**n))
