"""A budget over several temperatures: what is drawn where, when they agree, and what a spread solves."""

import functools
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from laws import answers, elected, repeated, right, within
from played import P, response, rng
from toy import ToyEngine, p_value, problem, run

from extratime.evaluate.algorithms.vote import agreement
from extratime.evaluate.grid import bind, parse
from extratime.evaluate.program import Gather
from extratime.evaluate.schedule import Cell
from extratime.evaluate.statistics.at_k import pass_at_k
from extratime.evaluate.strategies.multi_temperature import GRID, multi_temperature
from extratime.evaluate.verifiers.oracle import oracle


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
    assert len(warmed(multi_temperature(P, 40, rng(), (0.5, 1.0), least=2), {0.5: "11", 1.0: "11"})[0]) == 2


def test_what_has_no_answer_never_agrees_and_stands_in_the_way_of_a_share():
    """Equal last lines are no votes; after a response without an answer four more of five must give it."""
    silent = {0.5: [""] * 5, 1.0: [""] * 5}
    rounds, answer = warmed(multi_temperature(P, 10, rng(), (0.5, 1.0)), silent)
    assert len(rounds) == 5 and answer.why == "nobody voted"
    late = {0.5: ["", *"11111"], 1.0: ["", *"11111"]}
    rounds, answer = warmed(multi_temperature(P, 12, rng(), (0.5, 1.0)), late)
    assert len(rounds) == 5 and answer.response.text == "0.5=1" and answer.why == "agreed after 10 of 12 draws"


def test_a_response_that_was_cut_off_has_no_answer():
    program = multi_temperature(P, 4, rng(), (0.5, 1.0))
    next(program)
    cut = [[response("=1", finish)] for finish in ("length", "eos")]
    assert len(program.send(cut).programs) == 2


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
    program = multi_temperature(P, budget, rng(), grid, least=3)
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


ONE = (20 + 3 * (1 - 0.95**288)) / 47
SPREAD = (20 * (1 - 0.7**288) + 27 * (1 - 0.95**32)) / 47
"""Expected share that is solved by 288 draws: at the best single temperature, and with 32 at each of nine."""


def test_a_spread_of_temperatures_solves_what_no_single_one_does():
    assert (pytest.approx(0.489, abs=5e-4), pytest.approx(0.889, abs=1e-3)) == (ONE, SPREAD) and SPREAD - ONE >= 0.35
    engine, solved = Heated(None, slots=256), {}
    engine.heated = solvable
    for grid in (TEMPERATURES, TEMPERATURES[:1]):
        strategy = functools.partial(multi_temperature, temperatures=grid, across=2.0)
        results = run(engine, [Cell(f"{i}", problem(f"{i}", max_tokens=4), strategy, 288) for i in range(EASY, 47)])
        assert {len(result.answer.pool) for result in results} == {288}
        solved[len(grid)] = sum(any(r.text == "=1" for r in result.answer.pool) for result in results)
    assert solved[1] <= 3 and within(solved[9], 1 - 0.95**32, 27)


def test_the_share_that_a_spread_solves_is_estimated_without_bias_from_larger_pools():
    """1 − Π_t C(N − C_t, k)/C(N, k) with k = 32 of N = 64 draws at each temperature, over 2,000 pools of each kind."""
    draw, solved = rng(), []
    easy = draw.binomial(64, 0.3, (2000, 9))
    hard = draw.binomial(64, 0.05, (2000, 1))
    for pools in (easy, hard):
        solved.append(np.mean([1 - math.prod(1 - pass_at_k(64, int(c), 32) for c in pool) for pool in pools]))
    assert abs((20 * solved[0] + 27 * solved[1]) / 47 - SPREAD) < 0.01
