"""Repeated sampling: when to stop, who votes, and with what weight; each against its exact law."""

import functools
import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom, norm, weibull_min
from toy import ToyEngine, p_value, problem, run, told

from extratime.evaluate.confidence import bar, confidence, groups
from extratime.evaluate.grid import bind, parse
from extratime.evaluate.program import Gather
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.adaptive_consistency import adaptive_consistency
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.deepconf import deepconf
from extratime.evaluate.strategies.deepconf_online import deepconf_online
from extratime.evaluate.strategies.early_stopping_consistency import early_stopping_consistency
from extratime.evaluate.strategies.first_finish import first_finish
from extratime.evaluate.strategies.last_finish import last_finish
from extratime.evaluate.strategies.multi_temperature import GRID, multi_temperature
from extratime.evaluate.strategies.rpc import distinct, rpc, survivors
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.verifiers.oracle import oracle
from extratime.evaluate.vote import agreement, beta_confidence, dirichlet_confidence
from extratime.evaluate.weibull import fit, lower
from extratime.models.request import Completion, Sample, fail

P = problem(max_tokens=12)
RUNS = 250
THREE = {"1": 0.5, "2": 0.3, "3": 0.2}


def response(text, finish="eos", n_tokens=6, **fields):
    return Completion(P.prompt, text, n_tokens, finish=finish, **fields)


def rng():
    return np.random.default_rng(0)


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


def answers(law):
    """A model that answers at once."""
    return told(lambda text: {"": 1.0} if text else {f"={answer}": p for answer, p in law.items()})


def repeated(strategy, budget, law, n=RUNS, max_tokens=4, **fields):
    cells = [Cell(f"{i}", problem(max_tokens=max_tokens, **fields), strategy, budget, replicate=i) for i in range(n)]
    return run(ToyEngine(law, slots=64), cells)


def right(results):
    return sum(result.cell.problem.correct(result.answer.response.text) for result in results)


def within(successes, p, n=RUNS):
    """Whether a count is inside the central 99.9 % of its binomial law."""
    return binom.ppf(0.0005, n, p) <= successes <= binom.ppf(0.9995, n, p)


def elected(votes):
    """The plurality of votes, "" is none; ties go to the answer that appeared first."""
    votes = [vote for vote in votes if vote] or [""]
    counts = Counter(votes)
    return next(vote for vote in votes if counts[vote] == max(counts.values()))


def outcomes(law, n):
    """Each row of n independent answers, and its probability."""
    for row in itertools.product(law, repeat=n):
        yield row, math.prod(law[answer] for answer in row)


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


def pooled(program, pool):
    """Answer a program's one sample with `pool`."""
    next(program)
    with pytest.raises(StopIteration) as stop:
        program.send(pool)
    return stop.value.value


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


# --- several temperatures


@pytest.mark.parametrize(
    ("pools", "answer"),
    [
        (["1", "1", "1"], "1"),
        (["1", "1", "2"], None),
        (["11112", "1", "1111"], "1"),
        (["1112", "1", "1111"], None),  # 3 of 4 is less than 0.8
        (["1111.", "1"], "1"),
        (["111.", "1"], None),  # who has no answer counts
        (["....", "1"], None),
        ([".", "."], None),
        ([".1111", "1"], "1"),
        (["22222", "1"], None),
        (["", "1"], None),
        ([], None),
    ],
)
def test_temperatures_agree_if_each_is_sure_and_all_of_the_same(pools, answer):
    assert agreement([[None if v == "." else v for v in pool] for pool in pools], 0.8, 1.0) == answer


def test_agreement_of_most_is_enough_if_it_is_said_so():
    assert agreement(["1", "1", "2"], 0.8, 2 / 3) == "1" and agreement(["1", "1", "2"], 0.8, 0.7) is None
    assert agreement(["1", "1", "12"], 0.8, 2 / 3) is None  # one of them is not sure
    assert agreement(["1", "1", "12"], 0.8, 2 / 3) is None  # one of them is not sure


def warmed(program, said):
    """Feed a program the answers that `said` gives for each temperature in turn: what was drawn in each round."""
    said, rounds = {t: iter(answers) for t, answers in said.items()}, []
    request = next(program)
    while True:
        assert isinstance(request, Gather)
        asked = [next(child) for child in request.programs]
        rounds.append([ask.temperature for ask in asked])
        assert all(ask.n == 1 for ask in asked)
        try:
            request = program.send([[response(f"{ask.temperature}={next(said[ask.temperature])}")] for ask in asked])
        except StopIteration as stop:
            return rounds, stop.value


def test_each_round_draws_once_at_each_temperature_and_at_zero_never_again():
    said = {0.0: "1", 0.5: "111", 1.0: "211"}
    rounds, answer = warmed(multi_temperature(P, 7, rng(), (0.0, 0.5, 1.0)), said)
    assert rounds == [[0.0, 0.5, 1.0], [0.5, 1.0], [0.5, 1.0]]
    assert answer.response.text == "0.0=1" and answer.why == "majority vote over all temperatures"
    assert answer.weights == (1.0,) * 7


def test_agreement_ends_the_drawing_and_its_voters_are_told():
    said = {0.5: "111111", 1.0: "211111"}
    rounds, answer = warmed(multi_temperature(P, 40, rng(), (0.5, 1.0)), said)
    assert len(rounds) == 5 and answer.response.text == "0.5=1"  # 4 of 5 at temperature 1
    assert answer.weights == (1.0, 0.0) + (1.0,) * 8 and answer.why == "agreed after 10 of 40 draws"
    assert len(warmed(multi_temperature(P, 40, rng(), (0.5, 1.0)), {0.5: "1", 1.0: "1"})[0]) == 1
    assert len(warmed(multi_temperature(P, 40, rng(), (0.5, 1.0), rounds=2), {0.5: "11", 1.0: "11"})[0]) == 2


@pytest.mark.parametrize(
    ("budget", "grid", "drawn"),
    [
        (22, GRID, [list(GRID), list(GRID[1:]), [0.5, 0.8, 1.1]]),
        (2, GRID, [[0.5, 1.0]]),
        (9, (0.0,), [[0.0]]),
    ],
)
def test_what_fills_no_round_is_spread_over_the_grid(budget, grid, drawn):
    different = {t: (f"{t}/{i}" for i in range(9)) for t in grid}
    program = multi_temperature(P, budget, rng(), grid, rounds=3)
    assert warmed(program, different)[0] == drawn


def test_without_agreement_a_verifier_ranks_the_pool():
    def latest(problem, responses):
        yield from ()
        return list(range(len(responses)))

    said = {0.5: "12", 1.0: "23"}
    answer = warmed(multi_temperature(P, 4, rng(), (0.5, 1.0), verify=latest), said)[1]
    assert answer.response.text == "1.0=3" and answer.weights == (0, 1, 2, 3)


def test_a_recipe_may_name_its_verifier_or_none():
    def bound(strategy):
        raw = {"model": "m", "tasks": ["t"], "strategies": [strategy], "output": "o"}
        return bind(parse(raw).strategies[0], {}).keywords

    assert bound("multi_temperature") == {}
    said = bound({"multi_temperature": {"verify": "oracle", "temperatures": [0.5, 1.0]}})
    assert said["temperatures"] == (0.5, 1.0) and said["verify"].func is oracle


def tempered(law, t):
    hot = {answer: p ** (1 / t) for answer, p in law.items()}
    return {answer: p / sum(hot.values()) for answer, p in hot.items()}


def test_early_exit_has_its_law():
    """Two temperatures and two rounds: exit at once where both draws agree, on an answer; else four votes."""
    law, temperatures = {"1": 0.5, "2": 0.3, "": 0.2}, (0.5, 2.0)
    cold, hot = (tempered(law, t) for t in temperatures)
    draws, chance = Counter(), 0.0
    for a, b, c, d in itertools.product(law, repeat=4):
        p, agreed = cold[a] * hot[b] * cold[c] * hot[d], a == b != ""
        draws[2 if agreed else 4] += p
        chance += p * (elected([a, b] if agreed else [a, b, c, d]) == "1")
    strategy = functools.partial(multi_temperature, temperatures=temperatures)
    results = repeated(strategy, 4, answers(law), n=600)
    assert p_value((len(r.answer.pool) for r in results), draws) > 1e-3
    assert within(right(results), chance, 600)
    assert all(r.cost.generated == 2 * len(r.answer.pool) and r.cost.sequential == len(r.answer.pool) for r in results)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_five_temperatures_agree_at_once_with_the_sum_of_fifth_powers(p):
    """Answers of one law at five temperatures, up to 16 rounds; at p = 0.9 exit at once has probability 0.5905."""
    law, rows, draw = {"1": p, "2": 0.6 * (1 - p), "3": 0.4 * (1 - p)}, 600, rng()
    at_once = sum(q**5 for q in law.values())
    assert p != 0.9 or at_once == pytest.approx(0.5905, abs=5e-5)
    spent = []
    for _ in range(rows):
        said = {t: iter(draw.choice(list(law), 16, p=list(law.values()))) for t in (0.1, 0.2, 0.3, 0.4, 0.5)}
        rounds, answer = warmed(multi_temperature(P, 80, rng(), tuple(said)), said)
        exited = answer.why.startswith("agreed")
        spent.append((len(rounds), exited, answer.response.text.endswith("=1")))
    assert within(sum(n == 1 for n, _, _ in spent), at_once, rows)
    mean, exits = np.mean([n for n, _, _ in spent]), np.mean([exited for _, exited, _ in spent])
    expected = {0.5: (None, 0.03), 0.9: (4.3, 0.92), 0.99: (1.25, 1.0)}[p]  # found once by simulation
    assert expected[0] is None or mean == pytest.approx(expected[0], rel=0.1)
    assert exits == pytest.approx(expected[1], abs=0.04)
    assert p == 0.5 or all(won for _, exited, won in spent if exited)


class Heated(ToyEngine):
    """Its law is given at each temperature, as it is drawn there."""

    def _step(self, row):
        t = row.draw.sampling.temperature
        heated = self.heated(row.draw.prompt.text, t)
        self.law = answers({answer: p**t for answer, p in heated.items()})
        super()._step(row)


EASY, TEMPERATURES = 20, tuple(0.4 + 0.1 * i for i in range(9))


def solvable(prompt, t):
    """Of 47 questions 20 are solved with 0.3 at each temperature, 27 with 0.05 at one of nine alone."""
    i = int(prompt.partition("?")[0])
    p = 0.3 if i < EASY else 0.05 if TEMPERATURES[i % 9] == t else 0.0
    return {"1": p, "2": 1 - p} if p else {"2": 1.0}


@pytest.mark.slow
def test_a_spread_of_temperatures_solves_what_no_single_one_does():
    """Budget 288: 0.489 at the best single temperature, 0.889 with 32 draws at each of nine."""
    one = (20 + 3 * (1 - 0.95**288)) / 47
    spread = (20 * (1 - 0.7**288) + 27 * (1 - 0.95**32)) / 47
    assert (one, spread) == (pytest.approx(0.489, abs=5e-4), pytest.approx(0.889, abs=1e-3))
    engine = Heated(None, slots=256)
    engine.heated = solvable
    solved = {}
    for name, grid in (("spread", TEMPERATURES), ("one", TEMPERATURES[:1])):
        strategy = functools.partial(multi_temperature, temperatures=grid, across=2.0)
        cells = [
            Cell(f"{i}#{r}", problem(str(i), max_tokens=4), strategy, 288, replicate=r)
            for i in range(47)
            for r in range(43)
        ]
        results = run(engine, cells)
        assert {len(result.answer.pool) for result in results} == {288}
        solved[name] = np.mean([any(r.text == "=1" for r in result.answer.pool) for result in results])
    assert abs(solved["spread"] - spread) < 0.01 and abs(solved["one"] - one) < 0.01
    assert solved["spread"] - solved["one"] >= 0.35


# --- perplexity consistency


def likely(*said):
    """Responses as (text, probability of each of its two tokens)."""
    return [response(text, n_tokens=2, logprobs=(math.log(p),) * 2) if p else response(text) for text, p in said]


def test_perplexity_consistency_adds_up_distinct_texts():
    pool = likely(("a=1", 0.5), ("b=2", 0.3), ("c=2", 0.3), ("a=1", 0.5))
    answer = pooled(rpc(P, 4, rng(), prune=False), pool)
    assert answer.response.text == "b=2" and answer.weights == pytest.approx((0.5, 0.3, 0.3, 0.0))
    assert pooled(self_consistency(P, 4, rng()), pool).response.text == "a=1"  # which counts a=1 twice
    assert pooled(best_of_n(P, 4, rng()), pool).response.text == "a=1"  # perplexity alone


def test_whole_texts_count_with_their_probabilities():
    answer = pooled(rpc(P, 2, rng(), prune=False, whole=True), likely(("a=1", 0.5), ("b=2", 0.6)))
    assert answer.weights == pytest.approx((0.25, 0.36))


def test_unfinished_and_unparsed_responses_have_no_say_in_perplexity_consistency():
    pool = likely(("a", 0.9), ("b=1", 0.9), ("c=2", 0.1))
    pool[1] = replace(pool[1], finish="length")
    assert pooled(rpc(P, 3, rng()), pool).response.text == "c=2"
    failed = [fail(response(""), "no")] * 3
    assert pooled(rpc(P, 3, rng()), failed).response.finish == "failed"


def test_the_error_of_perplexity_consistency_is_the_exact_one():
    """k paths of q = p/k to one answer; the estimate of its probability is q·D, D the distinct paths among n draws.

    E[D] = k(1 − a), E[D²] = E[D] + k(k − 1)(1 − 2a + b), a = (1 − q)ⁿ, b = (1 − 2q)ⁿ. A share of votes has p(1 − p)/n.
    """
    p, k = 0.6, 4
    q, draw = p / k, rng()
    for n, published in ((4, 0.1118), (16, 0.00758), (64, 0.0)):
        a, b = (1 - q) ** n, (1 - 2 * q) ** n
        once = k * (1 - a)
        exact = q**2 * (once + k * (k - 1) * (1 - 2 * a + b)) - 2 * p * q * once + p**2
        assert exact == pytest.approx(published, rel=1e-2, abs=1e-4)
        assert (exact < p * (1 - p) / n) == (n >= 16)
        errors = []
        for _ in range(4000 if n < 64 else 200):
            paths = draw.choice(k + 1, n, p=[q] * k + [1 - p])
            pool = [Completion(P.prompt, f"{path}", 1) for path in paths]
            errors.append((sum(distinct(pool, [q * (path < k) for path in paths])) - p) ** 2)
        assert np.mean(errors) == pytest.approx(exact, rel=0.05, abs=1e-5)


def test_perplexity_consistency_on_a_model_has_its_law():
    """Answer 1 by three paths of 0.15, answer 2 by one of 0.3, answer 3 by one of 0.25."""
    paths = {"a=1": 0.15, "b=1": 0.15, "c=1": 0.15, "d=2": 0.3, "e=3": 0.25}

    def rule(row):
        sums = {}
        for path in dict.fromkeys(row):
            sums[path[-1]] = sums.get(path[-1], 0.0) + paths[path]
        return max(sums, key=lambda answer: round(sums[answer], 9))

    model = told(lambda text: {"": 1.0} if text else paths)
    results = repeated(functools.partial(rpc, prune=False, whole=True), 4, model)
    assert within(right(results), sum(p * (rule(row) == "1") for row, p in outcomes(paths, 4)))
    for result in results:
        seen = {r.text for r in result.answer.pool}
        assert sum(result.answer.weights) == pytest.approx(sum(paths[text] for text in seen))


# --- pruning


def scores(draw, mean, shape, n):
    return mean / math.gamma(1 + 1 / shape) * draw.weibull(shape, n)


def test_pruning_drops_the_low_ones_and_never_the_likeliest():
    """60 scores of mean 0.8 (k = 12) and 40 of mean 0.35 (k = 4): 95 % of the low ones go, 5 % of the high at most."""
    draw, low, high = rng(), [], []
    for _ in range(30):
        x = np.concatenate([scores(draw, 0.8, 12, 60), scores(draw, 0.35, 4, 40)])
        kept = np.array(survivors(x, 1.0))
        low.append(1 - kept[60:].mean())
        high.append(1 - kept[:60].mean())
        assert kept[x.argmax()]
    assert np.mean(low) >= 0.95 and np.mean(high) <= 0.05


def test_the_likeliest_survives_whatever_the_scores():
    draw = rng()
    for _ in range(60):
        x = draw.choice([draw.random(20), draw.beta(0.3, 0.3, 20), np.full(20, draw.random()), draw.random(20) ** 9])
        x = np.maximum(x[: draw.integers(1, 21)], 1e-12)
        kept = survivors(x, 0.0)
        assert kept[x.argmax()] and all(keep for keep, s in zip(kept, x, strict=True) if s >= x.mean())


def test_a_guard_keeps_what_is_not_two_groups():
    """One law of scores has no low group: the published rule drops three in ten of it all the same."""
    draw, dropped = rng(), {0.0: [], 1.0: [], 3.0: []}
    for _ in range(12):
        x = np.minimum(scores(draw, 0.8, 12, 64), 1.0)
        for apart, shares in dropped.items():
            shares.append(1 - np.mean(survivors(x, apart)))
    published, guarded, never = (np.mean(shares) for shares in dropped.values())
    assert published > 0.25 and guarded < published and never == 0.0


@pytest.mark.parametrize("x", [[0.5] * 40, [0.9, 0.1, 0.1, 0.1, 0.1], [], [0.5], [0.0] * 20, [0.0] * 20 + [0.5] * 20])
def test_what_cannot_be_split_is_kept(x):
    assert survivors(x, 0.0) == [s > 0 for s in x]


@pytest.mark.filterwarnings("error")
def test_a_split_survives_scores_of_any_size():
    x = [1e-280] * 10 + [1e-3] * 5 + [1.0] * 20 + [1 - 1e-9] * 5
    assert all(survivors(x, 1.0)[15:])
    assert survivors([1e-9 * s for s in (1, 2, 3)] + [1.0, 0.99, 0.98, 0.97], 1.0)[3:] == [True] * 4


def test_the_density_is_weibulls_and_the_higher_mean_comes_first():
    draw = rng()
    x = np.concatenate([scores(draw, 0.35, 4, 400), scores(draw, 0.8, 12, 600)])
    mixture = fit(x)
    assert mixture.means() == pytest.approx([0.8, 0.35], abs=0.02)
    assert mixture.shares == pytest.approx([0.6, 0.4], abs=0.03) and mixture.shapes == pytest.approx([12, 4], rel=0.1)
    laws = [weibull_min(k, scale=scale) for k, scale in zip(mixture.shapes, mixture.scales, strict=True)]
    high, low = (share * law.pdf(x) for share, law in zip(mixture.shares, laws, strict=True))
    assert np.exp(mixture.log_densities(x)) == pytest.approx(np.array([high, low]))
    assert mixture.means() == pytest.approx([law.mean() for law in laws])
    assert mixture.spread() == pytest.approx(math.sqrt(sum(law.var() for law in laws) / 2))
    assert list(lower(x, 0.0)) == list((high / (high + low) < 0.5) & (x < x.mean()))


def test_pruning_takes_votes_from_the_unlikely():
    """Four unlikely ways to one answer outweigh three likely ways to another, until they are dropped."""
    draw = rng()
    pool = likely(
        *[(f"{i}=1", 0.8 + 0.01 * x) for i, x in enumerate(draw.normal(size=6))],
        *[(f"{i}=2", 0.3 + 0.02 * x) for i, x in enumerate(draw.normal(size=18))],
    )
    assert pooled(rpc(P, 24, rng(), prune=False), pool).response.text[-1] == "2"
    answer = pooled(rpc(P, 24, rng()), pool)
    assert answer.response.text[-1] == "1" and answer.weights[6:] == (0.0,) * 18


# --- confidence

CLIMB = [-4.0, -1.0, -3.0, -2.0, -6.0, 0.0]


def test_groups_are_means_of_consecutive_tokens():
    assert list(groups(CLIMB, 2)) == [-2.5, -2.0, -2.5, -4.0, -3.0] and list(groups(CLIMB, 1)) == CLIMB
    assert list(groups(CLIMB, 6)) == list(groups(CLIMB, 99)) == [pytest.approx(-16 / 6)] and not groups([], 3).size


@pytest.mark.parametrize(
    ("measure", "window", "mean"),
    [
        ("mean", 2, -16 / 6),
        ("tail", 2, -3.0),
        ("tail", 99, -16 / 6),
        ("lowest", 2, -4.0),
        ("lowest", 99, -16 / 6),
        ("bottom", 2, -4.0),  # a tenth of five groups: one
    ],
)
def test_confidence_is_the_exponential_of_a_mean(measure, window, mean):
    assert confidence(CLIMB, measure, window) == pytest.approx(math.exp(mean))
    assert confidence([], measure, window) == 0.0


def test_the_bottom_tenth_of_many_groups():
    sure = [-float(i) for i in range(40)]
    assert math.log(confidence(sure, "bottom", 1)) == pytest.approx(-(39 + 38 + 37 + 36) / 4)


def test_the_bar_is_a_quantile():
    assert bar([0.1, 0.2, 0.3, 0.4, 0.5], 0.5) == 0.3 and bar([], 0.1) == 0.0 and bar([0.7], 0.1) == 0.7
    assert sum(c >= bar([i / 16 for i in range(16)], 0.1) for c in (i / 16 for i in range(16))) == 2
    assert bar([0.4] * 7, 0.1) == 0.4


# --- deep confidence


def traced(*said):
    """Responses as (text, log-probabilities of its tokens)."""
    return [response(text, n_tokens=len(logprobs), logprobs=tuple(logprobs)) for text, logprobs in said]


def test_only_the_surest_vote_and_with_their_confidence():
    pool = traced(("a=1", [-0.1]), ("b=2", [-0.2]), ("c=2", [-0.9]), ("d=2", [-0.9]), ("e=3", [-2.0]))
    told = lambda keep: pooled(deepconf(P, 5, rng(), keep=keep), pool)  # noqa: E731
    assert told(0.1).response.text == "a=1" and told(0.1).weights == pytest.approx((math.exp(-0.1), 0, 0, 0, 0))
    assert told(0.9).response.text == "b=2" and told(0.9).weights[4] == 0.0
    assert told(0.5).weights == pytest.approx((math.exp(-0.1), math.exp(-0.2), math.exp(-0.9), math.exp(-0.9), 0))


def test_the_measure_decides_who_is_sure():
    pool = traced(("a=1", [-1, -1, -9, -1]), ("b=2", [-5, -5, -1, -1]), ("c=3", [-3, -3, -3, -3]))
    sure = {m: pooled(deepconf(P, 3, rng(), m, 0.1, 2), pool).response.text for m in ("mean", "tail", "lowest")}
    assert sure == {"mean": "a=1", "tail": "b=2", "lowest": "c=3"}


def test_the_bar_is_set_among_those_with_an_answer():
    pool = traced(("a", [-0.1]), ("b", [-0.1]), ("c=1", [-0.5]), ("d=2", [-0.6]))
    pool.append(fail(response(""), "no"))
    answer = pooled(deepconf(P, 5, rng()), pool)
    assert answer.response.text == "c=1" and answer.weights[3:] == (0.0, 0.0)


def sure_or_not(text):
    """Three ways to an answer, of which one is sure."""
    if "=" in text:
        return {"": 1.0}
    if not text:
        return {"s": 0.3, "u": 0.4, "v": 0.3}
    return {"s": {"=1": 1.0}, "u": {"=1": 0.2, "=2": 0.8}, "v": {"=3": 0.5, "=4": 0.5}}[text]


SURE = {("s", "1"): 0.3, ("u", "1"): 0.08, ("u", "2"): 0.32, ("v", "3"): 0.15, ("v", "4"): 0.15}


def surest(row, keep):
    """The vote of the surest share by mean log-probability of three tokens, the last of which is certain."""
    sure = [SURE[path] ** (1 / 3) for path in row]
    least, sums = np.quantile(sure, 1 - keep), {}
    for (_, answer), c in zip(row, sure, strict=True):
        if c >= least - 1e-9:
            sums[answer] = sums.get(answer, 0.0) + c
    return max(sums, key=lambda answer: round(sums[answer], 9))


@pytest.mark.parametrize("keep", [0.25, 0.9])
def test_deep_confidence_has_its_law(keep):
    results = repeated(functools.partial(deepconf, measure="mean", keep=keep), 5, told(sure_or_not))
    assert within(right(results), sum(p * (surest(row, keep) == "1") for row, p in outcomes(SURE, 5)))


def test_without_log_probabilities_the_policy_is_asked_for_them():
    program = deepconf(P, 2, rng(), "mean")
    next(program)
    asked = program.send([response("a=1"), response("b=2")])
    assert [(ask.continuation, ask.role) for ask in asked] == [("a=1", "policy"), ("b=2", "policy")]
    with pytest.raises(StopIteration) as stop:
        program.send([(-3.0,), (-1.0, -1.0)])
    assert stop.value.value.response.text == "b=2"


# --- deep confidence, online


def online(paths, budget, warmup, **options):
    """Run the program on paths of (text, log-probabilities): what it read of each, and its answer."""
    task = replace(P, max_tokens=12)
    program, fresh = deepconf_online(task, budget, rng(), warmup, **options), iter(paths)
    texts, read = {}, []

    def serve(text, logprobs, limit):
        n = min(limit or 12, len(logprobs))
        whole = n == len(logprobs)
        return response(text if whole else f"{text[0]}", "eos" if whole else "length", n, logprobs=logprobs[:n])

    request = next(program)
    while True:
        if request.along:
            drawn = [serve(*texts[r.text], request.max_tokens) for r in request.along]
        else:
            said = [next(fresh) for _ in range(request.n)]
            texts |= {text[0]: (text, tuple(logprobs)) for text, logprobs in said}
            drawn = [serve(text, tuple(logprobs), request.max_tokens) for text, logprobs in said]
        read.append([(r.text[0], r.n_tokens) for r in drawn])
        try:
            request = program.send(drawn)
        except StopIteration as stop:
            return read, stop.value


WARM = [("a=1", [-1.0] * 4), ("b=2", [-2.0] * 4), ("c=3", [-3.0] * 4)]


def test_a_response_is_broken_off_once_a_group_is_below_the_bar():
    """The bar is the middle of the warm-up, −2; a group is two tokens."""
    paths = [*WARM, ("d=1", [-1, -1, -1, -4, -1, -1]), ("e=2", [-1, -4, 0, -3, -1, -1])]
    read, answer = online(paths, 5, 3, keep=0.5, window=2, consensus=2.0, chunk=1)
    assert read[0] == [("a", 4), ("b", 4), ("c", 4)]
    assert [n for step in read[1:] for name, n in step if name == "d"] == [1, 2, 3, 4]  # (−1 − 4)/2 < −2
    assert [n for step in read[1:] for name, n in step if name == "e"] == [1, 2]
    assert [w > 0 for w in answer.weights] == [True, True, False, False, False] and answer.response.text == "a=1"


def test_a_group_that_is_not_whole_breaks_nothing_off():
    paths = [*WARM, ("d=1", [-9, 0, 0, 0]), ("e=2", [-9, -9])]
    read, answer = online(paths, 5, 3, keep=0.5, window=3, consensus=2.0, chunk=1)
    assert [n for step in read[1:] for name, n in step if name == "d"] == [1, 2, 3]  # −3
    assert [n for step in read[1:] for name, n in step if name == "e"] == [1, 2]
    assert answer.weights[4] == 0.0  # shorter than a group: read whole, below the bar as it is


def test_chunks_read_on_side_by_side_only_what_is_sure():
    paths = [*WARM, ("d=1", [-1] * 6), ("e=2", [-9] * 6), ("f=3", [-1] * 3)]
    read, answer = online(paths, 6, 3, keep=0.5, window=2, consensus=2.0, batch=3, chunk=2)
    assert read[1:] == [[("d", 2), ("e", 2), ("f", 2)], [("d", 4), ("f", 3)], [("d", 6)]]
    assert [w > 0 for w in answer.weights] == [True, True, False, True, False, True]


@pytest.mark.parametrize(
    ("last", "consensus", "drawn"),
    [("1 1 1", 0.7, 3), ("1 1 1", 0.8, 4), ("1 1 1", 0.87, 5), ("1 1 1", 0.95, 6), ("2 1 1", 0.8, 6)],
)
def test_the_drawing_stops_at_a_consensus_of_those_that_vote(last, consensus, drawn):
    """The warm-up leaves e^-1 for answer 1 and e^-2 for answer 2: 0.731; then 0.845 and 0.891."""
    paths = [*WARM, *[(f"{name}={said}", [-1.0] * 4) for name, said in zip("def", last.split(), strict=True)]]
    _, answer = online(paths, 6, 3, keep=0.5, window=2, consensus=consensus, chunk=12)
    assert len(answer.pool) == drawn


def test_a_warm_up_of_nothing_sets_no_bar():
    program = deepconf_online(P, 3, rng(), warmup=2, chunk=4)
    next(program)
    assert program.send([fail(response("", n_tokens=0), "no")] * 2).max_tokens == 4
    with pytest.raises(StopIteration) as stop:
        program.send(traced(("a=1", [-3.0])))
    assert stop.value.value.response.text == "a=1" and stop.value.value.weights == pytest.approx((0, 0, math.exp(-3)))


def mumble(text):
    """Sure: one token and the answer 1. Unsure: up to five tokens of ½ each, then the answer 1 or 2."""
    if "=" in text:
        return {"": 1.0}
    if not text:
        return {"s": 0.5, "u": 0.5}
    return {"=1": 1.0} if text == "s" else {"=1": 0.5, "=2": 0.5} if len(text) == 6 else {"x": 0.5, "y": 0.5}


def test_what_is_broken_off_is_saved():
    """A sure response has 3 tokens, an unsure one 8, of which 2 are read after the warm-up, if one of it was sure.

    In groups of two a sure response has ln(½)/2, an unsure one ln(½) from its first group on.
    """
    strategy = functools.partial(deepconf_online, warmup=4, keep=0.25, window=2, consensus=2.0, chunk=1)
    results = repeated(strategy, 8, told(mumble), max_tokens=8, n=100)
    plain = repeated(self_consistency, 8, told(mumble), max_tokens=8, n=100)
    saved = 0
    for result, whole in zip(results, plain, strict=True):
        warm, later = result.answer.pool[:4], result.answer.pool[4:]
        assert warm == whole.answer.pool[:4]
        any_sure = any(r.text == "s=1" for r in warm)
        unsure = 2 if any_sure else 8
        assert [r.n_tokens for r in later] == [3 if r.text == "s=1" else unsure for r in whole.answer.pool[4:]]
        assert result.cost.generated == sum(r.n_tokens for r in result.answer.pool)
        saved += whole.cost.generated - result.cost.generated
        if any_sure:
            assert result.answer.response.text == "s=1"
    assert saved > 100 * 4 * 0.5 * 6 * 0.8
