"""A*: what is expanded next, what it costs, and how far it walks on chains."""

import itertools
import math

import numpy as np
import pytest
from chains import SHORT as P
from chains import paused, response
from played import rng, scored
from toy import problem
from walks import BEST, BLIND, STEPS, accuracy, chain, near, sees, steps, walked

from extratime.evaluate.algorithms.search import root
from extratime.evaluate.strategies.a_star import COSTS, State, a_star, successor
from extratime.evaluate.strategies.self_consistency import self_consistency


def explored(program, depth=3):
    """Run a search in the tree of words, which are whole at `depth` letters: what it expands, and its answer."""
    request, asked = next(program), []
    while True:
        asked.append(request.along[0].text)
        texts = [r.text + "abcdef"[i] for i, r in enumerate(request.along)]
        replies = [response(text, "eos" if len(text) == depth else "pause") for text in texts]
        try:
            request = program.send(replies)
        except StopIteration as stop:
            return asked, stop.value


def test_f_by_hand():
    """h along a path .5, .3, .6: g is 0, 0, .3 and f is .5, .3, .9."""
    start = State(0.5, 0, 0, 0.0, 0.5, root(P))
    better = successor(start, response("a"), 0.3, "increase", 1)
    worse = successor(better, response("ab"), 0.6, "increase", 2)
    assert [better.g, better.f, worse.g, worse.f] == pytest.approx([0.0, 0.3, 0.3, 0.9])
    assert [successor(better, response("ab"), 0.6, cost, 2).f for cost in COSTS] == pytest.approx([0.9, 0.6, 0.6, 1.2])
    assert successor(start, response("a"), 0.3, "consistent", 1).f == pytest.approx(0.5)


@pytest.mark.parametrize("cost", COSTS)
def test_the_cheapest_state_goes_on_until_an_end_is_the_cheapest(cost):
    """Against f computed anew for every word; where it never falls, the cheapest end of all is found."""
    words = [[*map("".join, itertools.product("ab", repeat=n))] for n in range(4)]
    for seed in range(40):
        heights = dict(zip(itertools.chain(*words), np.random.default_rng(seed).random(15).round(6), strict=True)) | {
            "": 0.5
        }
        asked, answer = explored(a_star(P, 99, rng(), 2, scored(lambda text, h=heights: 1 - h[text]), cost=cost))

        def f(word, h=heights):
            way = [h[word[:n]] for n in range(len(word) + 1)]
            return sum(COSTS[cost](*pair) for pair in itertools.pairwise(way)) + h[word]

        known = {"a", "b"}
        for word in asked[1:]:
            assert f(word) == pytest.approx(min(map(f, known)))
            known = known - {word} | {word + "a", word + "b"}
        assert f(answer.response.text) == pytest.approx(min(map(f, known)))
        assert {r.text for r in answer.pool} == {word for word in known if len(word) == 3}
        assert answer.weights == pytest.approx([-f(r.text) for r in answer.pool])
        if cost == "consistent":
            taken = [f(word) for word in asked[1:]]
            assert all(b >= a - 1e-9 for a, b in itertools.pairwise(taken))
            assert f(answer.response.text) == pytest.approx(min(map(f, words[3])))


@pytest.mark.parametrize("value", [0.5, 0.0, 1.0, -2.0, math.nan, -math.inf])
def test_equal_scores_lead_straight_to_an_end(value):
    """Ties go deeper: as many expansions as there are steps. Breadth first there would be no end within the budget."""
    asked, answer = explored(a_star(P, 6, rng(), 3, scored(lambda text: value)), depth=6)
    assert asked == ["", "a", "aa", "aaa", "aaaa", "aaaaa"] and answer.response.text == "aaaaaa"
    assert [r.text for r in answer.pool] == ["aaaaaa", "aaaaab", "aaaaac"]


def test_it_goes_back_to_an_older_state_where_the_newer_ones_disappoint():
    table = {"a": 0.9, "b": 0.8, "aa": 0.1, "ab": 0.2, "ba": 0.8, "bb": 0.7, "baa": 0.8, "bab": 0.9}
    asked, answer = explored(a_star(P, 99, rng(), 2, scored(table)))
    assert asked == ["", "a", "b", "ba"] and answer.response.text == "bab"


def test_children_that_say_the_same_are_one():
    verify = scored(lambda text: 0.5)
    program = a_star(P, 99, rng(), 3, verify)
    next(program)
    request = program.send([*paused("a", "b", "a")])
    assert verify.asked == [["a", "b"]] and [r.text for r in request.along] == ["a"] * 3


@pytest.mark.parametrize(("budget", "widths"), [(1, [1, 1, 1]), (2, [2, 2, 2]), (3, [3, 3, 3])])
def test_a_state_has_as_many_children_as_can_be_read_to_their_ends(budget, widths):
    program, asked = a_star(problem(max_tokens=3), budget, rng(), 3, scored(lambda text: 0.5)), []
    request = next(program)
    with pytest.raises(StopIteration):
        while True:
            asked.append(len(request.along))
            texts = [r.text + "abc"[i] for i, r in enumerate(request.along)]
            request = program.send([response(x, "eos" if len(x) == 3 else "pause") for x in texts])
    assert asked == widths


def test_a_single_child_is_a_plain_draw():
    alone = walked(a_star, 8, chain(0.7), 30, width=1, verify=sees(3, 0.5))
    assert [r.answer.response for r in alone] == [r.answer.response for r in walked(self_consistency, 1, runs=30)]


@pytest.mark.parametrize(("h", "text"), [(0.9, ""), (0.1, "b=1")])
def test_a_child_that_says_nothing_is_an_end(h, text):
    table = {"a": 0.2, "b": 0.8, "b=1": 0.5}
    program = a_star(P, 9, rng(), 2, scored(lambda said: table.get(said, h)))
    next(program)
    with pytest.raises(StopIteration) as stop:
        program.send([response("", "eos", 1), *paused("b")])
        program.send([response("b=1")] * 2)
    assert stop.value.value.response.text == text


def test_a_state_that_cannot_be_paid_for_is_passed_over():
    """In the end three tokens of 24 are left, and five would be needed."""
    table = {"aaaaaa": 0.9, "bbbbbb": 0.8, "aaaaaac": 0.1, "aaaaaad": 0.2}
    program = a_star(P, 2, rng(), 2, scored(lambda text: table.get(text, 0.3)))
    next(program)
    assert [r.text for r in program.send(paused("aaaaaa", "bbbbbb")).along] == ["aaaaaa"] * 2
    assert [r.text for r in program.send(paused("aaaaaac", "aaaaaad")).along] == ["bbbbbb"]
    assert [r.text for r in program.send(paused("b" * 11)).along] == ["b" * 11] * 2
    with pytest.raises(StopIteration) as stop:
        program.send([response("b" * 12, "length"), response("b" * 11 + "c", "length")])
    assert stop.value.value.response.text == "b" * 12


def test_no_end_is_ever_cut_off_and_the_budget_is_kept():
    for budget in (1, 2, 3, 5, 8):
        for result in walked(a_star, budget, chain(0.7, wordings=20), 40, verify=sees(1, 1)):
            assert result.answer.response.finished and result.cost.generated <= budget * (STEPS + 1)
            assert result.answer.why == f"the cheapest end after {result.cost.generated} tokens"
            assert all(r.finished for r in result.answer.pool)


def test_where_nothing_ends_the_cheapest_response_comes_back():
    verify = scored(lambda text: 0.9 if text.startswith("b") else 0.2)
    program = a_star(problem(max_tokens=1), 2, rng(), 2, verify)
    next(program)
    with pytest.raises(StopIteration) as stop:
        program.send([response("a", "length"), response("b", "length")])
    assert stop.value.value.response.text == "b" and len(stop.value.value.pool) == 2


A_STAR = {
    (2, "increase", 3, 0.5): (0.830, 19.3),
    (3, "increase", 3, 0.5): (0.955, 31.6),
    (3, "none", 3, 0.5): (0.964, 27.1),
    (3, "increase", 1, 1): (0.892, 32.4),
}
"""Accuracy and mean steps of at most 48, by width, cost and how well steps are seen."""


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if c[2:] == (1, 1) else ()) for c in A_STAR])
def test_a_star_walks_the_chain_as_often_and_as_far_as_in_independent_simulations(case):
    (width, cost, *sight), (share, length) = case, A_STAR[case]
    results = walked(a_star, 8, chain(0.7, wordings=50), 200, width=width, cost=cost, verify=sees(*sight))
    assert near(accuracy(results), share, 200) and steps(results) == pytest.approx(length, rel=0.1)
    if width == 3:
        assert accuracy(results) >= BEST[*sight] + 0.25 and steps(results) <= 0.7 * 48


@pytest.mark.slow
@pytest.mark.parametrize(("cost", "share", "length"), [("consistent", 0.882, 37.8), ("sum_h", 0.577, 48)])
def test_other_costs_go_farther_round_and_are_never_left_without_an_end(cost, share, length):
    """Where the simulations came to nothing within 48 steps, the last tokens here finish what is best."""
    results = walked(a_star, 8, chain(0.7, wordings=50), 200, width=3, cost=cost, verify=sees(3, 0.5))
    assert accuracy(results) >= share - 0.05 and steps(results) == pytest.approx(length, rel=0.1)


@pytest.mark.slow
def test_with_scores_that_know_nothing_a_star_is_one_response():
    assert near(accuracy(walked(a_star, 8, chain(0.7, wordings=50), 300, verify=BLIND)), 0.7**STEPS, 300)
