"""Right answers from wrong work: what they add, by which estimators it is seen, and which choices keep them."""

import functools
import math
from itertools import combinations

import numpy as np
import pytest
from laws import repeated, right, within
from scipy.stats import beta, binom

from extratime.evaluate.statistics.at_k import pass_at_k
from extratime.evaluate.statistics.false_positives import (
    corrected_rate,
    false_positive_rate,
    guessed,
    inflation,
    true_pass_at_k,
)
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.self_consistency import self_consistency

VALID, LUCKY = 0.2, 0.1
GAPS = {2: 0.150, 3: 0.169, 4: 0.1695, 5: 0.1596, 8: 0.1101}


def said(k):
    return 1 - (1 - VALID - LUCKY) ** k


def true(k):
    return 1 - (1 - VALID) ** k


def test_what_luck_adds_to_pass_at_k_is_greatest_at_four():
    assert [round(said(k), 4) for k in (1, 4, 16)] == [0.3, 0.7599, 0.9967]
    assert [round(true(k), 4) for k in (1, 4, 16)] == [0.2, 0.5904, 0.9719]
    gaps = {k: said(k) - true(k) for k in range(1, 33)}
    assert {k: gaps[k] for k in GAPS} == pytest.approx(GAPS, abs=5e-5)
    top = max(gaps, key=gaps.get)
    values = list(gaps.values())
    assert top == 4 and values[:4] == sorted(values[:4]) and values[3:] == sorted(values[3:], reverse=True)


def drawn(questions=400, n=32, seed=0):
    """(accepted, valid) counts of each question."""
    outcome = np.random.default_rng(seed).choice(3, size=(questions, n), p=(VALID, LUCKY, 1 - VALID - LUCKY))
    return (outcome < 2).sum(axis=1), (outcome == 0).sum(axis=1)


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_reviewed_pools_tell_both_curves_and_their_gap(k):
    """All accepted draws reviewed, and a random part of them (4 at most)."""
    accepted, valid = drawn()
    draw = np.random.default_rng(1)
    whole = np.array([true_pass_at_k(32, c, c, c - v, k) for c, v in zip(accepted, valid, strict=True)])
    part = []
    for c, v in zip(accepted.tolist(), valid.tolist(), strict=True):
        m = min(4, c)
        part.append(true_pass_at_k(32, c, m, int(draw.hypergeometric(c - v, v, m)) if m else 0, k))
    told = np.array([pass_at_k(32, int(c), k) for c in accepted])
    assert abs(told.mean() - said(k)) <= 3 * told.std() / 20
    assert abs(whole.mean() - true(k)) <= 3 * whole.std() / 20
    assert (whole <= told + 1e-12).all()
    gap = np.array([inflation(32, int(c), int(c), int(c - v), k) for c, v in zip(accepted, valid, strict=True)])
    assert gap == pytest.approx(told - whole) and abs(gap.mean() - said(k) + true(k)) <= 3 * gap.std() / 20
    assert np.mean(part) < told.mean() and abs(np.mean(part) - true(k)) < 0.08, "shrunk towards a uniform prior"


@pytest.mark.parametrize(
    ("n", "accepted", "reviewed", "false"), [(8, 5, 2, 1), (6, 6, 3, 0), (5, 2, 0, 0), (7, 4, 4, 3)]
)
def test_what_was_not_reviewed_is_valid_by_the_posterior(n, accepted, reviewed, false):
    """Against an integral over the share that is valid, and every subset of k draws; a rounded count would be off."""
    left, valid = accepted - reviewed, reviewed - false
    shares = (np.arange(20_000) + 0.5) / 20_000
    odds = beta.pdf(shares, valid + 1, false + 1) / 20_000
    for k in range(1, n + 1):
        chance = 0.0
        for more in range(left + 1):
            hits = [any(i < valid + more for i in subset) for subset in combinations(range(n), k)]
            chance += float(odds @ binom.pmf(more, left, shares)) * np.mean(hits)
        assert true_pass_at_k(n, accepted, reviewed, false, k) == pytest.approx(chance, abs=1e-6)
    mean = valid + left * (valid + 1) / (reviewed + 2)
    if left and abs(mean - round(mean)) > 0.1:
        assert abs(true_pass_at_k(n, accepted, reviewed, false, 1) - round(mean) / n) > 0.01


def test_where_nothing_is_accepted_there_is_no_rate_and_no_pass():
    assert math.isnan(false_positive_rate(0, 0)) and false_positive_rate(8, 2) == 0.25
    assert true_pass_at_k(4, 0, 0, 0, 2) == 0.0
    for counts in ((4, 5, 0, 0), (4, 3, 4, 0), (4, 3, 2, 3), (4, 3, 2, -1)):
        with pytest.raises(ValueError, match="each must be part of the next"):
            true_pass_at_k(*counts, 1)


def test_a_detector_that_errs_is_corrected():
    flagged = 0.25 * 0.6 + 0.75 * (1 - 0.8)
    assert flagged == pytest.approx(0.30) and corrected_rate(flagged, 0.6, 0.8) == pytest.approx(0.25)
    assert corrected_rate(0.1, 0.6, 0.8) == 0.0 and corrected_rate(0.9, 0.6, 0.8) == 1.0
    assert math.isnan(corrected_rate(0.3, 0.4, 0.6)) and math.isnan(corrected_rate(0.3, 0.3, 0.6))
    with pytest.raises(ValueError, match="must lie in"):
        corrected_rate(1.2, 0.6, 0.8)


def test_guesses_alone_pass():
    assert guessed(1, 0.25) == pytest.approx(0.25) and guessed(8, 0.25) == pytest.approx(0.8999, abs=5e-5)


# --- choices do not lower the rate

LAW = {"v=1": 0.3, "l=1": 0.15, "w=2": 0.35, "w=3": 0.2}
"""Valid work, lucky work, and two wrong answers."""


def working(prompt, text):
    return {"": 1.0} if text else LAW


def by_answer(problem, responses):
    """An outcome reward: it sees the answer and not the work."""
    yield from ()
    return [float(r.text.endswith("=1")) for r in responses]


def by_work(problem, responses):
    yield from ()
    return [float(r.text.startswith("v")) for r in responses]


@pytest.mark.parametrize(
    "strategy", [self_consistency, functools.partial(best_of_n, verify=by_answer)], ids=["vote", "reward"]
)
def test_neither_a_vote_nor_an_outcome_reward_lowers_the_rate(strategy):
    """Of right answers a third has wrong work, at any budget; a step check alone finds the others."""
    for n in (1, 8):
        results = [r for r in repeated(strategy, n, working, 200) if r.answer.response.text.endswith("=1")]
        lucky = sum(r.answer.response.text.startswith("l") for r in results)
        assert within(lucky, 1 / 3, len(results)), n
    checked = repeated(functools.partial(best_of_n, verify=by_work), 8, working, 200)
    assert within(sum(r.answer.response.text.startswith("v") for r in checked), 1 - 0.7**8, 200)
    assert right(checked) - sum(r.answer.response.text.startswith("v") for r in checked) <= 200 * 0.7**8 * 3
