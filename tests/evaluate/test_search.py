"""What searches have in common: pure functions, and their accuracy on chains against independent simulations."""

import functools
import math

import numpy as np
import pytest
from chains import SHORT as P
from chains import response
from laws import repeated, right, within
from played import play, rng
from toy import told
from walks import BLIND, STEPS, accuracy, judge, near, sees, steps, walked

from extratime.evaluate.algorithms.search import affordable, allot, distinct, probabilities, root, together
from extratime.evaluate.strategies.beam_search import beam_search
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.dvts import dvts
from extratime.evaluate.strategies.particle_filter import particle_filter
from extratime.evaluate.strategies.rebase import rebase
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.strategies.weighted_vote import weighted_vote
from extratime.evaluate.verifiers.reward_model import reward_model


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


def test_prefixes_go_on_together_as_far_as_each_of_them_can_still_be_finished():
    """Full lengths of twelve; whatever the others read, one of them has to be left with twelve less its own."""
    three = [response("ab", "pause"), response("abcd", "pause"), response("ab", "pause")]
    assert together(P, three, 28, 1) == (three, None)  # 10 + 8 + 10
    assert together(P, three, 26, 1) == (three, 11)  # 26 − 12 + 8 = 2 · 11: the others read at most 9 + 7
    assert together(P, three, 26, 7) == (three, 11) and together(P, three, 26, 8) == (three[:2], None)
    assert together(P, three, 13, 1) == (three[:2], 7) and together(P, three, 10, 1) == (three[:1], None)
    draw = np.random.default_rng(0)
    for _ in range(300):
        some = [response("x" * int(n), "pause") for n in draw.integers(0, 12, draw.integers(1, 6))]
        left = int(draw.integers(12 - min(r.n_tokens for r in some), 60))
        kept, level = together(P, some, left, int(draw.integers(1, 6)))
        reads = [(level or 12) - r.n_tokens for r in kept]
        assert 1 <= len(kept) <= len(some) and all(sum(reads) - n + 12 - r.n_tokens <= left or len(kept) == 1
                                                   for n, r in zip(reads, kept, strict=True))  # fmt: skip


def test_distinct_completions_keep_the_earlier_one():
    found = [response("a", "pause", path=i) for i in range(2)] + [response("a"), response("b"), response("a")]
    assert distinct(found) == [found[0], found[2], found[3]]


CHAIN = {
    (3, 0.5, 4): {"rebase": 0.96, "beam": 0.92, "dvts": 0.82, "particles": 0.95, "best": 0.40, "majority": 0.13},
    (3, 0.5, 8): {"rebase": 1.0, "beam": 0.995, "dvts": 0.97, "particles": 1.0, "best": 0.63, "majority": 0.14},
    (1, 1, 4): {"rebase": 0.85, "beam": 0.81, "best": 0.33},
    (1, 1, 8): {"rebase": 0.99, "beam": 0.97, "best": 0.47},
}
"""Accuracy by how well steps are seen (mu, sigma) and by width."""
ON_CHAINS = {
    "rebase": functools.partial(rebase, balance=0.2),
    "beam": functools.partial(beam_search, width=2),
    "dvts": functools.partial(dvts, width=2),
    "particles": particle_filter,
    "best": best_of_n,
    "majority": self_consistency,
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
    options = {} if name == "majority" else {"verify": sees(mu, sigma)}
    results = walked(ON_CHAINS[name], width, runs=200, **options)
    assert near(accuracy(results), CHAIN[sight][name], 200) and steps(results) == STEPS * width


@pytest.mark.slow
def test_balanced_search_is_worth_four_times_the_samples():
    seen = walked(rebase, 8, runs=300, verify=sees(3, 0.5), balance=0.2)
    sampled = walked(best_of_n, 32, runs=300, verify=sees(3, 0.5))
    assert accuracy(seen) >= 0.95 and accuracy(seen) >= accuracy(sampled) - 0.02
    assert near(accuracy(sampled), 0.98, 300) and steps(sampled) == 4 * steps(seen)


@pytest.mark.slow
def test_beams_of_four_and_particles_walk_the_chain_and_know_nothing_of_a_blind_score():
    """Particles within 3 points of one response, which catches answers that leak."""
    beams = walked(beam_search, 8, runs=300, width=4, verify=sees(3, 0.5))
    assert near(accuracy(beams), 0.99, 300)
    blind = accuracy(walked(particle_filter, 8, runs=1000, verify=BLIND))
    assert abs(blind - 0.7**STEPS) <= 0.03


@pytest.mark.slow
def test_rewards_that_know_nothing_add_next_to_nothing():
    """Shared prefixes agree more often: a little above the majority vote, which is a little above one response."""
    blind = accuracy(walked(rebase, 8, runs=500, verify=BLIND, balance=0.2))
    assert near(blind, 0.19, 500) and blind <= accuracy(walked(self_consistency, 8, runs=500)) + 0.1


def two_lengths(text):
    """The answer 1 at once, or two steps more for the answer 2: equally often."""
    if "=" in text:
        return {"": 1.0}
    return (
        {"s\n": 0.5, "l\n": 0.5}
        if not text
        else {"=1": 1.0}
        if text == "s\n"
        else {"=2": 1.0}
        if text == "l\nl\n"
        else {"l\n": 1.0}
    )


@pytest.mark.parametrize("strategy", [functools.partial(beam_search, width=1), rebase, particle_filter])
def test_short_responses_do_not_win_ties_because_they_end_first(strategy):
    """Of two answers that tie the first drawn is right half the time; the first to end would be in three quarters."""
    results = repeated(functools.partial(strategy, verify=judge(lambda r: 0.5)), 2, told(two_lengths), max_tokens=6)
    assert within(right(results), 0.5)


@pytest.mark.parametrize(
    ("aggregate", "best", "voted"), [("min", "c=B", "c=B"), ("last", "c=B", "c=B"), ("mean", "c=B", "a=A")]
)
def test_scores_and_votes_of_step_rewards_by_hand(aggregate, best, voted):
    """Votes for A and B: 0.6 and 0.7 by the minimum and by the last, 1.05 and 0.75 by the mean."""
    pool, rewards = [response(x) for x in ("a=A", "b=A", "c=B")], [(0.9, 0.2), (0.6, 0.4), (0.8, 0.7)]
    verify = functools.partial(reward_model, aggregate=aggregate)
    for strategy, answer in (best_of_n, best), (weighted_vote, voted), (self_consistency, "a=A"):
        options = {} if strategy is self_consistency else {"verify": verify}
        replies = [pool] if strategy is self_consistency else [pool, rewards]
        assert play(strategy(P, 3, rng(), **options), *replies)[1].response.text == answer
