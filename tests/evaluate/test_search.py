"""Search with process rewards: each strategy's own rule, and its accuracy on chains whose law is known."""

import functools
import hashlib
import math
from statistics import NormalDist

import numpy as np
import pytest
from toy import ToyEngine, problem, run, told

from extratime.evaluate.schedule import Cell
from extratime.evaluate.search import affordable, allot, distinct, probabilities, root
from extratime.evaluate.strategies.beam_search import beam_search
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.dvts import dvts
from extratime.evaluate.strategies.rebase import children, rebase
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.models.request import Completion

P = problem(max_tokens=12)
STEPS = 6


def response(text, finish="eos", n_tokens=None, **fields):
    return Completion(P.prompt, text, len(text) if n_tokens is None else n_tokens, finish=finish, **fields)


def paused(*texts):
    return [response(text, "pause") for text in texts]


def scored(table):
    """A verifier that looks a response up by its text, and remembers what it was asked."""

    def verify(problem, responses):
        yield from ()
        verify.asked.append([r.text for r in responses])
        return [table(r.text) if callable(table) else table[r.text] for r in responses]

    verify.asked = []
    return verify


def play(program, *replies):
    """Answer a program's requests in turn: the requests, and what it returned."""
    asked = [next(program)]
    for i, reply in enumerate(replies):
        try:
            asked.append(program.send(reply(asked[-1]) if callable(reply) else reply))
        except StopIteration as stop:
            assert i == len(replies) - 1, "it returned before all replies were given"
            return asked, stop.value
    raise AssertionError(f"it still wants {asked[-1]}")


def rng():
    return np.random.default_rng(0)


# --- the chain: six steps, each right with probability p; an error is never made good


def chain(p, hack=0.0, length=STEPS):
    """Steps "r" and "w", or "h", which fools a verifier; the last one is the answer, and nothing follows it."""

    def law(text):
        if "=" in text:
            return {"": 1.0}
        lost = not set(text) <= {"r", "\n"}
        if text.count("\n") < length - 1:
            return {"r\n": p * (1 - hack), "w\n": (1 - p) * (1 - hack), "h\n": hack}
        wrong = {f"=w{i}": 0.1 for i in range(10)}
        right = {} if lost else {"=1": p * (1 - hack)}
        lies = {"=h" + answer[1:]: hack * q for answer, q in wrong.items()} if hack else {}
        return right | {answer: q * (1 - p * (not lost)) * (1 - hack) for answer, q in wrong.items()} | lies

    return told(law)


def lost(text):
    return bool(set(text) & {"w", "h"})


def noise(r):
    """A standard normal that hangs on the node alone, so that equal prefixes are seen with different eyes."""
    name = hashlib.blake2b(repr((r.text, r.path)).encode(), digest_size=4).digest()
    return NormalDist().inv_cdf((int.from_bytes(name, "big") + 0.5) / 2**32)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def judge(rate):
    """A verifier that scores one response by itself."""

    def verify(problem, responses):
        yield from ()
        return [rate(r) for r in responses]

    return verify


def sees(mu, sigma):
    return judge(lambda r: sigmoid((-mu if lost(r.text) else mu) + sigma * noise(r)))


BLIND = judge(lambda r: sigmoid(noise(r)))


def simulate(strategy, budget, law, runs, max_tokens=STEPS + 1):
    cells = [Cell(f"{i}", problem(max_tokens=max_tokens), strategy, budget, replicate=i) for i in range(runs)]
    return run(ToyEngine(law, slots=512), cells)


def accuracy(results):
    return sum(result.answer.response.text.endswith("=1") for result in results) / len(results)


def steps(results):
    """Mean steps that a cell generates: its tokens without those that end a response."""
    return sum(r.cost.generated - sum(c.finish == "eos" for c in r.answer.pool) for r in results) / len(results)


def near(seen, p, runs, published=2000):
    """Whether an accuracy agrees with a published one, both being estimates, to 3.5 standard errors."""
    return abs(seen - p) <= 3.5 * math.sqrt(max(p * (1 - p), 0.004) * (1 / runs + 1 / published)) + 0.005


def walked(strategy, budget, law=None, runs=150, **options):
    return simulate(functools.partial(strategy, **options), budget, law or chain(0.7), runs)


# --- pure functions


def test_an_allotment_rounds_up_the_greatest_first():
    assert allot([0.5, 0.25, 0.25], 4) == [2, 1, 1] and allot([0.2, 0.5, 0.3], 3) == [0, 2, 1]
    assert allot([0.0, 1.0], 5) == [0, 5] and allot([3.0, 0.0, 3.0], 3) == [2, 0, 1] and allot([1.0], 0) == [0]


def test_scores_as_probabilities():
    assert probabilities([0.2, 3.0, math.nan, -math.inf, 0.0, math.inf]) == [0.2, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert probabilities([-1.0, math.nan, 0.5, -math.inf]) == [math.exp(-1), 0.0, 1.0, 0.0]
    assert probabilities([]) == []


def test_what_can_be_read_to_its_end():
    assert affordable(P, root(P), 3, 0) == 3 and affordable(P, root(P), 3, 1) == 2
    assert affordable(P, response("abcdefgh", "pause"), 2, 12) == 3
    assert affordable(P, response("a", "pause"), 2, 14) == 0


def test_distinct_completions_keep_the_earlier_one():
    found = [response("a", "pause", path=i) for i in range(2)] + [response("a"), response("b"), response("a")]
    assert distinct(found) == [found[0], found[2], found[3]]


# --- reward-balanced search


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
        ([5000.0, 4999.9], 3, 0.1, [3, 0]),
    ],
)
def test_children_are_shared_out_by_softmax(rewards, n, balance, expected):
    assert children(rewards, balance, n) == expected


def test_the_width_is_kept_and_the_better_node_gets_no_less():
    draw = np.random.default_rng(1)
    for _ in range(3000):
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
    assert [r.text for r in answer.pool] == ["a=1", "bz=2", "bx=3", "by=3"]
    assert answer.response.text == "bx=3" and answer.weights == (1.0, 0.9, 0.6, 0.6)


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


CHAIN = {
    (3, 0.5, 4): {"rebase": 0.96, "beam": 0.92, "dvts": 0.82, "best": 0.40},
    (3, 0.5, 8): {"rebase": 1.0, "beam": 0.995, "dvts": 0.97, "best": 0.63},
    (1, 1, 4): {"rebase": 0.85, "beam": 0.81, "best": 0.33},
    (1, 1, 8): {"rebase": 0.99, "beam": 0.97, "best": 0.47},
}
"""Accuracy by how well steps are seen (mu, sigma) and by width."""
ON_CHAINS = {
    "rebase": functools.partial(rebase, balance=0.2),
    "beam": functools.partial(beam_search, width=2),
    "dvts": functools.partial(dvts, width=2),
    "best": best_of_n,
}


@pytest.mark.parametrize(
    ("sight", "name"),
    [
        pytest.param(sight, name, marks=() if sight[2] == 4 else pytest.mark.slow)
        for sight in CHAIN
        for name in CHAIN[sight]
    ],
)
def test_the_chain_is_walked_as_often_as_in_independent_simulations(sight, name):
    mu, sigma, width = sight
    results = walked(ON_CHAINS[name], width, runs=200, verify=sees(mu, sigma))
    assert near(accuracy(results), CHAIN[sight][name], 200) and steps(results) == STEPS * width


@pytest.mark.slow
def test_balanced_search_is_worth_four_times_the_samples():
    seen = walked(rebase, 8, runs=300, verify=sees(3, 0.5), balance=0.2)
    sampled = walked(best_of_n, 32, runs=300, verify=sees(3, 0.5))
    assert accuracy(seen) >= 0.95 and accuracy(seen) >= accuracy(sampled) - 0.02
    assert near(accuracy(sampled), 0.98, 300) and steps(sampled) == 4 * steps(seen)


@pytest.mark.slow
def test_rewards_that_know_nothing_add_next_to_nothing():
    """Shared prefixes agree more often: a little above the majority vote, which is a little above one response."""
    blind = accuracy(walked(rebase, 8, runs=500, verify=BLIND, balance=0.2))
    assert near(blind, 0.19, 500) and blind <= accuracy(walked(self_consistency, 8, runs=500)) + 0.1
