"""Votes: who votes, how much, and who wins."""

import itertools
import math
import random
from collections import defaultdict

import pytest
from toy import problem

from extratime.evaluate.algorithms.vote import ballots, elect, tally
from extratime.evaluate.strategies.weighted_vote import weights
from extratime.models.request import Completion, Prompt

P = problem()


def response(text, finish="eos", n_tokens=3):
    return Completion(Prompt("p?"), text, n_tokens, finish=finish)


def responses(answers):
    return [response(f"{i}={answer}" if answer else f"{i}") for i, answer in enumerate(answers)]


def test_only_finished_responses_with_an_answer_vote():
    finishes = ["eos", "until", "pause", "length", "cut", "failed"]
    assert ballots(P, [response("=7", finish) for finish in finishes]) == ["7", "7", None, None, None, None]
    assert ballots(P, [response("no answer")]) == [None]


def test_tally_adds_by_answer_in_order_of_appearance():
    assert list(tally(["b", "a", None, "b"], [1.0, 0.5, 9.0, 2.0]).items()) == [("b", 3.0), ("a", 0.5)]


@pytest.mark.parametrize("zero", [0.0, -0.0, math.nan, -math.inf])
def test_weights_that_are_all_zero_give_the_unweighted_vote(zero):
    votes = ["a", "b", "b", None]
    assert tally(votes, [zero] * 4) == {"a": 1.0, "b": 2.0}
    assert tally(votes, [zero, zero, zero, 5.0]) == {"a": 1.0, "b": 2.0}  # who does not vote does not weigh
    assert tally(votes, [1.0, zero, zero, 5.0]) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("weight", [-0.1, math.inf])
def test_impossible_weights_are_refused(weight):
    with pytest.raises(ValueError, match="finite and ≥ 0"):
        tally(["a", "b"], [1.0, weight])


def test_the_answer_is_the_heaviest_response_of_the_heaviest_class():
    answer = elect(P, responses("abbab"), [0.5, 0.1, 0.3, 0.2, 0.4], "vote")
    assert answer.response.text == "4=b" and answer.why == "vote" and answer.weights == (0.5, 0.1, 0.3, 0.2, 0.4)
    assert elect(P, responses("abba"), [1.0] * 4, "vote").response.text == "0=a"  # ties: the first class, its first
    assert elect(P, responses("abb"), [1.0, 0.5, 0.5], "vote").response.text == "0=a"


@pytest.mark.parametrize("loads", [[0.3, 0.1, 0.2], [0.6, 0.3, 0.2, 0.1], [0.7, 0.1, 0.2, 0.4], [1 / 3, 1 / 6, 1 / 6]])
def test_a_sum_that_is_rounded_up_wins_no_tie(loads):
    """0.1 + 0.2 is more than 0.3 in binary; the class that appeared first wins all the same, as in the report."""
    one, rest = responses("a"), responses("a" + "b" * (len(loads) - 1))[1:]
    assert elect(P, one + rest, loads, "vote").response.text == "0=a"
    assert elect(P, rest + one, [*loads[1:], loads[0]], "vote").response.text.endswith("=b")
    slightly = [loads[0] * (1 - 1e-9), *loads[1:]]
    assert elect(P, one + rest, slightly, "vote").response.text.endswith("=b"), "what is less is less"


def test_where_nobody_votes_the_best_standing_answers():
    cut, failed, whole = response("x", "cut"), response("=1", "failed"), response("y")
    assert elect(P, [failed, cut, whole], [9.0, 5.0, 1.0], "vote").response == whole
    assert elect(P, [failed, cut], [9.0, 1.0], "vote").response == cut
    assert elect(P, [failed, failed], [1.0, 1.0], "vote").response == failed
    assert elect(P, [cut, response("z", "cut")], [math.nan, 0.0], "vote").response.text == "z"
    assert elect(P, [cut], [1.0], "vote").why == "nobody voted"


def test_a_vote_of_one():
    assert elect(P, responses("a"), [0.0], "vote").response.text == "0=a"


def test_every_election_of_up_to_five_agrees_with_a_count_by_hand():
    rng = random.Random(0)
    for n in range(1, 6):
        for answers in itertools.product(["a", "b", "c", ""], repeat=n):
            loads = [rng.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(n)]
            said = [(answer, load) for answer, load in zip(answers, loads, strict=True) if answer]
            unweighted = not any(load for _, load in said)
            totals = defaultdict(float)
            for answer, load in said:
                totals[answer] += 1.0 if unweighted else load
            top = max(totals.values(), default=0)
            winner = next((answer for answer in totals if totals[answer] == top), "")
            chosen = elect(P, responses(answers), loads, "vote").response
            assert (P.answer(chosen.text) or "") == winner
            heaviest = max(load for answer, load in zip(answers, loads, strict=True) if answer == winner)
            assert loads[int(chosen.text[0])] == heaviest


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.2, 0.0, 1.0], [0.2, 0.0, 1.0]),
        ([3.0, 7.0], [3.0, 7.0]),
        ([math.log(0.2), math.log(0.8)], [0.2, 0.8]),
        ([0.0, -1.0], [1.0, math.exp(-1)]),
        ([math.nan, 0.5, -math.inf], [0.0, 0.5, 0.0]),
        ([-math.inf, -1.0], [0.0, math.exp(-1)]),
        ([-math.inf, math.nan], [0.0, 0.0]),
        ([2.0, -1.0], [1.0, math.exp(-3)]),
        ([], []),
    ],
)
def test_scores_become_weights(scores, expected):
    assert weights(scores) == pytest.approx(expected)


def test_scores_of_any_size_become_weights_that_can_vote():
    votes = tally(["a", "b", "c"], weights([1000.0, 999.0, -1000.0]))
    assert votes["a"] / votes["b"] == pytest.approx(math.e) and votes["c"] == 0.0
