"""Where solving and verifying overtakes a vote, and how its budget is best split: laws, and simulated populations."""

import math

import numpy as np
import pytest
from scipy.stats import beta, binom

from extratime.evaluate.statistics.at_k import best_of_k, maj_at_k, pass_at_k
from extratime.evaluate.statistics.attempts import Kind, accuracy
from extratime.evaluate.statistics.crossover import (
    Cells,
    Frontier,
    best_splits,
    crossover,
    gain_at,
    growth,
    multiplier_interval,
)


def test_a_frontier_by_hand():
    line = Frontier([4, 1, 2, 2, 8], [0.5, 0.2, 0.3, 0.4, 0.45])
    assert (line.at(1), line.at(2), line.at(4), line.at(8), line.at(100)) == (0.2, 0.4, 0.5, 0.5, 0.5)
    assert line.at(math.sqrt(2)) == pytest.approx(0.3) and math.isnan(line.at(0.9)) and math.isnan(line.at(0))
    assert line.reaches(0.1) == 1 and line.reaches(0.2) == 1 and line.reaches(0.4) == pytest.approx(2)
    assert line.reaches(0.45) == pytest.approx(2 * math.sqrt(2)) and line.reaches(0.51) == math.inf
    for cost, told in (([1, 2], [0.1]), ([0], [0.1]), ([], [])):
        with pytest.raises(ValueError, match=r"costs, all above 0|cost: need"):
            Frontier(cost, told)


def test_a_crossover_by_hand():
    """The vote is at .60 from 4 on but for half a point; the other is as good at 32, and at .64 in the end."""
    vote = Frontier([1, 2, 4, 8, 16], [0.4, 0.5, 0.596, 0.6, 0.6])
    other = Frontier([2, 8, 16, 64, 128], [0.4, 0.5, 0.58, 0.62, 0.64])
    met = crossover(vote, other)
    assert met.plateau == 0.6 and met.matches == pytest.approx(32)
    assert met.saturates == pytest.approx(2 ** (1 + (0.595 - 0.5) / 0.096)) and met.saturates < 4
    assert met.multiplier == pytest.approx(32 / met.saturates)
    assert gain_at(vote, other, 128 / met.saturates) == pytest.approx(0.04)
    assert gain_at(vote, other, 1000) == pytest.approx(0.04) and math.isnan(gain_at(vote, other, 0.1))
    assert crossover(vote, vote).multiplier >= 1 and crossover(other, vote).multiplier == math.inf


def test_intervals_resample_questions():
    draw = np.random.default_rng(0)
    p = draw.beta(2, 2, 60)
    costs = np.array([1.0, 2.0, 4.0, 8.0])[:, None] * np.ones(60)
    vote = Cells(costs, np.array([np.minimum(p + x, 1) for x in (0.0, 0.1, 0.2, 0.2)]))
    late = Cells(costs * 4, vote.right)
    exact = crossover(vote.frontier(np.ones(60)), late.frontier(np.ones(60))).multiplier
    low, high = multiplier_interval(vote, late, np.random.default_rng(1), 200)
    assert 4 <= low <= exact <= high < 5
    never = Cells(costs, vote.right * 0.5)
    assert multiplier_interval(vote, never, np.random.default_rng(1), 50) == (math.inf, math.inf)
    with pytest.raises(ValueError, match="both need the same"):
        multiplier_interval(vote, Cells(costs[:, :5], vote.right[:, :5]), np.random.default_rng(1), 50)


# --- the law of the best split

S, V = (1, 2, 4, 8, 16, 32, 64, 128, 256), (1, 2, 4, 8, 16, 32, 64)


def planted(x, y, weight=1.0):
    """Errors of S^−x + weight·V^−y: the best split of C = λSV has S ∝ C^(y/(x+y)) and V ∝ C^(x/(x+y))."""
    return {(s, v): 1 - 0.3 * (s**-x + weight * v**-y) for s in S for v in V}


@pytest.mark.parametrize(("x", "y"), [(0.4, 0.6), (0.6, 0.6), (0.35, 0.8)])
@pytest.mark.parametrize("relative_cost", [1.0, 2.0])
def test_a_planted_law_is_found(x, y, relative_cost):
    found = growth(planted(x, y), relative_cost)
    costs = np.array([c for c, _, _ in found.splits])
    best = [exact_split(x, y, relative_cost, c) for c in costs]
    assert found.a == pytest.approx(np.polyfit(np.log(costs), np.log(best), 1)[0], abs=0.04)
    assert 0.8 <= found.a + found.b <= 1.25 and min(found.fit_s, found.fit_v) > 0.8
    assert found.a == pytest.approx(y / (x + y), abs=0.1) and found.b == pytest.approx(x / (x + y), abs=0.1)
    for c, s, v in found.splits:
        assert s * (1 + relative_cost * v) == pytest.approx(c)
        assert found.factor_s * c**found.a == pytest.approx(s, rel=0.6)


def exact_split(x, y, relative_cost, budget):
    """S of the least error, any number allowed."""
    s = np.geomspace(1, budget / (1 + relative_cost * 0.5), 20_000)
    return s[np.argmin(s**-x + ((budget / s - 1) / relative_cost) ** -y)]


def test_best_splits_whose_neighbours_were_not_measured_are_left_out():
    """With 16 verifications at most a large budget goes into solutions, on this grid alone."""
    narrow = {key: value for key, value in planted(0.5, 0.5).items() if key[1] <= 16}
    splits = best_splits(narrow, 1.0)
    assert len(splits) >= 3 and all(c <= s / 2 * 17 and c >= 2 * s * 2 for c, s, _ in splits)
    assert all(s == pytest.approx(exact_split(0.5, 0.5, 1.0, c), rel=0.45) for c, s, _ in splits)
    beyond = 128 * 17.0
    assert min(s for s in S if s * 17 >= beyond) == 128 > 2.5 * exact_split(0.5, 0.5, 1.0, beyond)
    assert max(c for c, _, _ in splits) < beyond
    with pytest.raises(ValueError, match="a law needs three"):
        growth({(s, 1): 0.5 for s in S}, 1.0)


# --- populations: a vote against verdicts that err

TPR, FPR, COST = 0.85, 0.25, 2.0
CHANCES = beta.ppf((np.arange(24) + 0.5) / 24, 3, 2.5)
"""P(right) of one solution by question; the wrong ones give two answers, 3 : 2."""
SOLUTIONS = (1, 2, 4, 8, 16, 32, 64)


def voted(n, draws=2000):
    """Accuracy of a vote of n."""
    draw = np.random.default_rng(n)
    laws = np.stack([CHANCES, 0.6 * (1 - CHANCES), 0.4 * (1 - CHANCES)], axis=1)
    counts = draw.multinomial(n, laws, size=(draws, len(CHANCES)))
    top = counts.max(axis=-1, keepdims=True)
    return float(((counts[..., 0] == top[..., 0]) / (counts == top).sum(axis=-1)).mean())


def independent(p, s, v, tpr=TPR, fpr=FPR):
    """Best of s by v verdicts, each wrong by itself; ties at random."""
    good, bad = (binom.pmf(range(v + 1), v, q) for q in (tpr, fpr))
    below = np.concatenate([[0.0], np.cumsum(p * good + (1 - p) * bad)])
    mixed = p * good + (1 - p) * bad
    highest = below[1:] ** s - below[:-1] ** s
    return float(sum(p * g / m * top for g, m, top in zip(good, mixed, highest, strict=True) if m))


def shared(p, s, v):
    """The verifier is right or wrong about an answer of a question once and for all, whatever v."""
    total = 0.0
    for yes in np.ndindex(2, 2, 2):
        chance = math.prod((q if y else 1 - q) for y, q in zip(yes, (TPR, FPR, FPR), strict=True))
        fooled = 0.6 * yes[1] + 0.4 * yes[2]
        total += chance * accuracy([Kind(1.0, p, float(yes[0]), 1 - fooled)], s)
    return total


def verified(law, votes=(1, 2, 4, 8, 16, 32), **errors):
    """The frontier of S and V, at C = S·(1 + λV)."""
    cells = [
        (s * (1 + COST * v), np.mean([law(p, s, v, **errors) for p in CHANCES])) for s in SOLUTIONS for v in votes
    ]
    return Frontier(*zip(*cells, strict=True))


@pytest.fixture(scope="module")
def vote():
    return Frontier(SOLUTIONS, [voted(n) for n in SOLUTIONS])


def test_a_verifier_that_knows_matches_the_vote_at_once_and_one_that_guesses_never(vote):
    knows = crossover(vote, verified(independent, tpr=1.0, fpr=0.0))
    guesses = crossover(vote, verified(independent, tpr=0.5, fpr=0.5))
    assert knows.multiplier <= 1 and guesses.multiplier == math.inf
    assert gain_at(vote, verified(independent, tpr=1.0, fpr=0.0), 4) > 0.1


def test_errors_that_answers_share_move_the_crossover(vote):
    """Verdicts that err each by itself win below the budget of the vote, as no published ones do; shared ones cap."""
    alone, together = verified(independent), verified(shared)
    assert together.accuracy[-1] < 0.8 < 0.95 < alone.accuracy[-1]
    here, there = crossover(vote, alone), crossover(vote, together)
    assert here.multiplier < 0.5 and there.multiplier > 1
    assert vote.at(2) > 0 and math.isnan(alone.at(2)), "below 1 + λ nothing is verified"
    for cost in (3, 4, 1 + 2 * COST):
        assert vote.at(cost) > alone.at(cost) and vote.at(cost) > together.at(cost)


def test_best_splits_of_a_population_follow_a_law():
    """Verdicts that err each by itself: solutions and verifications both grow, a + b near 1."""
    grid = {(s, v): float(np.mean([independent(p, s, v) for p in CHANCES])) for s in S for v in V}
    found = growth(grid, COST)
    assert found.a > 0 and found.b > 0 and 0.8 <= found.a + found.b <= 1.25
    assert min(found.fit_s, found.fit_v) >= 0.8


def test_estimators_meet_at_one():
    """One solution is neither voted on nor ranked: SC(1) = BoN(1) = pass@1."""
    right, scores = [1, 0, 0, 1, 0], [0.5, 0.5, 0.1, None, 0.9]
    assert best_of_k(right, scores, 1) == pytest.approx(0.4)
    assert maj_at_k(2, [2, 1], 0, 1) == pytest.approx(0.4) == pass_at_k(5, 2, 1)
