"""Monte Carlo tree search: where it goes down, what a rollout tells, and what it finds on chains."""

import math

import pytest
from chains import SHORT as P
from chains import paused, response
from played import rng, scored
from walks import BEST, STEPS, accuracy, chain, judge, near, sees, steps, walked

from extratime.evaluate.algorithms.search import root
from extratime.evaluate.strategies.a_star import a_star
from extratime.evaluate.strategies.mcts import Node, choose, mcts
from extratime.evaluate.strategies.self_consistency import self_consistency


def test_z_by_hand():
    """W/Ω: (0.2, 0.5)/0.35; visits 0 and 1, one in all: ln 2 under the root, over 1 and over 2."""
    worse, better = Node(root(P), 0.2), Node(root(P), 1.0, visits=1)
    crossing = (0.5 - 0.2) / 0.35 / (math.sqrt(math.log(2)) - math.sqrt(math.log(2) / 2))
    for siblings in ([worse, better], [better, worse]):
        assert choose(siblings, 0.99 * crossing) is better and choose(siblings, 1.01 * crossing) is worse
        assert choose(siblings, 0.0) is better


def test_siblings_without_worth_or_visits_take_turns_in_order():
    nodes = [Node(root(P)) for _ in range(3)]
    turns = []
    for _ in range(6):
        turns.append(nodes.index(choose(nodes, 1.0)))
        nodes[turns[-1]].visits += 1
    assert turns == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(("explore", "second"), [(0.0, "b"), (1.0, "b"), (4.0, "a")])
def test_a_simulation_goes_down_branches_and_reads_the_best_branch_to_its_end(explore, second):
    verify = scored({"a": 0.2, "b": 0.6, "b=1": 0.4})
    program = mcts(P, 3, rng(), 2, explore, verify)
    branch = next(program)
    assert [r.text for r in branch.along] == ["", ""] and branch.pause == ("\n",)
    rollout = program.send(paused("a", "b"))
    assert [r.text for r in rollout.along] == ["b"] and rollout.pause == ()
    branch = program.send([response("b=1")])
    assert [r.text for r in branch.along] == [second] * 2 and branch.pause == ("\n",)
    assert verify.asked == [["a", "b"], ["b=1"]]


def test_scores_of_rollouts_go_up_to_all_that_led_there():
    verify = scored({"a": 0.4, "b": 0.6, "b=1": 0.1, "aa": 0.1, "ab": 0.3, "ab=1": 0.0})
    program = mcts(P, 9, rng(), 2, 0.0, verify)
    next(program)
    program.send(paused("a", "b"))
    branch = program.send([response("b=1")])  # b: (0.6 + 0.1)/2 = 0.35 against 0.4
    assert [r.text for r in branch.along] == ["a", "a"]
    program.send(paused("aa", "ab"))
    branch = program.send([response("ab=1")])  # a: (0.4 + 0.0)/2 = 0.2
    assert [r.text for r in branch.along] == ["b", "b"]


def test_what_has_ended_is_a_candidate_and_is_not_gone_down_to_again():
    verify = scored({"=1": 0.9, "b": 0.2, "b=2": 0.3, "b=3": 0.95})
    program = mcts(P, 9, rng(), 2, 1.0, verify)
    next(program)
    rollout = program.send([response("=1"), *paused("b")])
    branch = program.send(list(rollout.along))
    assert [r.text for r in branch.along] == ["b", "b"]
    rollout = program.send([response("b=2"), response("b=3")])
    with pytest.raises(StopIteration) as stop:
        program.send(list(rollout.along))
    answer = stop.value.value
    assert [r.text for r in answer.pool] == ["=1", "b=2", "b=3"] and answer.weights == (0.9, 0.3, 0.95)
    assert answer.response.text == "b=3" and verify.asked == [["=1", "b"], ["b=2", "b=3"]]


def test_no_rollout_is_ever_cut_off_and_the_budget_is_kept():
    for budget in (1, 2, 3, 5, 8):
        for result in walked(mcts, budget, chain(0.7, wordings=20), 20, verify=sees(1, 1)):
            assert result.cost.generated <= budget * (STEPS + 1) and len(result.answer.pool) >= budget / 2
            assert all(r.finished for r in result.answer.pool)


@pytest.mark.parametrize("strategy", [a_star, mcts])
def test_with_scores_of_zero_the_first_draw_answers_wherever_it_is_found(strategy):
    found = walked(strategy, 4, runs=20, verify=judge(lambda r: 0.0))
    first = walked(self_consistency, 1, runs=20)
    assert [r.answer.response.text for r in found] == [r.answer.response.text for r in first]


@pytest.mark.slow
@pytest.mark.parametrize("sight", [(3, 0.5), (1, 1)])
def test_tree_search_finds_more_than_so_many_samples(sight):
    results = walked(mcts, 8, chain(0.7, wordings=50), 150, verify=sees(*sight))
    assert accuracy(results) >= BEST[*sight] + 0.1 and steps(results) <= 50
    assert near(accuracy(walked(mcts, 8, chain(0.7, wordings=50), 150, verify=judge(lambda r: 0.0))), 0.7**STEPS, 150)
