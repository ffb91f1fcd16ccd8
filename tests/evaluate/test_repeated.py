"""When to stop drawing votes, and who votes by length: adaptive, early-stopping, first and last finish."""

import functools
import math
from collections import Counter

import numpy as np
import pytest
from laws import answers, elected, outcomes, pooled, repeated, right, within
from played import P, response, rng
from scipy.integrate import quad
from scipy.stats import norm
from toy import p_value, told

from extratime.evaluate.algorithms.vote import beta_confidence, dirichlet_confidence
from extratime.evaluate.strategies.adaptive_consistency import adaptive_consistency
from extratime.evaluate.strategies.early_stopping_consistency import early_stopping_consistency
from extratime.evaluate.strategies.first_finish import first_finish
from extratime.evaluate.strategies.last_finish import last_finish
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.models.request import Sample

THREE = {"1": 0.5, "2": 0.3, "3": 0.2}


def fed(program, texts):
    """Feed a program that only samples with responses of given texts: sizes of its requests, and what it returned."""
    texts, asked = iter(texts), []
    request = next(program)
    while True:
        assert isinstance(request, Sample) and not request.along
        asked.append(request.n)
        try:
            request = program.send([response(next(texts)) for _ in range(request.n)])
        except StopIteration as stop:
            return asked, stop.value


# --- adaptive consistency


def coin(a, b):
    """P(Beta(a + 1, b + 1) > ½) for whole numbers: at most a heads in a + b + 1 throws of a fair coin."""
    return sum(math.comb(a + b + 1, i) for i in range(a + 1)) / 2 ** (a + b + 1)


@pytest.mark.parametrize("counts", [(1,), (4,), (3, 1), (1, 3), (5, 5), (0, 0), (12, 4, 4, 1), (2, 7, 1)])
def test_beta_confidence_is_the_law_of_a_coin(counts):
    first, second = sorted([*counts, 0], reverse=True)[:2]
    assert beta_confidence(counts) == pytest.approx(coin(first, second), abs=1e-12)


def test_before_any_vote_nothing_leads():
    assert [beta_confidence([]), dirichlet_confidence([])] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("counts", [(1,), (6,), (3, 1), (2, 2), (30, 12)])
def test_of_two_answers_dirichlet_is_beta(counts):
    assert dirichlet_confidence(counts) == pytest.approx(beta_confidence(counts), abs=1e-9)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 9])
def test_dirichlet_confidence_by_hand(n):
    """Leader n votes, two rivals none: a Gamma(n + 1) above both of two exponentials, by inclusion and exclusion."""
    assert dirichlet_confidence((0, n, 0)) == pytest.approx(1 - 2 / 2 ** (n + 1) + 1 / 3 ** (n + 1), abs=1e-9)


@pytest.mark.parametrize("k", [2, 3, 5, 20])
def test_equal_answers_lead_equally(k):
    assert dirichlet_confidence([3] * k) == pytest.approx(1 / k, abs=1e-9)


def test_dirichlet_confidence_agrees_with_draws():
    shares = rng().dirichlet(np.array([6, 3, 3, 1]) + 1, size=40_000)
    seen = np.mean(shares.argmax(axis=1) == 0)
    assert dirichlet_confidence([3, 6, 1, 3]) == pytest.approx(seen, abs=4 * 0.5 / 200)
    assert dirichlet_confidence([3, 6, 1, 3]) < beta_confidence([3, 6, 1, 3])


@pytest.mark.parametrize(
    ("said", "draws"),
    [
        ("1111", 4),  # 1 − 2⁻⁵ = 0.969; three that agree are 0.9375
        ("2111111", 7),  # Beta(7, 2): 247/256 = 0.965; Beta(6, 2): 0.9375
        ("12121212", 8),
        ("1...11.1", 8),
    ],
)
def test_adaptive_consistency_stops_when_the_majority_is_sure(said, draws):
    program = adaptive_consistency(P, 8, rng())
    asked, answer = fed(program, [f"={c}" if c != "." else "nothing" for c in said])
    assert asked == [1] * draws and len(answer.pool) == draws and answer.response.text == "=1"


def test_many_rivals_are_heeded_by_dirichlet_only():
    """Beta asks whether one rival will pass the leader; Dirichlet, whether any of four will."""
    said = ["=2", "=3", "=4", "=5", *["=1"] * 12]
    draws = {rule: sum(fed(adaptive_consistency(P, 16, rng(), rule), said)[0]) for rule in ("beta", "dirichlet")}
    assert draws["beta"] == 4 + 6 < draws["dirichlet"] < 16


def stopped(row, threshold):
    """How many draws the published rule makes of a row of answers."""
    for n in range(1, len(row)):
        counts = sorted([*Counter(vote for vote in row[:n] if vote).values(), 0, 0], reverse=True)
        if coin(*counts[:2]) >= threshold:
            return n
    return len(row)


@pytest.mark.parametrize(("law", "threshold"), [(THREE, 0.9), (THREE | {"1": 0.3, "": 0.2}, 0.8)])
def test_adaptive_consistency_has_its_law(law, threshold):
    """Law of the number of draws and of the answer, by enumeration of all rows; draws that are saved cost nothing."""
    budget, draws, chance = 7, Counter(), 0.0
    for row, p in outcomes(law, budget):
        n = stopped(row, threshold)
        draws[n] += p
        chance += p * (elected(row[:n]) == "1")
    results = repeated(functools.partial(adaptive_consistency, threshold=threshold), budget, answers(law))
    assert p_value((len(r.answer.pool) for r in results), draws) > 1e-3
    assert within(right(results), chance)
    for result, full in zip(results, repeated(self_consistency, budget, answers(law)), strict=True):
        used = len(result.answer.pool)
        assert result.answer.pool == full.answer.pool[:used]
        assert result.cost.generated == result.cost.sequential == 2 * used and result.cost.requests == used
    assert draws[budget] < 0.9


# --- early-stopping self-consistency


@pytest.mark.parametrize(
    ("said", "asked", "answer"),
    [
        ("111", [3], "1"),
        ("121222", [3, 3], "2"),
        ("...222", [3, 3], "2"),  # a window without answers is not of one mind
        (".11.11.1", [3, 3, 2], "1"),
        ("112111", [3, 3], "1"),
    ],
)
def test_early_stopping_draws_window_by_window(said, asked, answer):
    program = early_stopping_consistency(P, 8, rng(), window=3)
    sizes, found = fed(program, [f"={c}" if c != "." else "nothing" for c in said])
    assert sizes == asked and found.response.text == f"={answer}" and len(found.pool) == sum(asked)


def test_all_windows_vote_not_the_last_one_alone():
    """Three votes each at the end; the window that stopped the drawing says 2, but 1 appeared first."""
    _, answer = fed(early_stopping_consistency(P, 12, rng(), window=2), [f"={c}" for c in "12131322"])
    assert answer.response.text == "=1"


@pytest.mark.parametrize("law", [THREE, {"1": 0.5, "2": 0.2, "": 0.3}])
def test_early_stopping_has_its_law(law):
    """Windows until one agrees: geometric, cut at the budget; each draw is paid for, and no other."""
    window, budget = 2, 6
    agree = sum(p**window for answer, p in law.items() if answer)
    draws = {2: agree, 4: (1 - agree) * agree, 6: (1 - agree) ** 2}
    chance = sum(
        p * (elected(row[: next((n for n in (2, 4) if row[n - 1] and row[n - 2] == row[n - 1]), 6)]) == "1")
        for row, p in outcomes(law, budget)
    )
    results = repeated(functools.partial(early_stopping_consistency, window=window), budget, answers(law))
    assert p_value((len(r.answer.pool) for r in results), draws) > 1e-3
    assert within(right(results), chance)
    assert all(r.cost.generated == 2 * len(r.answer.pool) for r in results)


# --- first and last finish


def sized(spec):
    """Responses from words such as 5=1 (five tokens, answer 1), 5= (no answer) and 5~ (never ended)."""
    return [
        response(word, "length" if word[-1] == "~" else "eos", int(word.partition("=")[0].rstrip("~")))
        for word in spec.split()
    ]


@pytest.mark.parametrize(
    ("pool", "k", "text", "voters"),
    [
        ("5=1 7=2 9=3", 1, "9=3", "001"),
        ("5=1 7=2 9=3 8=2", 3, "7=2", "0111"),
        ("9=3 5=1 9=2 9=2", 1, "9=2", "1011"),  # ties in length all vote
        ("5=1 9=2 7=1 9=3", 2, "9=2", "0101"),  # a tied vote goes to the first of the voters
        ("5=1 7=2 9= 9~", 1, "7=2", "0110"),  # what has no answer is not ranked
        ("5=1 7=1 9=3", 9, "5=1", "111"),
        ("5= 7~", 1, "5=", "10"),
        ("5~ 7~", 1, "5~", "00"),
    ],
)
def test_last_finish_is_a_vote_of_the_longest(pool, k, text, voters):
    answer = pooled(last_finish(P, len(pool.split()), rng(), k), sized(pool))
    assert answer.response.text == text and answer.weights == tuple(map(float, voters))


def trace(text):
    """Short with probability 0.3 and then right in 0.8, else long and right in 0.3."""
    if "=" in text:
        return {"": 1.0}
    states = {"": {"s": 0.3, "l": 0.7}, "s": {"=1": 0.8, "=2": 0.2}, "lll": {"=1": 0.3, "=2": 0.7}}
    return states.get(text, {"l": 1.0})


TRACES = {(3, "1"): 0.24, (3, "2"): 0.06, (5, "1"): 0.21, (5, "2"): 0.49}


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (4, 1), (4, 2), (4, 4)])
def test_last_finish_has_the_law_of_a_vote_of_the_longest(n, k):
    chance = 0.0
    for row, p in outcomes(TRACES, n):
        cutoff = sorted(length for length, _ in row)[-k]
        chance += p * (elected([answer for length, answer in row if length >= cutoff]) == "1")
    results = repeated(functools.partial(last_finish, k=k), n, told(trace), max_tokens=6)
    assert within(right(results), chance)
    assert all(r.cost.generated == sum(x.n_tokens for x in r.answer.pool) for r in results)
    if n == k:
        votes = repeated(self_consistency, n, told(trace), max_tokens=6)
        assert [r.answer.response for r in results] == [r.answer.response for r in votes]


@pytest.mark.parametrize(("n", "accuracy"), [(1, 0.450), (2, 0.555), (4, 0.680), (8, 0.771), (16, 0.798)])
def test_first_finish_takes_a_short_one_if_there_is_one(n, accuracy):
    """0.8·(1 − 0.7ⁿ) + 0.3·0.7ⁿ, where a tie in length goes to one of them."""
    exact = 0.8 * (1 - 0.7**n) + 0.3 * 0.7**n
    assert exact == pytest.approx(accuracy, abs=5e-4)
    draw, rows = rng(), 2000
    hits = 0
    for _ in range(rows):
        short = draw.random(n) < 0.3
        wins = draw.random(n) < np.where(short, 0.8, 0.3)
        lengths = np.where(short, 3000, 5000) + np.arange(n)  # no two alike, so that one alone votes
        pool = sized(" ".join(f"{size}={1 if won else 2}" for size, won in zip(lengths, wins, strict=True)))
        hits += pooled(first_finish(P, n, rng(), chunk=6000), pool).response.text.endswith("=1")
    assert within(hits, exact, rows)


SHAPES = {
    "short is right": (((8, 2), (12, 2)), {1: 0.400, 4: 0.793, 16: 0.968, 64: 0.994}),
    "wrong is wider": (((8, 2), (12, 6)), {1: 0.400, 4: 0.518, 16: 0.267, 64: 0.040}),
    "long is right": (((12, 2), (8, 2)), {64: 0.002}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_first_finish_on_normal_lengths_rises_or_falls_with_the_lower_tail(shape):
    """P(right) = ∫ n·p·f_c(x)·(1 − G(x))ⁿ⁻¹ dx with G = p·F_c + (1 − p)·F_w and p = 0.4."""
    ((right_mean, right_sd), (wrong_mean, wrong_sd)), published = SHAPES[shape]
    correct, wrong, p, draw = norm(right_mean, right_sd), norm(wrong_mean, wrong_sd), 0.4, rng()
    for n, accuracy in published.items():

        def density(x, n=n):
            return n * p * correct.pdf(x) * (p * correct.sf(x) + (1 - p) * wrong.sf(x)) ** (n - 1)

        exact = quad(density, -40, 60, points=[-20, -10, 0, 10, 20], limit=500)[0]
        assert exact == pytest.approx(accuracy, abs=1e-3)
        hits, rows = 0, 400
        for _ in range(rows):
            wins = draw.random(n) < p
            x = np.where(wins, draw.normal(right_mean, right_sd, n), draw.normal(wrong_mean, wrong_sd, n))
            lengths = np.rint(1000 * (x + 100)).astype(int)
            pool = sized(" ".join(f"{size}={1 if won else 2}" for size, won in zip(lengths, wins, strict=True)))
            hits += pooled(first_finish(P, n, rng(), chunk=10**6), pool).response.text.endswith("=1")
        assert within(hits, exact, rows)
