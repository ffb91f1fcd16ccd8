"""Confidence of tokens, groups and responses, and who votes by it or is broken off."""

import functools
import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
from laws import outcomes, pooled, repeated, right, within
from played import P, response, rng
from toy import told

from extratime.evaluate.algorithms.confidence import bar, confidence, groups
from extratime.evaluate.strategies.deepconf import deepconf
from extratime.evaluate.strategies.deepconf_online import deepconf_online
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.models.request import fail

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


def test_a_tenth_of_the_groups_is_rounded_down_but_one_at_least():
    sure = [-float(i) for i in range(19)]
    assert math.log(confidence(sure, "bottom", 1)) == pytest.approx(-18.0)
    assert math.log(confidence([*sure, -19.0], "bottom", 1)) == pytest.approx(-(19 + 18) / 2)


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
    pool = traced(("a", [-0.1]), ("b", [-0.1]), ("c=1", [-0.5]), ("d=2", [-0.6]), ("e=2", [-0.6]))
    pool.append(fail(response(""), "no"))
    answer = pooled(deepconf(P, 6, rng()), pool)
    assert answer.response.text == "c=1" and answer.weights[3:] == (0.0, 0.0, 0.0)


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


def test_at_the_bar_a_response_is_read_on_and_votes():
    """The bar is e^-2; the groups of d are at it, those of e a hair below."""
    below = -2.0 - 1e-9
    paths = [*WARM, ("d=2", [-2.0] * 4), ("e=2", [below] * 4)]
    read, answer = online(paths, 5, 3, keep=0.5, window=2, consensus=2.0, chunk=1)
    assert [n for step in read[1:] for name, n in step if name == "d"] == [1, 2, 3, 4]
    assert [n for step in read[1:] for name, n in step if name == "e"] == [1, 2]
    assert [w > 0 for w in answer.weights] == [True, True, False, True, False]


def test_an_unsure_group_in_the_middle_of_a_chunk_breaks_off_too():
    paths = [*WARM, ("d=1", [-1, -9, -1, -1, -1, -1])]
    read, answer = online(paths, 4, 3, keep=0.5, window=2, consensus=2.0, chunk=4)
    assert read[1:] == [[("d", 4)]] and answer.weights[3] == 0.0


def test_a_consensus_of_one_is_met_where_all_agree():
    agreeing = [("a=1", [-1.0] * 4), ("b=1", [-2.0] * 4), ("c=2", [-3.0] * 4)]
    assert len(online(agreeing, 9, 3, keep=0.5, window=2, consensus=1.0)[1].pool) == 3
    later = [*WARM, ("d=1", [-1.0] * 4), ("e=1", [-1.0] * 4)]
    assert len(online(later, 5, 3, keep=0.5, window=2, consensus=1.0, chunk=12)[1].pool) == 5


def test_the_last_batch_takes_what_is_left():
    paths = [*WARM, *[(f"{name}=1", [-1.0] * 4) for name in "defgh"]]
    read, answer = online(paths, 6, 3, keep=0.5, window=2, consensus=2.0, batch=2, chunk=12)
    assert [len(step) for step in read] == [3, 2, 1] and len(answer.pool) == 6


def test_a_budget_below_the_warm_up_is_all_warm_up():
    program = deepconf_online(P, 3, rng())
    assert next(program).n == 3
    with pytest.raises(StopIteration):
        program.send(traced(("a=1", [-1.0]), ("b=2", [-2.0]), ("c=2", [-3.0])))


def test_failed_responses_of_the_warm_up_do_not_lower_the_bar():
    program = deepconf_online(P, 4, rng(), warmup=3, keep=0.5, window=2, consensus=2.0, chunk=2)
    next(program)
    bad = [fail(response("", n_tokens=0), "no")] * 2
    assert program.send([*traced(("a=1", [-1.0] * 4)), *bad]).n == 1
    with pytest.raises(StopIteration) as stop:
        program.send([replace(response("b", "length", 2), logprobs=(-2.0, -2.0))])
    assert [w > 0 for w in stop.value.value.weights] == [True, False, False, False]
    assert stop.value.value.response.text == "a=1", "below e^-1, the bar of the one that did not fail"


def test_what_is_broken_off_or_unparsed_never_wins_however_sure_it_is():
    paths = [("a=1", [-3.0] * 4), ("b", [0.0] * 4), ("c=2", [-4.0] * 4)]
    for keep in (0.1, 0.9):
        _, answer = online(paths, 3, 3, keep=keep, window=2)
        assert answer.response.text == "a=1"


def test_options_have_the_published_values():
    offline, live = (inspect.signature(strategy).parameters for strategy in (deepconf, deepconf_online))
    assert [offline[name].default for name in ("measure", "keep", "window")] == ["tail", 0.1, 2048]
    assert [live[name].default for name in ("warmup", "keep", "window", "consensus")] == [16, 0.1, 2048, 0.95]


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
