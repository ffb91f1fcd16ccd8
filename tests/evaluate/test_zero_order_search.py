"""Zero-order search: what counts as a neighbour, what becomes the pivot, and how it climbs what fools the verifier."""

import functools
import math

import pytest
from chains import SHORT as P
from chains import paused, response
from laws import answers, repeated, right, within
from played import play, scored
from walks import STEPS, accuracy, chain, fooled, judge, sees, walked

from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.strategies.zero_order_search import zero_order_search
from extratime.evaluate.verifiers.oracle import oracle


class Cuts:
    """A generator that cuts where it is told."""

    def __init__(self, *cuts):
        self.cuts = list(cuts)

    def integers(self, n):
        self.asked = n
        return self.cuts.pop(0)


def test_neighbours_share_a_beginning_and_the_best_of_them_becomes_the_pivot():
    table = {"abc": 0.5, "abx": 0.4, "aby": 0.6, "abyz": 0.6, "ayz": 0.9, "a": 0.1}
    asked, answer = play(
        zero_order_search(P, 9, Cuts(2, 1), 2, scored(table), rounds=2),
        paused("a"), paused("ab"), [response("abc")], lambda ask: list(ask.along),
        [response("abx"), *paused("aby")], [response("abx"), response("abyz")], lambda ask: list(ask.along),
        [response("ayz"), response("a")], lambda ask: list(ask.along),
    )  # fmt: skip
    along = [[r.text for r in ask.along] for ask in asked]
    assert along[1:3] == [["a"], ["ab"]] and along[4] == ["ab", "ab"] and along[7] == ["a", "a"]
    assert all(ask.pause == ("\n",) for ask in (asked[0], asked[4], asked[7]))
    assert [r.text for r in answer.pool] == ["abc", "abx", "abyz", "ayz", "a"] and answer.response.text == "ayz"


@pytest.mark.parametrize(("score", "pivot"), [(0.5, "ab"), (0.4, "ab"), (math.nan, "ab"), (0.6, "ax")])
def test_only_what_is_better_becomes_the_pivot(score, pivot):
    source = Cuts(0, 2)
    program = zero_order_search(P, 9, source, 1, scored({"ab=1": 0.5, "ax=2": score}))
    next(program)
    for reply in (paused("a"), paused("ab"), [response("ab=1")]):
        program.send(reply)
    program.send([response("ab=1")])
    for reply in (paused("a"), paused("ax"), [response("ax=2")]):
        program.send(reply)
    assert program.send([response("ax=2")]).along[0].text == pivot and source.asked == 3


def test_only_beginnings_are_taken_that_can_be_read_to_their_ends():
    """Of 24 tokens 11 were read and one more response can be; behind nine tokens there is room for a fourth of one."""
    source = Cuts(0)
    program = zero_order_search(P, 2, source, 9, scored(lambda text: 0.5))
    next(program)
    program.send(paused("abcdefghi"))
    program.send([response("abcdefghi=1")])
    assert source.cuts == [0]
    request = program.send([response("abcdefghi=1")])
    assert source.asked == 2 and len(request.along) == 1 and request.along[0].text == ""
    program.send([response("k=1")])
    source.cuts = [0]
    request = program.send([response("k=1")])
    assert source.asked == 1 and [r.text for r in request.along] == ["abcdefghi"] * 3


@pytest.mark.parametrize(("n", "p"), [(1, 0.4), (4, 0.3), (8, 0.1)])
def test_where_there_is_nothing_to_keep_it_is_best_of_n(n, p):
    results = repeated(
        functools.partial(zero_order_search, verify=oracle), n, answers({"1": p, "2": 1 - p}), max_tokens=2
    )
    assert within(right(results), 1 - (1 - p) ** n) and all(len(r.answer.pool) == n for r in results)


def test_no_end_is_ever_cut_off_and_a_budget_of_one_is_a_plain_draw():
    for budget in (1, 2, 3, 5, 8):
        for result in walked(zero_order_search, budget, chain(0.7, wordings=20), 20, verify=sees(1, 1)):
            assert result.cost.generated <= budget * (STEPS + 1) and all(r.finished for r in result.answer.pool)
    alone = walked(zero_order_search, 1, runs=30, verify=sees(1, 1))
    assert [r.answer.response for r in alone] == [r.answer.response for r in walked(self_consistency, 1, runs=30)]


@pytest.mark.parametrize("value", [0.5, 0.0, math.nan, -math.inf])
def test_scores_that_say_nothing_leave_the_first_draw(value):
    found = walked(zero_order_search, 4, runs=20, verify=judge(lambda r: value))
    assert [r.answer.response for r in found] == [r.answer.response for r in walked(self_consistency, 1, runs=20)]


@pytest.mark.slow
def test_it_climbs_the_chain_but_less_than_as_many_draws_do():
    """A step that went wrong early is mended only where a neighbour begins before it."""
    law = chain(0.7, wordings=50)
    climbed, drawn, first = (
        accuracy(walked(s, n, law, 200, verify=sees(3, 0.5)))
        for s, n in ((zero_order_search, 8), (best_of_n, 8), (zero_order_search, 1))
    )
    assert first + 0.2 <= climbed <= drawn


@pytest.mark.slow
def test_it_climbs_what_fools_the_verifier():
    """More search: a higher score, and fewer right answers."""
    few, many = (walked(zero_order_search, n, chain(0.95, hack=0.005, wordings=50), 60, verify=judge(fooled))
                 for n in (4, 64))  # fmt: skip
    scored_ = [sum(max(r.answer.weights) for r in results) / 60 for results in (few, many)]
    assert scored_[1] >= scored_[0] + 0.03 and accuracy(many) <= accuracy(few) - 0.3
