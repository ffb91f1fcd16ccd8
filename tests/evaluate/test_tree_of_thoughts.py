"""Depth-first search: who is visited next, who is dropped, when it ends and what answers."""

import functools

import pytest
from laws import repeated, right, within
from played import P, response, rng, scored, steps
from toy import ToyEngine, lines, problem, run, told

from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.tree_of_thoughts import kept, tree_of_thoughts


@pytest.mark.parametrize(
    ("n", "prune", "left"),
    [(5, 0.4, 3), (10, 0.4, 6), (3, 0.4, 1), (2, 0.4, 1), (1, 0.4, 1), (4, 0.0, 4), (4, 1.0, 1)],
)
def test_so_many_are_kept_the_best_first(n, prune, left):
    scores = [0.1 * ((7 * i) % n) for i in range(n)]
    assert kept(scores, prune) == sorted(range(n), key=lambda i: -scores[i])[:left]
    assert kept([0.5] * 5, 0.4) == [0, 1, 2]


TREE = {"": ["a\n", "b\n", "c\n"], "a\n": ["a\nx=1", "a\ny=2"], "b\n": ["b\nx=3", "b\ny=4"], "c\n": ["c\nx=5"]}
SCORES = {
    "a\n": 0.5,
    "b\n": 0.9,
    "c\n": 0.1,
    "a\nx=1": 0.8,
    "a\ny=2": 1.0,
    "b\nx=3": 0.2,
    "b\ny=4": 0.3,
    "c\nx=5": 0.1,
}


def walk(budget=8, **options):
    """The prefixes in the order in which they were read on, and the answer."""

    def say(request, i):
        here = request.along[i].text if request.along else ""
        there = TREE[here][i % len(TREE[here])]
        return response(there, "pause" if there.endswith("\n") else "eos", 3 if there.endswith("\n") else 6)

    asked, answer = steps(tree_of_thoughts(P, budget, rng(), verify=scored(SCORES), **options), say)
    return [request.along[0].text for request in asked], [len(request.along) for request in asked], answer


def test_the_best_child_is_visited_first_and_then_its_siblings():
    """Three children of which 1 is dropped: b, its two ends, then back to a; c is never read on."""
    order, sizes, answer = walk(width=3, prune=0.33, paths=3)
    assert order == ["", "b\n", "a\n"] and sizes[0] == 3
    assert [r.text for r in answer.pool] == ["b\ny=4", "a\ny=2"], "of two ends one is dropped"
    assert walk(width=3, prune=0.33, paths=1)[0] == ["", "b\n"]


def test_the_best_mean_answers_not_the_best_end():
    order, _, answer = walk(width=3, prune=0.0, paths=9)
    assert order == ["", "b\n", "a\n", "c\n"]
    assert answer.response.text == "a\ny=2" and answer.weights[:2] == pytest.approx((0.6, 0.55))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCORES, "a\ny=2", 0.31)
        patch.setitem(SCORES, "a\nx=1", 0.2)
        answer = walk(width=3, prune=0.0, paths=4)[2]
        assert answer.response.text == "b\ny=4", "a\ny=2 has the better end, on a worse way"


def test_it_stops_when_so_many_have_ended_and_reads_no_more():
    results = {}
    for paths in (1, 3):
        strategy = functools.partial(tree_of_thoughts, prune=0.3, paths=paths)
        cells = [Cell(f"{i}", problem(max_tokens=10), strategy, 16, replicate=i) for i in range(40)]
        results[paths] = run(ToyEngine(told(lines), slots=32), cells)
    for one, three in zip(results[1], results[3], strict=True):
        assert sum(r.finished for r in one.answer.pool) == 1 <= sum(r.finished for r in three.answer.pool) <= 3
        assert one.cost.generated <= three.cost.generated <= 160
    assert sum(r.cost.generated for r in results[1]) < 0.8 * sum(r.cost.generated for r in results[3])


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_there_is_always_an_end_within_the_budget(budget):
    cells = [Cell(f"{i}", problem(max_tokens=10), tree_of_thoughts, budget, replicate=i) for i in range(60)]
    for result in run(ToyEngine(told(lines), slots=32), cells):
        assert result.answer.response.finished and result.cost.generated <= budget * 10
        assert budget > 1 or len(result.answer.pool) == 1


CHAIN, RIGHT = 4, 0.6


def chain(text):
    """Steps that are each right with probability .6; the answer is 1 if all were."""
    if "=" in text:
        return {"": 1.0}
    if text.count("\n") == CHAIN:
        return {"=2" if "w" in text else "=1": 1.0}
    return {"r\n": RIGHT, "w\n": 1 - RIGHT}


def sees(problem, responses):
    yield from ()
    return [0.0 if "w" in r.text else 0.5 for r in responses]


@pytest.mark.parametrize("width", [1, 2, 5])
def test_with_an_exact_verifier_one_path_is_a_best_of_n_at_each_step(width):
    strategy = functools.partial(tree_of_thoughts, width=width, paths=1, verify=sees)
    results = repeated(strategy, 8, told(chain), 200, max_tokens=8)
    assert within(right(results), (1 - (1 - RIGHT) ** width) ** CHAIN, 200)


def test_with_scores_that_know_nothing_it_is_one_response():
    def blind(problem, responses):
        yield from ()
        return [0.5] * len(responses)

    strategy = functools.partial(tree_of_thoughts, width=2, verify=blind)
    assert within(right(repeated(strategy, 8, told(chain), 200, max_tokens=8)), RIGHT**CHAIN, 200)
