import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from extratime.evaluate.statistics.at_k import (
    best_of_k,
    gap_closed,
    maj_at_k,
    maj_at_k_sampled,
    pass_at_k,
    pass_hat_k,
    vote_counts,
    weighted_maj_at_k,
)


def subsets(m, k):
    return list(combinations(range(m), k))


def brute_best(values, scores, k):
    total = 0.0
    for chosen in subsets(len(values), k):
        keys = [-math.inf if scores[i] is None or math.isnan(scores[i]) else scores[i] for i in chosen]
        best = [values[i] for i, s in zip(chosen, keys, strict=True) if s == max(keys)]
        total += sum(best) / len(best)
    return total / math.comb(len(values), k)


def brute_majority(correct, others, unparsed, k):
    pool = [0] * correct + [i for i, n in enumerate(others, 1) for _ in range(n)] + [None] * unparsed
    total = 0.0
    for chosen in subsets(len(pool), k):
        votes = [pool[i] for i in chosen if pool[i] is not None]
        counts = [votes.count(a) for a in range(len(others) + 1)]
        if votes and counts[0] == max(counts):
            total += 1 / counts.count(max(counts))
    return total / math.comb(len(pool), k)


def partitions(n, largest):
    if n == 0:
        yield []
    for first in range(min(n, largest), 0, -1):
        for rest in partitions(n - first, first):
            yield [first, *rest]


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_and_pass_hat_k_equal_enumeration(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            picks = subsets(n, k)
            assert pass_at_k(n, c, k) == pytest.approx(sum(min(p) < c for p in picks) / len(picks), abs=1e-9)
            assert pass_hat_k(n, c, k) == pytest.approx(sum(max(p) < c for p in picks) / len(picks), abs=1e-9)


@pytest.mark.parametrize("m", range(1, 9))
def test_majority_equals_enumeration_for_every_pool(m):
    for correct in range(m + 1):
        for unparsed in range(m - correct + 1):
            for others in partitions(m - correct - unparsed, m):
                for k in range(1, m + 1):
                    expected = brute_majority(correct, others, unparsed, k)
                    assert maj_at_k(correct, others, unparsed, k) == pytest.approx(expected, abs=1e-9)


score = st.sampled_from([None, math.nan, -math.inf, 0.0, 1.0, 2.0, 3.5])


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.lists(st.tuples(st.floats(-2, 2), score), min_size=1, max_size=8))
def test_best_of_k_equals_enumeration_with_ties_and_missing_scores(pool):
    values, scores = zip(*pool, strict=True)
    for k in range(1, len(pool) + 1):
        assert best_of_k(values, scores, k) == pytest.approx(brute_best(values, scores, k), abs=1e-9)


def test_reference_values():
    assert pass_at_k(10, 3, 5) == pytest.approx(0.916667, abs=1e-6)
    assert pass_hat_k(4, 2, 2) == pytest.approx(0.166667, abs=1e-6)
    assert best_of_k([0, 1, 0], [1, 2, 2], 2) == pytest.approx(0.5)
    assert maj_at_k(4, [3, 2], 1, 5) == pytest.approx(0.559524, abs=1e-6)
    assert maj_at_k(2, [2, 2], 3, 4) == pytest.approx(0.333333, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "best", "worst", "majority"),
    [(0.2, 0.6723, 0.0003, 0.0579), (0.5, 0.9688, 0.0312, 0.5), (0.8, 0.9997, 0.3277, 0.9421)],
)
def test_best_worst_and_majority_of_five_draws(p, best, worst, majority):
    """Of five draws that are each right with probability p, and else give one wrong answer."""
    chances = binom.pmf(np.arange(6), 5, p)
    told = [(pass_at_k(5, c, 5), pass_hat_k(5, c, 5), maj_at_k(c, [5 - c], 0, 5)) for c in range(6)]
    assert chances @ told == pytest.approx([best, worst, majority], abs=6e-5)


def test_edges_of_the_pool():
    assert best_of_k([0, 1], [None, None], 2) == pytest.approx(0.5)
    assert maj_at_k(0, [], 5, 3) == 0.0
    assert maj_at_k(2000, [], 2000, 1) == pytest.approx(0.5)  # counts whose binomials overflow
    assert pass_at_k(5000, 1, 2500) == pytest.approx(0.5)
    assert vote_counts(["4", None, "5", "4", "5", "6"], [1, 0, 0, 0, 0, 0]) == (2, [2, 1], 1)
    assert gap_closed(0.6, 0.4, 0.8) == pytest.approx(0.5)
    assert math.isnan(gap_closed(0.4, 0.4, 0.4))


@pytest.mark.parametrize("k", [1, 3, 9, 10])
def test_sampled_majorities_agree_with_the_exact_one(k):
    answers, flags = [*"aaaabbbcc", None], [1] * 4 + [0] * 6
    exact = maj_at_k(*vote_counts(answers, flags), k)
    rng = np.random.default_rng(k)
    for got in (
        maj_at_k_sampled(4, [3, 2], 1, k, rng, 5000),
        weighted_maj_at_k(answers, flags, [0.3] * 10, k, rng, 5000),
        weighted_maj_at_k(answers, flags, [0] * 10, k, rng, 5000),
    ):
        assert abs(got.value - exact) <= 3.5 * got.se + 1e-12


def test_weight_decides_the_vote():
    got = weighted_maj_at_k(list("abb"), [1, 0, 0], [5, 1, 1], 3, np.random.default_rng(0), 10)
    assert (got.value, got.se) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: pass_at_k(4, 1, 5), "k=5 is outside 1..4"),
        (lambda rng: pass_at_k(4, 5, 1), "5 correct samples of 4"),
        (lambda rng: best_of_k([], [], 1), "values"),
        (lambda rng: maj_at_k(1, [1], 0, 3), "k=3 is outside 1..2"),
        (lambda rng: vote_counts([], []), "at least one sample"),
        (lambda rng: weighted_maj_at_k(["a"], [1], [-1], 1, rng), "non-negative"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))
