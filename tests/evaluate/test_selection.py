"""Who is chosen out of a pool whose scores tell so much of right and wrong: closed forms (arXiv 2502.07191)."""

import math

import numpy as np
import pytest
from laws import pooled, within
from played import P, response, rng
from scipy.integrate import quad
from scipy.stats import norm

from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.strategies.weighted_vote import weighted_vote

RIGHT, POOLS = 0.4, 10_000
LAW = (RIGHT, 0.3, 0.3)
SAID = [response(f"={answer}") for answer in (1, 2, 3)]


def drawn(n, d):
    """Pools of `n` answers, and scores d·(the answer is right) + Normal(0, 1)."""
    draw = rng()
    answers = draw.choice(3, size=(POOLS, n), p=LAW)
    return answers, d * (answers == 0) + draw.normal(size=(POOLS, n))


def elected(strategy, answers, scores=None):
    """What a strategy answers to each pool."""
    if scores is None:
        return [pooled(strategy(P, len(row), None), [SAID[a] for a in row]).response for row in answers]
    programs = (strategy(P, len(row), None, known(told)) for row, told in zip(answers, scores, strict=True))
    return [pooled(program, [SAID[a] for a in row]).response for program, row in zip(programs, answers, strict=True)]


def known(scores):
    def verify(problem, responses):
        yield from ()
        return list(scores)

    return verify


def hits(found):
    return sum(r is SAID[0] for r in found)


def best_law(n, d):
    """∫ n·p·φ(s − d)·[p·Φ(s − d) + (1 − p)·Φ(s)]ⁿ⁻¹ ds."""
    rest = 1 - RIGHT
    return quad(
        lambda s: n * RIGHT * norm.pdf(s - d) * (RIGHT * norm.cdf(s - d) + rest * norm.cdf(s)) ** (n - 1), -9, 12
    )[0]


def majority_law(n):
    """Of the three answers, a tie counted as a share."""
    total = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            c = n - a - b
            if a == max(a, b, c):
                ways = math.comb(n, a) * math.comb(n - a, b)
                total += ways * LAW[0] ** a * LAW[1] ** b * LAW[2] ** c / [a, b, c].count(a)
    return total


BEST = {0: {1: 0.4, 4: 0.4, 16: 0.4}, 1: {1: 0.4, 4: 0.638, 16: 0.797}, 2: {1: 0.4, 4: 0.793, 16: 0.968}}
MAJORITY = {1: 0.400, 4: 0.438, 16: 0.541, 32: 0.624}
"""Accuracy by how well scores tell right from wrong and by N; of a majority by N."""


@pytest.mark.parametrize(("d", "n"), [(d, n) for d in BEST for n in BEST[d]])
def test_the_best_of_n_is_as_good_as_its_scores(d, n):
    exact = best_law(n, d)
    assert exact == pytest.approx(BEST[d][n], abs=6e-4)
    assert within(hits(elected(best_of_n, *drawn(n, d))), exact, POOLS)


@pytest.mark.parametrize("n", MAJORITY)
def test_a_majority_of_three_answers_has_its_law_and_ties_are_fair(n):
    """The tie goes to the answer that was drawn first, which is as likely to be any of those tied."""
    exact = majority_law(n)
    assert exact == pytest.approx(MAJORITY[n], abs=6e-4)
    assert within(hits(elected(self_consistency, drawn(n, 0)[0])), exact, POOLS)
    if n in BEST[0] and n > 1:
        assert BEST[0][n] < MAJORITY[n] < BEST[1][n], "it beats scores that tell nothing, not those that tell a little"


@pytest.mark.parametrize("d", [0, 1, 2])
def test_a_weighted_vote_adds_up_the_scores_of_each_answer(d):
    """Against sums that are taken here anew, pool by pool; scores in [0, 1] as of a reward model."""
    answers, scores = drawn(4, d)
    scores = norm.cdf(scores)
    sums = np.stack([(scores * (answers == a)).sum(axis=1) for a in range(3)])
    found = elected(weighted_vote, answers, scores)
    assert [SAID.index(r) for r in found] == sums.argmax(axis=0).tolist()
    if d:
        assert hits(found) > hits(elected(self_consistency, answers)) + 0.1 * POOLS


@pytest.mark.parametrize("score", [0.7, 0.0, 1.0, -3.0, 50.0])
def test_equal_scores_make_a_weighted_vote_the_majority(score):
    answers = drawn(7, 0)[0][:500]
    assert elected(weighted_vote, answers, np.full(answers.shape, score)) == elected(self_consistency, answers)
