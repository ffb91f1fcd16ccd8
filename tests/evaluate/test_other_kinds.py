"""Strategies for other kinds of models and rules: giving up early, spawning and joining, block schedules."""

import functools
import math

import numpy as np
import pytest
from toy import ToyEngine, ended, problem, run, told

from extratime.evaluate.schedule import Cell
from extratime.evaluate.stopping import ceiling, learned, running, stops
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.early_stopping import early_stopping
from extratime.models.request import Completion, Sample, fail

P = problem(max_tokens=12)


def rng():
    return np.random.default_rng(0)


def response(text, finish="eos", n_tokens=6, **fields):
    return Completion(P.prompt, text, n_tokens, finish=finish, **fields)


def scored(table):
    """A verifier that knows the score of each text."""

    def verify(problem, responses):
        yield from ()
        return [table[r.text] for r in responses]

    return verify


def play(program, *replies):
    """Answer a program's requests in turn: the requests, and what it returned."""
    asked = [next(program)]
    for i, reply in enumerate(replies):
        try:
            asked.append(program.send(reply))
        except StopIteration as stop:
            assert i == len(replies) - 1, "it returned before all replies were given"
            return asked, stop.value
    raise AssertionError(f"it still wants {asked[-1]}")


def begun(*texts, n=3):
    return [response(text, "length", n) for text in texts]


# --- giving up early


def test_what_falls_below_the_threshold_is_read_no_further():
    table = {"a": 0.5, "b": 0.05, "c": 0.3, "aa": 0.09, "cc": 0.4, "ccc=1": 0.2}
    program = early_stopping(P, 3, rng(), scored(table), threshold=0.1, every=3)
    asked, answer = play(program, begun("a", "b", "c"), begun("aa", "cc", n=6), [response("ccc=1")])
    assert asked[0] == Sample(P.prompt, 3, max_tokens=3)
    assert [r.text for r in asked[1].along] == ["a", "c"] and asked[1].max_tokens == 6
    assert [r.text for r in asked[2].along] == ["cc"] and asked[2].max_tokens == 12  # the last one: no more looks
    assert answer.response.text == "ccc=1" and answer.weights == (0.09, 0.05, 0.2)
    assert [r.text for r in answer.pool] == ["aa", "b", "ccc=1"] and answer.why == "2 of 3 given up"


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.02, 0.05, 0.01], "b"),
        ([0.0, 0.0, 0.0], "abc"),
        ([math.nan, -math.inf, 0.0], "abc"),
        ([math.nan, 0.4, 0.1], "bc"),
        ([-0.1, -9.0, -2.2], "ac"),
        ([0.0, 0.0, -1e-9], "abc"),  # logarithms: zero is certainty
    ],
)
def test_one_is_always_left_and_equal_scores_stop_nobody(scores, kept):
    program = early_stopping(P, 3, rng(), scored(dict(zip("abc", scores, strict=True))), threshold=0.1, every=3)
    next(program)
    assert "".join(r.text for r in program.send(begun(*"abc")).along) == kept


def test_a_good_finished_response_lets_the_hopeless_go_and_a_failed_one_does_not():
    table = {"a=1": 0.9, "b": 0.0, "c": 0.2}
    program = early_stopping(P, 2, rng(), scored(table), every=3)
    _, answer = play(program, [response("a=1", n_tokens=3), *begun("b")])
    assert answer.response.text == "a=1" and [r.text for r in answer.pool] == ["a=1", "b"]
    program = early_stopping(P, 2, rng(), scored(table | {"a": 0.9}), every=3)
    next(program)
    assert [r.text for r in program.send([fail(response("a"), "no"), *begun("b")]).along] == ["b"]


def letters(text):
    """A good or a bad beginning, ten more letters, and an answer that is right after a good one."""
    if not text:
        return {"g": 0.6, "b": 0.4}
    if len(text) < 11:
        return {"x": 1.0}
    return {"": 1.0} if "=" in text else {"=1" if text[0] == "g" else "=2": 1.0}


def by_letter(problem, responses):
    yield from ()
    return [0.9 if r.text.startswith("g") else 0.02 for r in responses]


def test_tokens_of_hopeless_responses_are_saved_and_the_ledger_says_so():
    """13 tokens a response, 4 of one that is given up; all are read where nobody is better."""
    strategy = functools.partial(early_stopping, verify=by_letter, every=4)
    cells = [Cell(f"{i}", problem(max_tokens=16), strategy, 4, replicate=i) for i in range(120)]
    seen = set()
    for result in run(ToyEngine(told(letters), slots=64), cells):
        good = sum(r.text[0] == "g" for r in result.answer.pool)
        read = 13 * good + 4 * (4 - good) if good else 13 * 4
        assert result.cost.generated == read and (ended(result.answer.response.text) == "1") == (good > 0)
        seen.add(good)
    assert seen == {0, 1, 2, 3, 4}


def ragged(text):
    """Ends at any time; each letter is unlikely, so that long responses are poor."""
    return {"": 0.4} | dict.fromkeys("abcd", 0.15) if text else {"=": 1.0}


def test_what_cannot_win_is_given_up_and_the_answer_stays_that_of_best_of_n():
    exact = functools.partial(early_stopping, threshold=None, every=1)
    both = []
    for strategy in (best_of_n, exact):
        cells = [Cell(f"{i}", problem(max_tokens=8), strategy, 6, replicate=i) for i in range(150)]
        both.append(run(ToyEngine(told(ragged), slots=64), cells))
    assert [r.answer.response for r in both[0]] == [r.answer.response for r in both[1]]
    spent = [sum(r.cost.generated for r in results) for results in both]
    assert spent[1] < 0.85 * spent[0]


def test_the_ceiling_is_a_mean_with_certain_tokens_up_to_a_full_length():
    assert ceiling(P, response("a", "length", 3, logprobs=(-1.0, -2.0, -3.0))) == pytest.approx(-0.5)
    assert ceiling(P, response("a", "length", 3)) == 0.0


def test_finished_responses_vote_where_asked():
    table = {"a=1": 0.5, "b=2": 0.4, "c=2": 0.4}
    program = early_stopping(P, 3, rng(), scored(table), vote=True)
    assert play(program, [response(text) for text in table])[1].response.text == "b=2"


@pytest.mark.parametrize(("loss", "threshold"), [(0.0, 0.2), (0.24, 0.2), (0.25, 0.3), (0.5, 0.6), (0.75, math.inf)])
def test_a_learned_threshold_loses_at_most_its_share_of_the_right(loss, threshold):
    lowest, right = [0.3, 0.1, 0.2, 0.6, 0.25, math.inf], [True, False, True, True, False, True]
    assert learned(lowest, right, loss) == threshold
    assert stops(lowest, right, threshold).lost <= loss
    tighter = np.nextafter(threshold, math.inf)
    assert threshold == math.inf or stops(lowest, right, tighter).lost > loss


def test_what_a_threshold_does():
    lowest, right = [0.1, 0.2, 0.3, 0.4, 0.5], [False, True, False, False, True]
    assert stops(lowest, right, 0.35) == (2 / 3, 2 / 3, 1 / 2)
    nothing = stops(lowest, right, 0.0)
    assert math.isnan(nothing.precision) and nothing[1:] == (0.0, 0.0)


def test_nothing_is_learned_without_right_responses():
    with pytest.raises(ValueError, match="needs right responses"):
        learned([0.5], [False])


def test_running_scores_are_geometric_means_at_each_look_before_the_end():
    logprobs = [math.log(p) for p in (0.5, 0.5, 0.125, 0.125, 1.0)]
    assert running(logprobs, 2) == pytest.approx([0.5, 0.25])
    assert running(logprobs[:4], 2) == pytest.approx([0.5]) and running(logprobs, 5) == []
