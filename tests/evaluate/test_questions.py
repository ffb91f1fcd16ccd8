import math

import numpy as np
import pytest

from extratime.evaluate.statistics.questions import clustered_ci, clustered_se, mcnemar, paired_difference


def pools(rng, size):
    p = rng.beta(0.5, 0.5, size)
    return p, rng.binomial(8, p) / 8


def test_clustered_interval_covers_and_the_naive_one_does_not():
    rng = np.random.default_rng(0)
    covered, naive = 0, 0
    for _ in range(1000):
        _, means = pools(rng, 60)
        ci = clustered_ci(means, rng, 1000)
        covered += ci.low <= 0.5 <= ci.high
        naive += abs(means.mean() - 0.5) <= 1.96 * math.sqrt(means.mean() * (1 - means.mean()) / 480)
    assert 920 <= covered <= 970
    assert naive < 750


def test_p_values_of_identical_strategies_are_uniform():
    from scipy.stats import kstest

    rng = np.random.default_rng(1)
    p_values = []
    for _ in range(500):
        p, m = rng.beta(0.5, 0.5, 60), rng.integers(5, 25, 60)  # ragged pools leave few exact ties
        a, b = rng.binomial(m, p) / m, rng.binomial(m, p) / m
        p_values.append(paired_difference(a, b, rng, 1000).p)
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert 0.03 <= np.mean(np.array(p_values) <= 0.05) <= 0.07


def test_intervals_at_the_edges():
    rng = np.random.default_rng(0)
    one = clustered_ci([[1, 0]], rng, 100)
    assert one.value == 0.5 and math.isnan(one.low) and math.isnan(clustered_se([[1, 0]]))
    assert clustered_se([[1, 1], [0, 0, 0]]) == pytest.approx(0.5)
    assert paired_difference([1, 0, 1], [1, 0, 1], rng, 100).p == 1.0
    assert paired_difference([1.0] * 20, [0.0] * 20, rng, 999).p == pytest.approx(1 / 1000)


def test_mcnemar_by_reference():
    assert mcnemar(9, 2) == pytest.approx(0.0654, abs=5e-5)
    assert mcnemar(10, 2) == pytest.approx(0.0386, abs=5e-5)
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: clustered_ci([], rng), "no questions"),
        (lambda rng: clustered_ci([[1], []], rng), "question 1"),
        (lambda rng: paired_difference([1, 0], [1], rng), "same questions"),
        (lambda rng: mcnemar(-1, 2), "negative"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))
