"""Closed forms: the accuracy that each strategy must have on a model whose law is known.

Accuracies come from fixed seeds and are held to exact binomial bounds: a right strategy fails none of them, one that
is off by ten points does; tests of paths, choices and counts, one by one, see smaller faults. Expectations are closed
forms or sums over all outcomes, written here anew.
"""

import functools
import itertools
import math
from collections import Counter

import pytest
from laws import answers, elected, repeated, right, within
from toy import ToyEngine, ended, p_value, problem, run, told

from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.adaptive_best_of_n import adaptive_best_of_n
from extratime.evaluate.strategies.beam_search import beam_search
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.dvts import dvts
from extratime.evaluate.strategies.first_finish import first_finish
from extratime.evaluate.strategies.particle_filter import particle_filter
from extratime.evaluate.strategies.pruned_best_of_n import pruned_best_of_n
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.strategies.weighted_vote import weighted_vote
from extratime.evaluate.streams import Streams
from extratime.evaluate.verifiers.oracle import oracle


def test_the_bounds_are_tight():
    assert within(50, 0.2) and not within(75, 0.2) and not within(28, 0.2)


# --- independent responses


@pytest.mark.parametrize(("n", "p"), [(1, 0.4), (2, 0.4), (4, 0.3), (8, 0.1)])
@pytest.mark.parametrize("strategy", [best_of_n, weighted_vote, functools.partial(pruned_best_of_n, look=1, drop=0.0)])
def test_with_an_oracle_accuracy_is_pass_at_n(strategy, n, p):
    results = repeated(functools.partial(strategy, verify=oracle), n, answers({"1": p, "2": 1 - p}))
    assert within(right(results), 1 - (1 - p) ** n)


def chance(law, n, rule):
    """Probability that `rule` of n independent answers is "1", by summing over all outcomes."""
    total = 0.0
    for outcome in itertools.product(law, repeat=n):
        if rule(outcome) == "1":
            total += math.prod(law[answer] for answer in outcome)
    return total


@pytest.mark.parametrize("law", [{"1": 0.4, "2": 0.35, "3": 0.25}, {"1": 0.3, "2": 0.6, "3": 0.1}])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_self_consistency_has_the_law_of_the_plurality(law, n):
    assert within(right(repeated(self_consistency, n, answers(law))), chance(law, n, elected))


def test_plurality_law_by_hand():
    """Two answers, three votes: p³ + 3p²(1−p); ties among two votes go to the first: p."""
    law = {"1": 0.6, "2": 0.4}
    assert chance(law, 3, elected) == pytest.approx(0.6**3 + 3 * 0.6**2 * 0.4)
    assert chance(law, 2, elected) == pytest.approx(0.6)


def test_unparsed_responses_do_not_vote():
    law = {"1": 0.3, "2": 0.2, "": 0.5}

    def rule(outcome):
        return elected([vote for vote in outcome if vote] or [""])

    assert within(right(repeated(self_consistency, 5, answers(law))), chance(law, 5, rule))


def graded(scores):
    """A verifier that knows each answer's score."""

    def verify(problem, responses):
        yield from ()
        return [scores.get(ended(r.text) or "", 0.0) for r in responses]

    return verify


@pytest.mark.parametrize("scores", [{"1": 0.5, "2": 0.2, "3": 0.3}, {"1": 0.1, "2": 0.4, "3": 0.1}])
def test_weighted_vote_has_the_law_of_the_weighted_plurality(scores):
    law = {"1": 0.3, "2": 0.4, "3": 0.3}

    def rule(outcome):
        totals = {vote: scores[vote] * outcome.count(vote) for vote in outcome}
        return max(totals, key=totals.get)

    strategy = functools.partial(weighted_vote, verify=graded(scores))
    assert within(right(repeated(strategy, 5, answers(law))), chance(law, 5, rule))


def test_a_vote_with_weights_of_zero_is_the_majority():
    law = answers({"1": 0.4, "2": 0.35, "3": 0.25})
    plainly = [r.answer.response for r in repeated(self_consistency, 5, law, n=100)]
    for zero in (0.0, math.nan, -math.inf):
        strategy = functools.partial(weighted_vote, verify=graded(dict.fromkeys("123", zero)))
        assert [r.answer.response for r in repeated(strategy, 5, law, n=100)] == plainly


# --- one after the other


def test_adaptive_draws_stop_at_the_first_good_one():
    """Law of the number of draws: geometric, cut at the budget; and they are the first draws of best-of-N."""
    p, n = 0.3, 6
    law = answers({"1": p, "2": 1 - p})
    adaptive = functools.partial(adaptive_best_of_n, verify=oracle, schedule=None)
    results = repeated(adaptive, n, law)
    draws = {k: p * (1 - p) ** (k - 1) for k in range(1, n)} | {n: (1 - p) ** (n - 1)}
    assert p_value((len(r.answer.pool) for r in results), draws) > 1e-3
    assert within(right(results), 1 - (1 - p) ** n)
    for result, full in zip(results, repeated(functools.partial(best_of_n, verify=oracle), n, law), strict=True):
        used = len(result.answer.pool)
        assert result.answer.pool == full.answer.pool[:used]
        assert result.answer.response == full.answer.response
        assert result.cost.sequential == result.cost.generated == 2 * used


def test_a_threshold_out_of_reach_is_best_of_n():
    law = answers({"1": 0.3, "2": 0.7})
    adaptive = functools.partial(adaptive_best_of_n, verify=graded({"1": 0.8}), schedule=None)
    plainly = functools.partial(best_of_n, verify=graded({"1": 0.8}))
    left, right_ = (repeated(s, 5, law, n=100) for s in (adaptive, plainly))
    assert [r.answer.pool for r in left] == [r.answer.pool for r in right_]
    assert [r.answer.response for r in left] == [r.answer.response for r in right_]


# --- lengths and answers together

TRACES = {(3, "1"): 0.3 * 0.8, (3, "2"): 0.3 * 0.2, (5, "1"): 0.7 * 0.3, (5, "2"): 0.7 * 0.7}
"""Two lengths: short with probability 0.3 and then right in 0.8, long and right in 0.3."""


def trace(text):
    """A model of that law: "s" or "lll", the answer, the end."""
    if "=" in text:
        return {"": 1.0}
    states = {"": {"s": 0.3, "l": 0.7}, "s": {"=1": 0.8, "=2": 0.2}, "lll": {"=1": 0.3, "=2": 0.7}}
    return states.get(text, {"l": 1.0})


@pytest.mark.parametrize(("n", "k", "chunk"), [(1, 1, 1), (2, 1, 3), (4, 1, 1), (4, 1, 3), (4, 2, 16), (4, 4, 3)])
def test_first_finish_has_the_law_of_a_vote_of_the_shortest(n, k, chunk):
    def rule(outcome):
        cutoff = sorted(length for length, _ in outcome)[k - 1]
        return elected([answer for length, answer in outcome if length <= cutoff])

    results = repeated(functools.partial(first_finish, k=k, chunk=chunk), n, told(trace), max_tokens=6)
    assert within(right(results), chance(TRACES, n, rule))


def test_first_finish_by_hand():
    """With at most two responses a tie changes nothing: 0.8·(1 − 0.7²) + 0.3·0.7² = 0.555."""

    def rule(outcome):
        return elected([answer for length, answer in outcome if length == min(outcome)[0]])

    assert chance(TRACES, 2, rule) == pytest.approx(0.555)
    assert chance(TRACES, 1, rule) == pytest.approx(0.45)


def test_first_finish_reads_until_the_shortest_has_ended():
    """Tokens: all n responses as far as the shortest is long, and no further at chunk 1."""
    for result in repeated(functools.partial(first_finish, chunk=1), 4, told(trace), n=100, max_tokens=6):
        shortest = min(r.n_tokens for r in result.answer.pool)
        assert result.cost.generated == 4 * shortest and result.cost.sequential == shortest
        assert result.answer.response.n_tokens == shortest


def test_pruning_by_chance_is_best_of_what_is_left():
    law = answers({"1": 0.25, "2": 0.75})
    strategy = functools.partial(pruned_best_of_n, verify=oracle, look=1, random=True, drop=0.5)
    assert within(right(repeated(strategy, 8, law)), 1 - 0.75**4)


def test_pruning_by_a_sign_of_success_is_best_of_n():
    """The first letter tells the answer: what is pruned was wrong, if half is wrong."""

    def law(text):
        return {"": {"r": 0.25, "w": 0.75}, "r": {"=1": 1.0}, "w": {"=2": 1.0}}.get(text, {"": 1.0})

    def hope(problem, responses):
        yield from ()
        return [float(r.text.startswith("r")) for r in responses]

    strategy = functools.partial(pruned_best_of_n, verify=hope, look=1, drop=0.75)
    results = repeated(strategy, 8, told(law))
    assert within(right(results), 1 - 0.75**8)
    assert all(r.cost.generated == 8 + 2 * 2 for r in results)


# --- step by step

STEPS, P = 4, 0.6


def walk(text):
    """Steps that are each right with probability 0.6; the answer is 1 if all of them were."""
    if "=" in text:
        return {"": 1.0}
    if text.count("\n") == STEPS:
        return {"=2" if "w" in text else "=1": 1.0}
    return {"r\n": P, "w\n": 1 - P}


def exact(problem, responses):
    """A step verifier that sees every error, and leaves no hope after one."""
    yield from ()
    return [-math.inf if "w" in r.text else 0.5 for r in responses]


STEPWISE = {
    "beam_search": functools.partial(beam_search, width=4, verify=exact),
    "dvts": functools.partial(dvts, width=4, verify=exact),
    "particle_filter": functools.partial(particle_filter, verify=exact),
}


@pytest.mark.parametrize("name", STEPWISE)
def test_with_an_exact_step_verifier_each_step_is_a_best_of_n(name):
    """Four candidates a step, all of the same prefix or of right ones: (1 − 0.4⁴)^steps."""
    results = repeated(STEPWISE[name], 4, told(walk), max_tokens=8)
    assert within(right(results), (1 - (1 - P) ** 4) ** STEPS)
    assert pytest.approx(P**STEPS, abs=0.001) == 0.13  # of a single response


@pytest.mark.parametrize("name", STEPWISE)
def test_with_a_verifier_that_knows_nothing_they_are_no_better_than_one_response(name):
    """Catches an answer that leaks: the final choice is by a score that tells nothing."""

    def blind(problem, responses):
        yield from ()
        return [0.5] * len(responses)

    strategy = functools.partial(STEPWISE[name].func, **STEPWISE[name].keywords | {"verify": blind})
    first = [result.answer.pool[0] for result in repeated(strategy, 4, told(walk), max_tokens=8)]
    assert within(sum(ended(r.text) == "1" for r in first), P**STEPS)


def test_subtrees_are_independent():
    """Each subtree of width 2 is right with probability q = (1 − 0.4²)^steps; one of two with 1 − (1 − q)²."""
    one = (1 - (1 - P) ** 2) ** STEPS
    results = repeated(functools.partial(dvts, width=2, verify=exact), 4, told(walk), max_tokens=8)
    trees = Counter()
    for result in results:
        pool = [ended(r.text) == "1" for r in result.answer.pool]
        trees[any(pool[:2]), any(pool[2:])] += 1
    law = {(a, b): (one if a else 1 - one) * (one if b else 1 - one) for a in (True, False) for b in (True, False)}
    assert p_value(trees.elements(), law) > 1e-3
    assert within(right(results), 1 - (1 - one) ** 2)


def test_the_laws_hold_for_what_is_replayed():
    streams, law = Streams(), answers({"1": 0.4, "2": 0.6})
    cells = [Cell(f"{i}", problem(max_tokens=4), self_consistency, 5, replicate=i) for i in range(50)]
    first = run(ToyEngine(law), cells, streams)
    assert [r.answer for r in run(ToyEngine(law, slots=1), cells, streams)] == [r.answer for r in first]
