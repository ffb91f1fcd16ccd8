"""What k samples of one pool are worth: exact @k estimators.

A pool is the set of samples stored for one question. The estimators average over every k-subset of a pool, so they are
unbiased for k fresh draws and add no re-sampling noise. pass@k is Chen et al. 2021 (arXiv:2107.03374); best-of-k with
ties and exact maj@k are derived here.

What is undefined is NaN, never 0; bad input is a ValueError. Deliberate choices: binomial ratios are running products
and maj@k conditions independent binomial votes on their sum, so that neither overflows nor cancels at any pool size.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from extratime.evaluate.statistics.arrays import Array, Ints, finite
from extratime.evaluate.statistics.resampling import batches


@dataclass(frozen=True, slots=True)
class Estimate:
    """A Monte Carlo mean and its standard error, which shrinks with the number of draws, not of questions."""

    value: float
    se: float


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples is correct: 1 - C(n-c, k) / C(n, k) (arXiv:2107.03374).

    Raises:
        ValueError: k is outside 1..n (nothing is extrapolated) or correct is outside 0..n.
    """
    _check_correct(n, correct)
    return float(1.0 - _subset_shares(n, k)[n - correct])


def pass_hat_k(n: int, correct: int, k: int) -> float:
    """Probability that all k samples are correct (pass^k, worst-of-k): C(c, k) / C(n, k) (arXiv:2406.12045).

    Raises:
        ValueError: as for pass_at_k.
    """
    _check_correct(n, correct)
    return float(_subset_shares(n, k)[correct])


def best_of_k(values: npt.ArrayLike, scores: Sequence[float | None] | Array, k: int) -> float:
    """Expected value of the best-scored of k samples, ties broken at random.

    sum over distinct scores g of [C(#{s<=g}, k) - C(#{s<g}, k)] / C(M, k) * mean value of the tie group.

    Args:
        values: shape (M,), what each sample is worth, for instance 1.0 when correct.
        scores: shape (M,), higher is better. None, NaN and -inf are missing: such a sample is taken only from a subset
            without any score, and then at random.
        k: subset size, 1..M.

    Raises:
        ValueError: k is outside 1..M, lengths differ, or a value is not finite.
    """
    worth = finite(values, "values")
    keys = np.asarray(scores, dtype=float)
    if keys.shape != worth.shape:
        raise ValueError(f"{keys.size} scores for {worth.size} values: give one score (or None) a sample")
    shares = _subset_shares(worth.size, k)
    keys = np.where(np.isnan(keys), -np.inf, keys)
    _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    upto = np.cumsum(sizes)
    means = np.bincount(group, weights=worth) / sizes
    return float((shares[upto] - shares[upto - sizes]) @ means)


def gap_closed(strategy: float, mean: float, oracle: float) -> float:
    """Share of the room between the mean sample and the oracle: (strategy - mean) / (oracle - mean); NaN if none."""
    return (strategy - mean) / (oracle - mean) if oracle != mean else math.nan


def _subset_shares(m: int, k: int) -> Array:
    """C(l, k) / C(m, k) for l = 0..m, as running products of 1 - k/i from l = m down."""
    if not 1 <= k <= m:
        raise ValueError(f"k={k} is outside 1..{m}, the samples in the pool: draw more samples or lower k")
    i = np.arange(m, 0, -1)
    return np.concatenate(([1.0], np.cumprod(np.maximum(i - k, 0) / i)))[::-1]


def _check_correct(n: int, correct: int) -> None:
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} correct samples of {n}: correct must be in 0..n")


# ---- voting


def vote_counts(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> tuple[int, list[int], int]:
    """Votes of a pool as (correct, [each wrong answer], unparsed): the leading arguments of maj_at_k.

    Args:
        answers: one vote a sample; None where no answer was found.
        correct: one flag a sample. All right answers count as one class, and an answer is right when any sample that
            carries it was graded right, so that a grader's time-out on one copy does not split the vote.

    Raises:
        ValueError: lengths differ or the pool is empty.
    """
    ids = _vote_classes(answers, correct)
    counts = np.bincount(ids + 1, minlength=2).tolist()
    return counts[1], counts[2:], counts[0]


def maj_at_k(correct: int, others: Sequence[int], unparsed: int, k: int) -> float:
    """Exact accuracy of the majority answer of k samples; a tie between t answers credits 1/t, no vote at all 0.

    For every j the right answer may reach, a table over (votes, ties) adds up the ways in which the others stay at or
    below j. Drawing without replacement is drawing each answer binomially, given that k are drawn in all.

    Args:
        correct: samples with the right answer (equivalent spellings merged).
        others: samples with each wrong answer.
        unparsed: samples that cast no vote but do take a place among the k.
        k: subset size, 1..M.

    Raises:
        ValueError: k is outside 1..M or a count is negative.
    """
    m = _check_votes(correct, others, unparsed, k)
    pmf = _binomials(m, k / (m + 1))
    right, wins = pmf(correct), 0.0
    for j in range(1, min(correct, k) + 1):
        rivals = [count for count in others if count >= j]
        bystanders = pmf(m - correct - sum(rivals))  # answers with fewer than j samples can neither win nor tie
        ties = _rival_votes([pmf(count) for count in rivals], j, k - j) @ (1.0 / np.arange(1, (k - j) // j + 2))
        drawn = min(k - j, bystanders.size - 1)
        wins += right[j] * float(ties[k - j - drawn :] @ bystanders[drawn::-1])
    return wins / float(pmf(m)[k])


def maj_at_k_sampled(
    correct: int, others: Sequence[int], unparsed: int, k: int, rng: np.random.Generator, draws: int = 1000
) -> Estimate:
    """maj_at_k over random subsets, for pools where the exact sum (about k * M table updates) takes too long.

    Raises:
        ValueError: as for maj_at_k, or draws < 2.
    """
    _check_votes(correct, others, unparsed, k)
    pool = [correct, *others, unparsed]
    chunks = [rng.multivariate_hypergeometric(pool, k, n)[:, :-1] for n in batches(draws, len(pool))]
    return _mean_and_se(np.concatenate([_credit(votes) for votes in chunks]))


def weighted_maj_at_k(
    answers: Sequence[Hashable | None],
    correct: Sequence[bool],
    weights: npt.ArrayLike,
    k: int,
    rng: np.random.Generator,
    draws: int = 1000,
) -> Estimate:
    """Accuracy of argmax_a (sum of weights voting a) over random k-subsets, ties credited 1/t.

    A subset whose votes all weigh 0 is decided by the unweighted majority; one without votes scores 0. Sums within
    1e-12 of each other, relatively, are a tie.

    Args:
        answers: as for vote_counts.
        correct: as for vote_counts.
        weights: shape (M,), finite and non-negative. How raw scores became weights is the caller's to record.
        k: subset size, 1..M.
        rng: draws the subsets.
        draws: number of subsets.

    Raises:
        ValueError: lengths differ, k is outside 1..M, a weight is negative or not finite, or draws < 2.
    """
    ids, w = _vote_classes(answers, correct), finite(weights, "weights")
    m = _check_votes(int(ids.size), [], 0, k)
    if w.size != m or w.min() < 0:
        raise ValueError(f"weights must be {m} non-negative numbers, got {w.size} with minimum {w.min():g}")
    parsed = (ids >= 0).astype(float)
    classes = int(ids.max()) + 2
    credits = []
    for n in batches(draws, m + classes):
        subset = rng.random((n, m)).argpartition(k - 1, axis=1)[:, :k]
        cast = (w * parsed)[subset]
        cast = np.where(cast.any(axis=1, keepdims=True), cast, parsed[subset])
        cells = (ids[subset] + 1 + classes * np.arange(n)[:, None]).ravel()
        votes = np.bincount(cells, weights=cast.ravel(), minlength=n * classes).reshape(n, classes)
        credits.append(_credit(votes[:, 1:]))
    return _mean_and_se(np.concatenate(credits))


def _vote_classes(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> Ints:
    """Class of each sample: -1 unparsed, 0 right, 1.. the wrong answers in order of appearance."""
    if not answers or len(answers) != len(correct):
        raise ValueError(f"{len(answers)} answers, {len(correct)} flags: give at least one sample and a flag for each")
    classes: dict[Hashable | None, int] = {a: 0 for a, flag in zip(answers, correct, strict=True) if flag}
    wrong = [a for a in dict.fromkeys(answers) if a is not None and a not in classes]
    classes |= {a: i for i, a in enumerate(wrong, start=1)} | {None: -1}
    return np.array([classes[a] for a in answers], dtype=np.intp)


def _check_votes(correct: int, others: Sequence[int], unparsed: int, k: int) -> int:
    counts = [correct, unparsed, *others]
    if min(counts) < 0:
        raise ValueError(f"negative vote count in correct={correct}, others={list(others)}, unparsed={unparsed}")
    if not 1 <= k <= sum(counts):
        raise ValueError(f"k={k} is outside 1..{sum(counts)}, the samples in the pool: draw more samples or lower k")
    return sum(counts)


def _binomials(m: int, p: float) -> Callable[[int], Array]:
    """Count -> its Binomial(count, p) probabilities, for any count <= m, from one table of log-factorials."""
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, m + 1)))))
    log_odds, log_miss = math.log(p / (1 - p)), math.log1p(-p)

    def pmf(count: int) -> Array:
        f = log_factorial[: count + 1]
        return np.asarray(np.exp(f[-1] - f - f[::-1] + np.arange(count + 1) * log_odds + count * log_miss))

    return pmf


def _rival_votes(pmfs: Sequence[Array], j: int, rest: int) -> Array:
    """Probability (votes 0..rest, ties) that the rivals cast so many votes, none above j and `ties` of them at j."""
    table = np.zeros((rest + 1, rest // j + 1))
    table[0, 0] = 1.0
    for pmf in pmfs:
        grown = pmf[0] * table
        for v in range(1, min(j - 1, rest) + 1):
            grown[v:] += pmf[v] * table[:-v]
        if j <= rest:
            grown[j:, 1:] += pmf[j] * table[:-j, :-1]
        table = grown
    return table


def _credit(votes: npt.NDArray[np.generic]) -> Array:
    """1/t for each row whose first column shares the top with t - 1 others, else 0."""
    table = votes.astype(float)
    best = table.max(axis=1, keepdims=True)
    tied = (table >= best * (1 - 1e-12)) & (best > 0)
    return np.asarray(tied[:, 0] / np.maximum(tied.sum(axis=1), 1))


def _mean_and_se(draws: Array) -> Estimate:
    return Estimate(float(draws.mean()), float(draws.std(ddof=1) / math.sqrt(draws.size)))
