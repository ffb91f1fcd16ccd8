"""Solutions and verifications out of one budget: how it is split, what it costs, and how often it is right."""

import functools
import itertools
import math
import re

import numpy as np
import pytest
from laws import right, within
from played import P, rng, saying, scored, steps
from scipy.stats import binom
from toy import ToyEngine, problem, run

from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.solve_then_verify import allocation, solve_then_verify
from extratime.evaluate.verifiers.generative import generative
from extratime.models.judge import Judge


@pytest.mark.parametrize(
    ("budget", "cost", "votes", "found"),
    [
        (1, 1, None, (1, 0)),
        (3, 1, None, (3, 0)),
        (4, 1, None, (2, 1)),
        (16, 1, None, (4, 3)),
        (64, 1, None, (10, 5)),
        (256, 2, None, (13, 9)),
        (16, 2, 1, (5, 1)),
        (16, 1, 32, (2, 7)),
        (16, 0, 32, (16, 32)),
        (11, 0.1, 1, (10, 1)),
        (16, 1, 0, (16, 0)),
    ],
)
def test_solutions_and_verifications_out_of_one_budget(budget, cost, votes, found):
    n, v = allocation(budget, cost, votes)
    assert (n, v) == found and n * (1 + cost * v) <= budget + 1e-6


def test_a_negative_cost_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        allocation(4, -1)


def verifying(prompt, text):
    """One of many solutions, right with probability 0.3; a rationale of three tokens before each verdict."""
    if prompt.startswith("Judge "):
        return {"h": 1.0} if len(text) < 2 else {Judge().opener: 1.0}
    if text:
        return {"": 1.0}
    return {f"{i}={a}": p / 1000 for i in range(1000) for a, p in (("1", 0.3), ("2", 0.5), ("3", 0.2))}


def verified(budget, n=250, **options):
    def yes(said, adapter):
        return 0.9 if re.search(r"=1\b", said.prompt.text) else 0.2

    return judged(ToyEngine(verifying, slots=64, yes=yes), budget, n, **options)


def judged(engine, budget, n=250, **options):
    strategy = functools.partial(solve_then_verify, **options)
    cells = [Cell(f"{i}", problem(max_tokens=4), strategy, budget, replicate=i) for i in range(n)]
    return run(engine, cells)


def test_counted_tokens_are_those_of_the_cost_law():
    """T_S = 2 and T_V = 3, so λ = 1.5: tokens are T_S·S(1 + λV), where no two solutions are equal."""
    for budget in (1, 4, 16, 40):
        n, v = allocation(budget, 1.5)
        for result in verified(budget, n=20, relative_cost=1.5):
            distinct = len({r.text for r in result.answer.pool})
            assert len(result.answer.pool) == n and result.cost.generated == 2 * n
            assert result.cost.judged == 3 * v * distinct and distinct >= n - 2
            assert result.cost.decoded <= 2 * budget


def test_a_verifier_that_knows_makes_accuracy_pass_at_s_and_without_one_it_is_the_majority():
    assert allocation(8, 1.5, 2) == (2, 2)
    for select in ("best", "vote"):
        assert within(right(verified(8, relative_cost=1.5, votes=2, select=select)), 1 - 0.7**2)
    assert allocation(3, 1.5, 2) == (3, 0)
    majority = 0.3**3 + 3 * 0.3**2 * 0.7 + 0.3 * 2 * 0.5 * 0.2  # a tie of three goes to the first
    assert within(right(verified(3, relative_cost=1.5, votes=2)), majority)


def test_solutions_without_an_answer_never_win_and_other_verifiers_are_asked_once():
    verify = scored({"a": 0.9, "b=1": 0.2, "c=2": 0.3})
    answer = steps(solve_then_verify(P, 12, rng(), verify, votes=3), saying("a", "b=1", "c=2"))[1]
    assert answer.response.text == "c=2" and answer.weights == (-math.inf, 0.2, 0.3) and len(verify.asked) == 1


# --- verdicts that err

ANSWERS = {"1": 0.3, "2": 0.5, "3": 0.2}


def erring(sensitivity, alarm):
    """Solutions as no two are alike, and a judge that says "Yes" to a right one and to a wrong one so often."""

    def law(prompt, text):
        if not prompt.startswith("Judge "):
            return verifying(prompt, text)
        if not text:
            return {Judge().opener: 1.0}
        yes = sensitivity if re.search(r"=1\b", prompt) else alarm
        return {" Yes": yes, " No": 1 - yes} if text.endswith(Judge().opener) else {"": 1.0}

    return ToyEngine(law, slots=64)


def best_law(s, v, sensitivity, alarm, p=ANSWERS["1"]):
    """Accuracy of the best of `s` solutions by `v` verdicts each; a tie goes to any of those tied."""
    good, bad = (binom.pmf(range(v + 1), v, q) for q in (sensitivity, alarm))
    mixed = p * good + (1 - p) * bad
    below = np.concatenate([[0.0], np.cumsum(mixed)])
    highest = below[1:] ** s - below[:-1] ** s
    return float(sum(p * g / m * top for g, m, top in zip(good, mixed, highest, strict=True) if m))


def vote_law(s, v, sensitivity, alarm):
    """Accuracy where solutions vote with their share of "Yes", by summing over all rows; without any each is one."""
    outcomes = {
        (answer, yes): p * binom.pmf(yes, v, sensitivity if answer == "1" else alarm)
        for answer, p in ANSWERS.items()
        for yes in range(v + 1)
    }
    total = 0.0
    for row in itertools.product(outcomes, repeat=s):
        plain = not any(yes for _, yes in row)
        sums = {}
        for answer, yes in row:
            sums[answer] = sums.get(answer, 0) + (1 if plain else yes)
        total += math.prod(outcomes[one] for one in row) * (max(sums, key=sums.get) == "1")
    return total


CASES = [
    (4, 2, 0.85, 0.25),
    (3, 1, 0.5, 0.5),
    (3, 1, 1.0, 0.0),
    pytest.param(4, 4, 0.85, 0.25, marks=pytest.mark.slow),
    pytest.param(4, 2, 0.25, 0.85, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("s", "v", "sensitivity", "alarm"), CASES)
def test_the_best_solution_by_verdicts_that_err_has_its_law(s, v, sensitivity, alarm):
    """A verification costs two solutions: C = S·(1 + 2V)."""
    budget = s * (1 + 2 * v)
    assert allocation(budget, 2, v) == (s, v)
    exact = best_law(s, v, sensitivity, alarm)
    verify = functools.partial(generative, soft=False)
    results = judged(erring(sensitivity, alarm), budget, 150, verify=verify, relative_cost=2, votes=v)
    assert within(right(results), exact, 150)
    if sensitivity == alarm:
        assert exact == pytest.approx(0.3), "verdicts that know nothing choose at random"
    if alarm == 0:
        assert exact == pytest.approx(1 - 0.7**s), "verdicts that know all reach pass@S"


def test_votes_by_verdicts_that_err_have_their_law():
    verify = functools.partial(generative, soft=False)
    results = judged(erring(0.85, 0.25), 20, 150, verify=verify, relative_cost=2, votes=2, select="vote")
    assert within(right(results), vote_law(4, 2, 0.85, 0.25), 150)


def test_more_verdicts_never_hurt_where_errors_are_independent():
    chances = [best_law(8, v, 0.85, 0.25) for v in (1, 2, 4, 8, 16)]
    assert chances == sorted(chances) and chances[3] >= chances[0] + 0.02
    assert chances[-1] <= 1 - 0.7**8


def test_below_two_verified_solutions_the_majority_answers():
    """At λ = 2 no two solutions can be verified below C = 6: nothing is, and the judge is never asked."""
    for budget in range(1, 6):
        assert allocation(budget, 2) == (budget, 0)
    assert allocation(6, 2) == (2, 1)
    engine = erring(0.0, 1.0)  # a judge that would always be wrong
    for result in judged(engine, 5, 20, relative_cost=2):
        assert result.cost.judged == 0 and result.answer.why == "majority of 5 solutions, none verified"


@pytest.mark.parametrize(("exponent", "most"), [(0.39, 0.57), (0.32, 0.75)])
def test_solutions_grow_faster_than_verifications(exponent, most):
    """S ∝ C^a and V ∝ C^b with a + b near 1; published a is 0.57 beside b = 0.39, and 0.75 beside 0.32."""
    budgets = [2**i for i in range(8, 25)]
    s, v = np.array([allocation(c, 2, exponent=exponent) for c in budgets]).T
    a, b = (np.polyfit(np.log(budgets), np.log(x), 1)[0] for x in (s, v))
    assert b == pytest.approx(exponent, abs=0.02) and a == pytest.approx(1 - exponent, abs=0.02)
    assert a > b and 0.8 <= a + b <= 1.25 and a == pytest.approx(most, abs=0.1)
