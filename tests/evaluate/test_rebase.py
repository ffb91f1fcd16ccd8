"""Reward-balanced search: how children are shared out, and what becomes of the width."""

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from chains import PROBLEM, Model, paused, response
from chains import SHORT as P
from played import play, rng, scored
from toy import told
from walks import STEPS, judge, sees, simulate, walked

from extratime.evaluate.strategies.rebase import children, rebase
from extratime.evaluate.strategies.self_consistency import self_consistency


@pytest.mark.parametrize(
    ("rewards", "n", "balance", "expected"),
    [
        ([0.9, 0.8, 0.5, 0.1], 8, 0.1, [6, 2, 0, 0]),
        ([0.9, 0.8, 0.5, 0.1], 8, 0.2, [5, 3, 0, 0]),  # rounding each by itself gives 5, 3, 1, 0
        ([0.9, 0.8, 0.5, 0.1], 16, 0.2, [10, 5, 1, 0]),
        ([0.1, 0.9, 0.5, 0.8], 16, 0.2, [0, 10, 1, 5]),
        ([0.5] * 4, 6, 0.1, [2, 2, 1, 1]),
        ([0.5] * 4, 8, 0.1, [2, 2, 2, 2]),
        ([0.2, 0.3, 0.1], 9, 1e-6, [0, 9, 0]),
        ([math.nan, 0.5, -math.inf, 0.5], 4, 0.1, [0, 2, 0, 2]),
        ([math.nan, -math.inf, math.nan], 4, 0.1, [2, 1, 1]),
        ([0.3], 7, 0.1, [7]),
        ([0.1, 0.9, 0.8, 0.7], 2, 0.2, [0, 2, 0, 0]),
        ([0.1, 0.9, 0.8, 0.7], 2, 10.0, [0, 1, 1, 0]),
        ([5000.0, 4999.9], 3, 0.1, [3, 0]),
    ],
)
def test_children_are_shared_out_by_softmax(rewards, n, balance, expected):
    assert children(rewards, balance, n) == expected


def test_the_width_is_kept_and_the_better_node_gets_no_less():
    draw = np.random.default_rng(1)
    for _ in range(10000):
        rewards, n = draw.random(draw.integers(1, 20)), int(draw.integers(1, 65))
        shares = children(rewards, 10 ** draw.uniform(-6, 6), n)
        ranked = [shares[i] for i in np.argsort(-rewards)]
        assert sum(shares) == n and min(shares) >= 0 and ranked == sorted(ranked, reverse=True)
        even, flat = children([0.4] * len(rewards), 0.1, n), children(rewards, 1e6, n)
        assert max(even) - min(even) <= 1 and max(flat) - min(flat) <= 2
    assert children(range(8), 1e9, 17) == [1, 2, 2, 2, 2, 2, 3, 3]


def test_finished_nodes_leave_the_tree_and_take_their_place_with_them():
    verify = scored(
        {"b": 0.9, "c": 0.1, "d": 0.1, "bx": 0.2, "by": 0.2, "a=1": 1.0, "bz=2": 0.9, "bx=3": 0.6, "by=3": 0.6}
    )
    asked, answer = play(
        rebase(P, 4, rng(), verify, balance=0.1),
        [response("a=1"), *paused("b", "c", "d")],
        [*paused("bx"), response("bz=2"), *paused("by")],
        [response("bx=3"), response("by=3")],
        lambda ask: list(ask.along),
    )
    assert asked[0].n == 4 and asked[0].pause == asked[1].pause == asked[2].pause == ("\n",)
    assert [[r.text for r in ask.along] for ask in asked[1:3]] == [["b", "b", "b"], ["bx", "by"]]
    assert verify.asked[:2] == [["b", "c", "d"], ["bx", "by"]]
    assert [r.text for r in answer.pool] == ["a=1", "bx=3", "bz=2", "by=3"]
    assert answer.response.text == "bx=3" and answer.weights == (1.0, 0.6, 0.9, 0.6)


def lengths(text):
    """Up to four steps; an end is likelier after b."""
    if text and not text.endswith("\n"):
        return {"": 1.0}
    end = 1.0 if text.count("\n") == 4 else {"": 0.0, "a\n": 0.2, "b\n": 0.6}[text[-2:]]
    return {"=1": end, "a\n": (1 - end) / 2, "b\n": (1 - end) / 2}


@pytest.mark.parametrize("budget", [1, 5, 8])
def test_at_each_depth_finished_and_unfinished_nodes_fill_the_width(budget):
    model, source = Model(lengths, lambda text: 1.0, 6), rng()
    for _ in range(60):
        verify = scored(lambda text: float(text.endswith("a\n")))
        answer = model.drive(rebase(PROBLEM, budget, source, verify), source)
        *depths, leaves = [[text.endswith("\n") for text in asked] for asked in verify.asked]
        assert all(map(all, depths)) and not any(leaves) and len(answer.pool) == len(leaves) == budget
        assert all(len(b) <= len(a) for a, b in itertools.pairwise([leaves, *depths]))


def test_without_a_preference_lengths_and_ties_are_those_of_sampling():
    blind, law = judge(lambda r: 0.5), told(lengths)
    ours = simulate(functools.partial(rebase, verify=blind), 5, law, 40)
    assert [r.answer for r in ours] == [
        replace(r.answer, why=o.answer.why, weights=o.answer.weights)
        for r, o in zip(simulate(self_consistency, 5, law, 40), ours, strict=True)
    ]


def test_leaves_without_an_answer_do_not_vote():
    verify = scored({"a": 0.9, "b": 0.9, "ax": 1.0, "ay=2": 0.1})
    _, answer = play(
        rebase(P, 2, rng(), verify, balance=1e-3),
        paused("a", "b"),
        [response("ax", "length", 12), response("ay=2")],
        lambda ask: list(ask.along),
    )
    assert answer.response.text == "ay=2" and len(answer.pool) == 2


def test_after_the_last_round_every_node_is_read_to_its_end():
    def longer(ask):
        return paused(*(r.text + "x" for r in ask.along))

    done = [response("a=1"), response("b=2")]
    asked, answer = play(
        rebase(P, 2, rng(), scored(lambda text: 0.5), rounds=2), paused("a", "b"), longer, longer, done
    )
    assert [ask.pause for ask in asked] == [("\n",)] * 3 + [()] and answer.response.text == "a=1"


@pytest.mark.parametrize("value", [0.5, 0.0, math.nan, -math.inf])
def test_without_a_preference_a_balanced_tree_is_plain_sampling(value):
    results = walked(rebase, 4, runs=30, verify=judge(lambda r: value))
    plainly = walked(self_consistency, 4, runs=30)
    assert [r.answer.pool for r in results] == [r.answer.pool for r in plainly]
    assert [r.answer.response for r in results] == [r.answer.response for r in plainly]


def test_a_tree_of_fixed_width_reads_as_much_as_sampling():
    for result in walked(rebase, 8, runs=50, verify=sees(1, 1), balance=0.2):
        assert len(result.answer.pool) == 8 and result.cost.generated == 8 * (STEPS + 1)
