"""Beam search, its subtrees and its lookahead: each rule, and accuracy where an error is seen late or not at all."""

import functools
import math
from collections import Counter

import pytest
from chains import SHORT as P
from chains import paused, response
from played import play, rng, scored
from toy import told
from walks import BLIND, STEPS, accuracy, chain, fooled, judge, lost, near, noise, sees, sigmoid, simulate, walked

from extratime.evaluate.strategies.beam_search import beam_search
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.dvts import dvts
from extratime.evaluate.strategies.lookahead_search import ahead, lookahead_search
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.strategies.weighted_vote import weighted_vote
from extratime.models.request import Sample, fail


def tails(text):
    """Four short steps or one long one, which the verifier does not like; whatever remains of twelve tokens."""
    if "=" in text:
        return {"": 1.0}
    last = text.rpartition("\n")[2]
    if last:
        return {"x\n" if len(last) == 8 else "x": 1.0}
    return {"r\n": 0.5, "x": 0.5} if text.count("\n") < 10 else {"=1": 1.0}


@pytest.mark.parametrize("budget", [1, 2, 4, 7])
def test_what_was_pruned_never_takes_the_end_from_all_that_were_kept(budget):
    """Twelve tokens a response: ten short steps, the answer, the end. Pruned siblings took nine tokens a step."""
    short = judge(lambda r: -math.inf if "x" in r.text else 1.0)
    for search in (beam_search, lookahead_search, dvts):
        for result in simulate(functools.partial(search, width=2, verify=short), budget, told(tails), 60, 12):
            assert result.answer.response.finish in ("eos", "length") and result.cost.generated <= 12 * budget
            assert any(r.finish in ("eos", "length") for r in result.answer.pool)


def foresight(p=0.6):
    """The chain, and a verifier that sees an error one step late, but all of a whole response."""

    def rate(r):
        seen = r.text if "=" in r.text else r.text.rstrip("\n").rpartition("\n")[0]
        return sigmoid((-3 if lost(seen) else 3) + 0.5 * noise(r))

    return chain(p, wordings=20), judge(rate)


def test_a_prefix_is_scored_where_a_greedy_step_takes_it_and_read_on_by_itself():
    verify = scored({"ax": 0.9, "by": 0.1, "a=1": 0.5, "a=2": 0.6})
    asked, answer = play(
        lookahead_search(P, 4, rng(), 1, 2, verify),
        paused("a", "b"),
        paused("ax", "by"),
        [response("a=1"), response("a=2")],
        lambda ask: list(ask.along),
    )
    first, rollout, second, _ = asked
    assert first == Sample(P.prompt, 2, pause=("\n",))
    assert rollout == Sample(P.prompt, 0, 0, ("\n",), 1 + 12, tuple(paused("a", "b")))
    assert second == Sample(P.prompt, 0, None, ("\n",), None, tuple(paused("a", "a")))
    assert verify.asked == [["ax", "by"], ["a=1", "a=2"]] and answer.response.text == "a=2"
    assert [r.text for r in answer.pool] == ["a=1", "a=2"]


def test_a_rollout_has_so_many_steps_or_ends_with_the_response():
    verify = scored(lambda text: 0.5)
    program = ahead(verify, 2, ("\n",), 99)(P, paused("a", "b"))
    tips = [response("a=1"), *paused("by")]
    asked, scores = play(program, tips, [tips[0], *paused("byz")])
    assert [ask.along for ask in asked] == [tuple(paused("a", "b")), tuple(tips)]
    assert verify.asked == [["a=1", "byz"]] and scores == [0.5, 0.5]


def test_equal_prefixes_share_a_rollout_and_one_alone_has_none():
    verify = scored(lambda text: 0.5)
    asked, _ = play(ahead(verify, 1, ("\n",), 99)(P, paused("a", "b", "a")), paused("ax", "by"))
    assert [r.text for r in asked[0].along] == ["a", "b"] and verify.asked == [["ax", "by", "ax"]]
    for alone in (paused("a", "a"), [*paused("a"), response("b=1")]):
        with pytest.raises(StopIteration):
            next(ahead(verify, 1, ("\n",), 99)(P, alone))
        assert verify.asked[-1] == [r.text for r in alone]


def test_where_a_rollout_failed_the_prefix_itself_is_scored():
    verify = judge(lambda r: -math.inf if r.finish == "failed" else len(r.text))
    rollouts = [fail(response("a"), "no"), *paused("by")]
    assert play(ahead(verify, 1, ("\n",), 99)(P, paused("a", "b")), rollouts)[1] == [1, 2]


def test_rollouts_share_what_tokens_they_have():
    look = ahead(scored(lambda text: 0.5), 1, ("\n",), 5)
    for prefixes, limit, tips in (
        (("a", "bcd"), 3, ("axx", "bcd")),
        (("e", "f"), 2, ("ex", "fx")),
        (("e", "f"), 1, "ef"),
    ):
        [ask], _ = play(look(P, paused(*prefixes)), paused(*tips))
        assert ask.max_tokens == limit


@pytest.mark.parametrize("budget", [4, 8])
def test_rollouts_that_never_end_take_nothing_from_the_beams(budget):
    """Three rollouts of nine tokens a beam, where the budget has twelve; beams of uneven steps may hardly be cut."""

    def babble(text):
        if "=" in text:
            return {"": 1.0}
        return {"=1": 0.5, "=2": 0.5} if text.count("\n") == 3 else {"x": 0.34, "r\n": 0.33, "s\n": 0.33}

    search = functools.partial(lookahead_search, width=2, verify=BLIND)
    results = simulate(search, budget, told(babble), 60, max_tokens=12)
    ends = Counter(r.finish for result in results for r in result.answer.pool)
    assert ends["cut"] <= 0.02 * ends.total() and all(result.cost.generated <= 12 * budget for result in results)


def test_a_beam_with_lookahead_costs_two():
    """Six steps and an end, and after all but the last a rollout of one step, the last with an end: 7 + 6 tokens."""
    results = walked(lookahead_search, 8, chain(0.6, wordings=100), 25, verify=sees(3, 0.5))
    whole = 4 * (STEPS + 1 + STEPS)
    assert max(result.cost.generated for result in results) == whole <= 8 * (STEPS + 1)
    assert sum(result.cost.generated for result in results) >= 0.97 * 25 * whole


LATE = {(0, 4): 0.085, (1, 4): 0.865, (0, 8): 0.412, (1, 8): 0.992, (0, 16): 0.89, (1, 16): 1.0}
"""Accuracy by lookahead and number of beams."""


@pytest.mark.parametrize(
    ("steps", "beams"), [pytest.param(*at, marks=() if at[1] == 4 else pytest.mark.slow) for at in LATE]
)
def test_lookahead_makes_good_what_a_verifier_sees_late(steps, beams):
    """Two beams cost as much as one with lookahead: 0.89 against 0.992 at a budget of 16."""
    law, late = foresight()
    search = functools.partial(lookahead_search, lookahead=steps) if steps else beam_search
    results = walked(search, beams * (steps + 1), law, 150, verify=late)
    assert near(accuracy(results), LATE[steps, beams], 150)


@pytest.mark.slow
def test_lookahead_adds_nothing_to_a_verifier_that_sees_at_once():
    law = chain(0.6, wordings=20)
    plain = accuracy(walked(beam_search, 8, law, 200, verify=sees(3, 0.5)))
    assert accuracy(walked(lookahead_search, 16, law, 200, verify=sees(3, 0.5))) - plain <= 0.03


HACKED = {
    "beam": {(0.95, 4): 0.90, (0.95, 64): 0.38, (0.7, 4): 0.86, (0.7, 16): 0.75, (0.7, 64): 0.36}
    | {(0.45, 4): 0.48, (0.45, 16): 0.73, (0.45, 64): 0.38},
    "dvts": {(0.95, 4): 0.91, (0.95, 64): 1.0, (0.7, 4): 0.86, (0.7, 16): 0.99, (0.7, 64): 1.0}
    | {(0.45, 4): 0.50, (0.45, 16): 0.79, (0.45, 64): 1.0},
    "best": {(0.95, 4): 0.88, (0.95, 64): 0.19, (0.7, 4): 0.34, (0.7, 16): 0.54, (0.7, 64): 0.17}
    | {(0.45, 4): 0.03, (0.45, 16): 0.08, (0.45, 64): 0.07},
    "weighted": {(0.95, 4): 0.98, (0.95, 64): 1.0, (0.7, 4): 0.34, (0.7, 16): 0.53, (0.7, 64): 0.90}
    | {(0.45, 4): 0.03, (0.45, 16): 0.01, (0.45, 64): 0.0},
    "majority": {(0.95, 4): 0.926, (0.95, 64): 1.0, (0.7, 4): 0.120, (0.7, 16): 0.151, (0.7, 64): 0.232}
    | {(0.45, 4): 0.007, (0.45, 16): 0.0, (0.45, 64): 0.0},
}
"""Accuracy by p and budget where one step in two hundred fools the verifier for good; ties go to the first answer."""
FOOLED = {
    "beam": beam_search,
    "dvts": dvts,
    "best": best_of_n,
    "weighted": weighted_vote,
    "majority": self_consistency,
}


@pytest.mark.parametrize(
    ("name", "p", "budget"),
    [pytest.param(n, *at, marks=() if at[1] == 4 else pytest.mark.slow) for n in HACKED for at in HACKED[n]],
)
def test_more_beams_find_what_fools_the_verifier_and_subtrees_do_not(name, p, budget):
    runs = 60 if budget == 64 else 150
    options = {} if name == "majority" else {"verify": judge(fooled)}
    results = walked(FOOLED[name], budget, chain(p, hack=0.005), runs, **options)
    assert near(accuracy(results), HACKED[name][p, budget], runs)
