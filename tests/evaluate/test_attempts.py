"""Verifiers that err: what more draws are worth, in closed form, on stored pools and by strategies (2411.17501)."""

import functools
import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import answers, repeated, right, within
from played import P, response, rng, scored
from scipy.stats import chi2_contingency
from toy import ended

from extratime.evaluate.statistics.attempts import (
    Kind,
    accuracy,
    attempted,
    best_attempts,
    fooled_by,
    precision_at,
    right_by,
    value,
    value_of_pools,
)
from extratime.evaluate.strategies.adaptive_best_of_n import adaptive_best_of_n
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.weighted_vote import weighted_vote

EASY, HARD = Kind(0.58, 0.87, soundness=0.75), Kind(0.42, 0.13, soundness=0.75)
MIX = (EASY, HARD)


def test_published_mix():
    assert sum(kind.prior * kind.right for kind in MIX) == pytest.approx(0.5592)
    assert right_by(MIX, math.inf) == pytest.approx(0.7162, abs=5e-5)
    ceilings = [precision_at([kind], 1) for kind in MIX]
    assert ceilings == pytest.approx([0.964, 0.374], abs=5e-4)
    ev = [value(MIX, k, wrong=-1) for k in (1, 2, 3, 5, 10)]
    assert ev == pytest.approx([0.449, 0.4724, 0.4614, 0.445, 0.434], abs=5e-4)
    assert [round(v, 4) for v in ev[1:3]] == [0.4724, 0.4614]


@pytest.mark.parametrize(("wrong", "best"), [(0, math.inf), (-0.7, 3), (-1, 2), (-2, 1), (-4, 1), (-40, 0)])
def test_the_best_number_of_attempts(wrong, best):
    assert best_attempts(MIX, wrong) == best
    if math.isfinite(best):
        curve = [value(MIX, k, wrong) for k in range(30)]
        assert curve.index(max(curve)) == best
        assert curve[best:] == sorted(curve[best:], reverse=True) and curve[: best + 1] == sorted(curve[: best + 1])


@pytest.mark.parametrize("wrong", [-0.5, -1.0, -1.5, -3.0])
def test_over_three_kinds_value_rises_to_one_peak_and_falls(wrong):
    kinds = (Kind(0.3, 0.9, 0.95, 0.9), Kind(0.4, 0.5, 0.8, 0.85), Kind(0.3, 0.05, 0.6, 0.7))
    curve = [value(kinds, k, wrong) for k in range(60)]
    best = curve.index(max(curve))
    assert best_attempts(kinds, wrong) == best and 0 < best < 20
    assert curve[: best + 1] == sorted(curve[: best + 1]) and curve[best:] == sorted(curve[best:], reverse=True)
    draw = np.random.default_rng(2)
    which = draw.choice(3, size=40_000, p=[kind.prior for kind in kinds])
    laws = np.array([(kind.accepted, kind.fooled, kind.rejected) for kind in kinds])
    worth = np.zeros(which.size)
    for _ in range(best):
        u = draw.random(which.size)
        open_ = worth == 0
        worth[open_ & (u < laws[which, 0])] = 1.0
        worth[open_ & (u >= laws[which, 0]) & (u < laws[which, :2].sum(axis=1))] = wrong
    assert abs(worth.mean() - curve[best]) <= 3 * worth.std() / 200


def test_the_posterior_decides_whether_the_next_attempt_pays():
    """Of the kinds that are left after k − 1 rejections; K* is the last attempt that pays."""
    for wrong, cost in ((-0.7, 0.0), (-1, 0.0), (0.0, 0.2), (-0.7, 0.02)):
        pays = []
        for k in range(1, 40):
            left = np.array([kind.prior * kind.rejected ** (k - 1) for kind in MIX])
            posterior = left / left.sum()
            pays.append(posterior @ [kind.accepted + wrong * kind.fooled - cost for kind in MIX] > 0)
        assert best_attempts(MIX, wrong, cost) == pays.index(False)


def test_attempts_that_cost_are_counted_as_they_are_made():
    """Two attempts of one kind: the second is made where the first was rejected."""
    kind = Kind(1.0, 0.5, completeness=0.8, soundness=0.9)
    assert (kind.accepted, kind.fooled, kind.rejected) == pytest.approx((0.4, 0.05, 0.55))
    assert value([kind], 2, -1, 0.1) == pytest.approx((0.4 - 0.05 - 0.1) * 1.55)
    assert best_attempts([kind], -1, 0.36) == 0 and best_attempts([kind], -1, 0.34) == math.inf


def test_a_verifier_at_its_edges():
    never = Kind(1.0, 0.3, completeness=0.0)
    assert best_attempts([never]) == 0 and math.isnan(precision_at([never], 1)) and right_by([never], math.inf) == 0
    assert best_attempts([never], cost=0.1) == 0 and value([never], math.inf, cost=0.1) == -math.inf
    sound = [Kind(0.5, 0.2, completeness=0.1), Kind(0.5, 0.0)]
    assert right_by(sound, math.inf) == pytest.approx(0.5), "a sound verifier finds all that can be found"
    assert right_by(sound, 5) < right_by([Kind(0.5, 0.2), Kind(0.5, 0.0)], 5), "rejecting right ones only delays"
    assert best_attempts(sound) == math.inf and fooled_by(sound, math.inf) == 0


def test_what_is_accepted_late_is_worse_over_kinds_and_not_within_one():
    falling = [precision_at(MIX, k) for k in range(1, 9)]
    assert falling == sorted(falling, reverse=True) and falling[0] - falling[-1] > 0.1
    assert falling[0] == pytest.approx(right_by(MIX, 1) / (right_by(MIX, 1) + fooled_by(MIX, 1)))
    for kind in MIX:
        assert {round(precision_at([kind], k), 12) for k in range(1, 9)} == {round(precision_at([kind], 1), 12)}


def test_within_one_kind_precision_does_not_hang_on_the_number_of_attempts():
    draw, kind = np.random.default_rng(0), Kind(1.0, 0.4, completeness=0.7, soundness=0.8)
    outcome = draw.choice(3, size=(100_000, 8), p=(kind.accepted, kind.fooled, kind.rejected))
    first = (outcome < 2).argmax(axis=1)
    found = outcome[np.arange(len(outcome)), first]
    table = [[int(((first == k) & (found == what)).sum()) for k in range(6)] for what in (0, 1)]
    assert chi2_contingency(table).pvalue > 0.01
    for k in (1, 2, 4, 8):
        hits = int(((first < k) & (found == 0)).sum())
        assert within(hits, right_by([kind], k), len(outcome))


# --- stored pools


flags = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=7)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(flags)
def test_attempts_on_a_pool_are_a_mean_over_every_order(pool):
    accepted, good = zip(*pool, strict=True)
    for k in range(1, len(pool) + 1):
        told = np.zeros(3)
        orders = list(permutations(range(len(pool))))
        for order in orders:
            at = next((i for i, j in enumerate(order[:k]) if accepted[j]), None)
            told += (0, 0, k) if at is None else (good[order[at]], not good[order[at]], at + 1)
        assert attempted(accepted, good, k) == pytest.approx(told / len(orders), abs=1e-9)


def test_values_of_pools_lead_to_the_same_number_of_attempts():
    """400 problems of the two kinds with 64 draws each: the estimate is within 3 SE, and K* is that of the law."""
    draw, pools = np.random.default_rng(1), []
    for _ in range(400):
        kind = MIX[int(draw.random() > EASY.prior)]
        good = draw.random(64) < kind.right
        pools.append((good | (draw.random(64) > kind.soundness), good))
    curves = {wrong: [value_of_pools(pools, k, wrong) for k in range(1, 11)] for wrong in (0.0, -1.0, -2.0)}
    for wrong, curve in curves.items():
        for k, each in enumerate(curve, 1):
            assert abs(each.mean() - value(MIX, k, wrong)) <= 3 * each.std() / 20
    best = {wrong: 1 + int(np.argmax([each.mean() for each in curve])) for wrong, curve in curves.items()}
    assert best[-2.0] == 1 < best[-1.0] <= 3 < best[0.0] == 10


def test_a_verifier_that_grades_itself_never_errs():
    """Scored by its own verdicts accuracy only climbs; by a stronger check it stays below a ceiling."""
    accepted, good = [True, True, False, False], [True, False, True, False]
    own, true = ([attempted(accepted, by, k)[0] for k in range(1, 5)] for by in (accepted, good))
    assert own[-1] == 1.0 and max(true) == 0.5
    with pytest.raises(ValueError, match="2 verdicts for 1 draws"):
        attempted([True, False], [True], 1)
    with pytest.raises(ValueError, match=r"k=3 is outside 1\.\.2"):
        attempted([True, False], [True, False], 3)


# --- strategies

RIGHT, SAID_YES = 0.3, {"yes": (0.9, 0.2), "coin": (0.5, 0.5), "inverted": (0.2, 0.9)}


def judged(completeness, alarm):
    """Draws that say whether the verifier will accept them: "y" or "n" before the answer."""
    law = {}
    for answer, p, yes in (("1", RIGHT, completeness), ("2", 0.5, alarm), ("3", 0.2, alarm)):
        law |= {f"y={answer}": p * yes, f"n={answer}": p * (1 - yes)}
    return lambda prompt, text: {"": 1.0} if text else law


def says_yes(problem, responses):
    yield from ()
    return [float(r.text.startswith("y")) for r in responses]


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("said", SAID_YES.values(), ids=list(SAID_YES))
@pytest.mark.parametrize(
    "strategy", [best_of_n, functools.partial(adaptive_best_of_n, schedule=None, threshold=1.0)], ids=["all", "stop"]
)
def test_the_best_of_n_by_a_verifier_that_errs_has_its_law(strategy, said, n):
    completeness, alarm = said
    kind = Kind(1.0, RIGHT, completeness, 1 - alarm)
    results = repeated(functools.partial(strategy, verify=says_yes), n, judged(completeness, alarm), 150)
    exact = accuracy([kind], n)
    assert within(right(results), exact, 150)
    q = kind.accepted + kind.fooled
    by_hand = (1 - (1 - q) ** n) * kind.accepted / q + (1 - q) ** n * (1 - completeness) * RIGHT / (1 - q)
    assert exact == pytest.approx(by_hand) and abs(accuracy([kind], 400) - kind.accepted / q) < 1e-9
    if completeness == alarm:
        assert exact == pytest.approx(RIGHT), "a verifier that knows nothing adds nothing"


def test_more_draws_cannot_pass_the_precision_of_the_verifier():
    """A weak sampler stays below a strong one's single draw, whatever it spends."""
    weak = Kind(1.0, 0.2, completeness=1.0, soundness=0.7)
    curve = [accuracy([weak], n) for n in (1, 2, 4, 8, 16, 64, 1024)]
    assert curve == sorted(curve) and curve[-1] == pytest.approx(0.2 / 0.44) and curve[-1] < 0.6
    for n, expected in ((1, curve[0]), (16, curve[4])):
        law = answers({"1": 0.2, "2": 0.8 * 0.3, "3": 0.8 * 0.7})
        verify = scored(lambda text: float(ended(text) in "12"))
        assert within(right(repeated(functools.partial(best_of_n, verify=verify), n, law)), expected)


def test_a_verifier_that_errs_on_an_answer_errs_on_every_draw_of_it():
    """Errors that draws of an answer share: a vote weighed by verdicts keeps the accepted answer of the most draws."""
    law, verify = answers({"1": 0.25, "2": 0.35, "3": 0.4}), scored(lambda text: float(ended(text) in "12"))
    alone = [right(repeated(functools.partial(s, verify=verify), 24, law, 150)) for s in (best_of_n, weighted_vote)]
    exact = accuracy([Kind(1.0, 0.25, soundness=1 - 0.35 / 0.75)], 24)
    assert exact == pytest.approx(0.25 / 0.6) and within(alone[0], exact, 150)
    assert within(alone[1], twos_behind(24, 0.25, 0.35), 150) and alone[1] < alone[0]


def twos_behind(n, one, two):
    """P(more draws say "1" than "2", or as many and "1" said first)."""
    total = 0.0
    for i in range(n + 1):
        for j in range(n + 1 - i):
            ways = math.comb(n, i) * math.comb(n - i, j) * one**i * two**j * (1 - one - two) ** (n - i - j)
            total += ways * (1.0 if i > j else 0.5 if i == j > 0 else 0.0)
    return total


@pytest.mark.parametrize("finish", ["length", "failed"])
def test_a_draw_that_never_ended_is_no_reason_to_stop(finish):
    """A verifier that likes an unfinished response; the budget is not given up for it."""
    draws = iter([response("1", finish), response("2=1"), response("3=1")])
    program = adaptive_best_of_n(P, 3, rng(), scored({"1": 0.95, "2=1": 0.5, "3=1": 0.9}), 0.9, None)
    request, asked = next(program), 0
    with pytest.raises(StopIteration) as stop:
        while request:
            asked += 1
            request = program.send([next(draws)])
    assert asked == 3 and stop.value.value.response.text == "3=1"
