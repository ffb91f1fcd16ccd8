"""How many samples are enough: the curve, its fit, where it misleads, and rounds that lose what was right."""

import functools
import math

import numpy as np
import pytest
from laws import answers, repeated, right, within

from extratime.evaluate.statistics.at_k import pass_at_k
from extratime.evaluate.statistics.saturation import Chain, Saturation, Spread, fit, fit_chain, fit_spread, from_two
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.verifiers.oracle import oracle

CURVE = Saturation(0.6, 0.2)


def test_published_curve_and_where_it_is_enough():
    told = [CURVE.at(n) for n in (1, 2, 4, 8, 16, 32)]
    assert told == pytest.approx([0.12, 0.216, 0.3542, 0.4993, 0.5831, 0.5995], abs=5e-5)
    assert CURVE.gain(11) == pytest.approx(0.0103, abs=5e-5) and CURVE.gain(12) == pytest.approx(0.0082, abs=5e-5)
    assert CURVE.enough(0.01) == 12
    assert CURVE.gain(5) == pytest.approx(CURVE.at(6) - CURVE.at(5))


@pytest.mark.parametrize("ceiling", [0.05, 0.6, 1.0])
@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("least", [0.3, 0.01, 0.01 * 2**-3, 1e-6])
def test_enough_is_the_least_number_whose_next_sample_is_not_worth_it(ceiling, p, least):
    curve = Saturation(ceiling, p)
    n = curve.enough(least)
    assert curve.gain(n) <= least and (n == 0 or curve.gain(n - 1) > least)


def test_a_gain_of_just_the_least_is_not_worth_it():
    for n in range(20):
        assert Saturation(0.5, 0.5).enough(0.25 * 0.5**n) == n
    assert Saturation(0.1, 0.1).enough(0.02) == 0 and Saturation(0.6, 1.0).enough(0.1) == 1
    with pytest.raises(ValueError, match="more than 0"):
        CURVE.enough(0.0)


@pytest.mark.parametrize("curve", [CURVE, Saturation(1.0, 0.01), Saturation(0.9, 0.9), Saturation(0.3, 0.5)])
def test_exact_points_give_their_curve_back(curve):
    points = {n: curve.at(n) for n in (1, 2, 4, 8, 16)}
    found = fit(points)
    assert (found.ceiling, found.p) == pytest.approx((curve.ceiling, curve.p), rel=1e-4)
    two = from_two(4, points[4], points[8])
    assert (two.ceiling, two.p) == pytest.approx((curve.ceiling, curve.p), rel=1e-9)


def test_weights_trust_the_sure_points():
    points = {n: CURVE.at(n) for n in (1, 2, 4, 8)} | {16: 0.9}
    spread = dict.fromkeys((1, 2, 4, 8), 1e-4)
    assert abs(fit(points, spread | {16: 10.0}).ceiling - 0.6) < 0.01 < abs(fit(points).ceiling - 0.6)
    alike = fit(points, dict.fromkeys(points, 0.0))  # points that never vary
    assert (alike.ceiling, alike.p) == pytest.approx((fit(points).ceiling, fit(points).p))


def test_what_does_not_climb_is_no_curve():
    assert fit({1: 0.4, 2: 0.4, 4: 0.4}) == Saturation(0.4, 1.0) and fit({1: 0.4, 2: 0.4}).enough(0.01) == 1
    assert fit({1: 0.0, 2: 0.0}).enough(0.01) == 0
    assert fit({1: 0.4, 2: 0.3, 4: 0.2}) is None and from_two(1, 0.4, 0.3) is None and from_two(1, 0.0, 0.1) is None
    assert from_two(1, 0.1, 0.3) is None, "a curve that climbs faster than doubling is none of these"
    late = fit({1: 0.0, 8: 0.1, 64: 0.5})
    assert 0 < late.p < 0.1 and late.ceiling > 0.3
    for points in ({1: 0.4}, {0: 0.1, 1: 0.2}, {1: 0.1, 2: 1.2}):
        with pytest.raises(ValueError, match="two points"):
            fit(points)


def homogeneous(seed, questions=400, n=64):
    draw = np.random.default_rng(seed)
    solvable = draw.random(questions) < 0.6
    return np.where(solvable, draw.binomial(n, 0.2, questions), 0)


def test_questions_of_one_kind_give_their_constants():
    """Solvable with probability .6, by one sample with .2: within .02 and .05 of both in 90 of 100 draws."""
    ns, good, alike = (1, 2, 4, 8, 16, 32), 0, 0
    exact = np.array([[pass_at_k(64, c, n) for n in ns] for c in range(65)])
    for seed in range(100):
        rows = exact[homogeneous(seed)]
        points = dict(zip(ns, rows.mean(axis=0), strict=True))
        found = fit(points, dict(zip(ns, rows.var(axis=0) / 400, strict=True)))
        two = from_two(8, points[8], points[16])
        good += abs(found.p - 0.2) <= 0.02 and abs(found.ceiling - 0.6) <= 0.05
        alike += abs(two.p - found.p) <= 0.03 and abs(two.ceiling - found.ceiling) <= 0.03
    assert good >= 90 and alike >= 90


def test_questions_that_differ_climb_longer_than_the_curve_foretells():
    """p ~ Beta(.4, .8): fitted at N ≤ 4 the curve says .588 at 32, where it is .804; their own law says that."""
    law = Spread(0.4, 0.8)
    ns = (1, 2, 4, 8, 16, 32)
    truth = {n: law.at(n) for n in ns}
    assert list(truth.values()) == pytest.approx([0.334, 0.455, 0.569, 0.666, 0.744, 0.804], abs=1e-3)
    whole = fit(truth)
    assert (whole.ceiling, whole.p) == pytest.approx((0.738, 0.371), abs=2e-3)
    assert whole.at(32) == pytest.approx(0.738, abs=2e-3)
    early = fit({n: truth[n] for n in (1, 2, 4)})
    assert early.at(32) == pytest.approx(0.588, abs=5e-3) and early.at(32) < truth[32] - 0.2
    draw = np.random.default_rng(0)
    counts = draw.binomial(8, draw.beta(0.4, 0.8, 2000))
    found = fit_spread(counts, 8)
    assert (found.a, found.b) == pytest.approx((0.4, 0.8), rel=0.15)
    assert abs(found.at(32) - truth[32]) < 0.02 < abs(fit({n: found.at(n) for n in (1, 2, 4, 8)}).at(32) - truth[32])


def test_a_spread_of_nothing_is_survived():
    for right_, n in (([0, 0, 0], 4), ([4, 4], 4), ([2, 2, 2, 2], 4), ([1], [3])):
        found = fit_spread(right_, n)
        mean = np.sum(right_) / np.sum(np.broadcast_to(n, np.shape(right_)))
        assert found.at(1) == pytest.approx(mean, abs=0.02)
    for bad in (([], 4), ([5], 4), ([-1], 4)):
        with pytest.raises(ValueError, match="right samples"):
            fit_spread(*bad)


# --- rounds


def walked(gain, loss, questions=4000, rounds=12, seed=0):
    draw = np.random.default_rng(seed)
    state, rows = np.zeros(questions, dtype=bool), []
    for _ in range(rounds):
        u = draw.random(questions)
        state = np.where(state, u >= loss, u < gain)
        rows.append(state)
    return np.stack(rows, axis=1)


def test_rounds_that_lose_settle_below_one_and_are_told_apart():
    """gain .3, loss .1: .75 in the long run, though each wrong answer is mended in the end."""
    chain = Chain(0.3, 0.1)
    assert chain.settles == pytest.approx(0.75) and chain.at(1) == pytest.approx(0.3)
    assert chain.at(2) == pytest.approx(0.3 * 0.9 + 0.7 * 0.3) and chain.at(200) == pytest.approx(0.75)
    assert chain.at(3, start=1.0) > 0.75 > chain.at(3)
    rounds = walked(0.3, 0.1)
    found = fit_chain(rounds)
    assert (found.gain, found.loss) == pytest.approx((0.3, 0.1), abs=0.01) and not found.absorbing
    for n in (1, 4, 12):
        assert within(int(rounds[:, n - 1].sum()), chain.at(n), len(rounds))
    assert Saturation(1.0, found.gain).at(12) - rounds[:, 11].mean() > 0.2, "what absorbs foretells too much"


def test_rounds_that_keep_what_is_right_are_the_curve():
    found = fit_chain(walked(0.3, 0.0))
    assert found.absorbing and found.settles == 1.0
    assert [found.at(n) for n in range(6)] == pytest.approx([Saturation(1.0, found.gain).at(n) for n in range(6)])
    assert math.isnan(Chain(0.0, 0.0).settles) and Chain(0.0, 0.0).at(3, 0.4) == 0.4
    with pytest.raises(ValueError, match="follows a wrong one"):
        fit_chain([[True, True], [False]])


# --- a strategy


def test_best_of_n_on_questions_of_which_some_cannot_be_solved_is_the_curve():
    strategy = functools.partial(best_of_n, verify=oracle)
    for n in (1, 2, 8):
        solvable = right(repeated(strategy, n, answers({"1": 0.2, "2": 0.8}), 150))
        assert within(solvable, CURVE.at(n) / 0.6, 150)
        assert right(repeated(strategy, n, answers({"2": 1.0}), 20)) == 0
