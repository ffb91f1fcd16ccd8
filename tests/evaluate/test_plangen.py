"""PlanGEN: the bound, the agents, the mixture, and its laws."""

import functools
import itertools
import math

import numpy as np
import pytest
from composed import RUNS, answers, recipe, repeated, replying, response, right
from laws import within
from played import P, rng, scored

from extratime.evaluate.algorithms.ucb import Arm, choose, ucb
from extratime.evaluate.grid import bind
from extratime.evaluate.named import RecipeError
from extratime.evaluate.program import EngineError, best, sample
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.plangen import plangen, reward
from extratime.evaluate.strategies.weighted_vote import weighted_vote
from extratime.evaluate.verifiers.constraints import constraints
from extratime.evaluate.verifiers.oracle import oracle
from extratime.models.request import fail

# --- PlanGEN's bound


def test_the_bound_is_the_published_formula():
    """The worked check of the note: R = 2.1, N = 3, T = 5, prior .8, one recovery in four retries."""
    arm = Arm(2.1, 3, retries=4, recoveries=1)
    assert ucb(arm, 5, 0.8) == pytest.approx(2.1013, abs=5e-5)
    assert ucb(arm, 5, 0.8, lambda_prior=0, alpha_div=0, alpha_rec=0) == pytest.approx(
        0.7 + math.sqrt(math.log(6) * 2 / 3)
    )
    assert ucb(Arm(7e8, 10**9), 10**9, 1.0) == pytest.approx(0.7, abs=1e-3)
    assert ucb(Arm(), 0, 0.3) == pytest.approx(0.5 + 0.3 + 0.1)


def test_an_arm_counts_its_runs_and_those_that_recovered():
    arm = Arm().after(0.2).after(0.8, True).after(0.1, False)
    assert (arm.reward, arm.runs, arm.retries, arm.recoveries) == (pytest.approx(1.6), 4, 2, 1)


def test_ties_go_to_the_higher_prior_and_then_to_the_earlier_arm():
    arms = [Arm(), Arm(), Arm()]
    assert choose(arms, 0, [0.2, 0.9, 0.9]) == 1 and choose(arms, 3, [0.5] * 3) == 0
    assert choose(arms, 3, [0.2, 0.9, 0.4], lambda_prior=0.0) == 1
    assert choose([Arm(0.5, 1), Arm(0.9, 1), Arm(0.5, 1)], 0, [1.0, 0.5, 0.0], lambda_prior=0.1) == 1


def bandit(priors, seed, pulls=300, chances=(0.3, 0.5, 0.7)):
    """Which arms are pulled, where each pays 1 by chance and the run after a loss is a retry."""
    noise, arms, order, lost = np.random.default_rng(seed), [Arm()] * 3, [], False
    for trial in range(pulls):
        k = choose(arms, trial, priors)
        won = bool(noise.random() < chances[k])
        arms[k] = arms[k].after(float(won), won if lost else None)
        order.append(k)
        lost = not won
    return order


@pytest.mark.parametrize(("priors", "least"), [((0.5, 0.5, 0.5), 0.6), ((0, 0, 1.0), 0.6), ((1.0, 0, 0), 0.5)])
def test_the_bound_finds_the_best_of_three_arms(priors, least):
    runs = [bandit(priors, seed) for seed in range(50)]
    assert np.mean([order.count(2) / len(order) for order in runs]) > least
    assert all(order[0] == max(range(3), key=lambda i: priors[i]) for order in runs)


# --- PlanGEN's verification agent


def agent(request):
    """What the agents are asked, by their words."""
    said = request.prompt.text
    if said.startswith("List the constraints"):
        return "list"
    return "check" if said.startswith("Check ") else "prior" if "Algorithms:" in said else "draw"


def test_each_distinct_text_is_checked_once_against_the_constraints():
    said = {"a": "Too late.\nScore: 20", "b": "score = **-50**, no: Score: 900", "c": "Score: -101"}
    asked, scores = replying(
        constraints(P, [response(x) for x in "abca"] + [fail(response("d"), "no")]),
        lambda ask: ["be on time"] if agent(ask) == "list" else [said[ask.prompt.text.partition("Response:\n")[2][0]]],
    )
    assert scores == [0.6, 1.0, 0.0, 0.6, -math.inf]
    assert [(agent(ask), ask.temperature, ask.role) for ask in asked] == [
        (w, 0, "judge") for w in ["list"] + ["check"] * 3
    ]
    assert all("be on time" in ask.prompt.text for ask in asked[1:])


def test_a_check_without_a_score_is_made_once_more_and_is_then_missing():
    for second, score in (("Score: 0", 0.5), ("none", -math.inf)):
        replies = iter(["fine", second])
        asked, scores = replying(
            constraints(P, [response("a")]),
            lambda ask, replies=replies: ["c"] if agent(ask) == "list" else [next(replies)],
        )
        assert scores == [score] and [ask.temperature for ask in asked[1:]] == [0, 0.7]


def test_where_no_constraint_is_found_the_problem_is_what_counts(caplog):
    asked, scores = replying(
        constraints(P, [response("a")]), lambda ask: [" "] if agent(ask) == "list" else ["Score: 4"]
    )
    assert scores == [0.52] and "what the problem says" in asked[1].prompt.text and "no constraints" in caplog.text


def test_an_agent_that_fails_is_an_error_and_no_score():
    broken = fail(response(""), "down")
    for failing in ("list", "check"):
        with pytest.raises(EngineError, match="down"):
            replying(
                constraints(P, [response("a")]),
                lambda ask, failing=failing: [broken if agent(ask) == failing else "x"],
            )
    _, scores = replying(
        constraints(P, [fail(response(""), "no")]), lambda ask: pytest.fail("nothing is to be checked")
    )
    assert scores == [-math.inf]


# --- PlanGEN


def planned(scores, prior="", budget=12, **options):
    """PlanGEN where draw i says "{i}={i}" and is given the i-th score by the agent."""
    drawn = itertools.count()

    def answer(request):
        kind = agent(request)
        if kind == "draw":
            return [f"{i}={i}" for i in itertools.islice(drawn, request.n)]
        name = request.prompt.text.partition("Response:\n")[2].partition("=")[0]
        return {"list": ["c"], "prior": [prior], "check": [f"mend {name}\nScore: {scores[int(name or 0)]}"]}[kind]

    return replying(plangen(P, budget, rng(), **options), answer)


def test_a_first_plan_that_is_good_enough_ends_the_search():
    asked, answer = planned([95])
    assert [agent(ask) for ask in asked] == ["draw", "list", "check"] and answer.response.text == "0=0"
    assert answer.weights == (0.975,)


def test_the_priors_choose_first_and_the_feedback_is_told():
    asked, answer = planned([10, 0, 96, 0, 0, 0], prior="[1] 0.9\n[2] 0.1")
    draws = [ask for ask in asked if agent(ask) == "draw"]
    assert [ask.n for ask in draws] == [1, 5] and draws[0].prompt == P.prompt
    assert "mend 0" in draws[1].prompt.text and draws[1].prompt.text.endswith(P.question)
    assert (answer.response.text, answer.weights) == ("2=2", (0.55, 0.98))
    other, _ = planned([10, 0, 96, 0, 0, 0], prior="[2] .9\n[1] 0.1", budget=4)
    assert [ask.pause for ask in other if agent(ask) == "draw"] == [(), ("\n",)]  # a tree draws step by step


def test_runs_share_the_budget_until_it_is_spent():
    for budget, sizes in ((1, [1]), (3, [1, 2]), (8, [1, 5, 2]), (12, [1, 5, 5, 1])):
        asked, answer = planned([0] * budget, budget=budget, algorithms=(best_of_n,))
        assert [ask.n for ask in asked if agent(ask) == "draw"] == sizes
        assert len(answer.pool) == len(sizes) and not any(agent(ask) == "prior" for ask in asked)


def test_an_algorithm_that_does_not_mend_gives_way():
    """One that only makes it worse is run first by its prior, and then the other."""

    def worse(problem, budget, rng, verify):
        ran.append("worse")
        [r] = yield from sample(problem.prompt)
        return best([r], [0.0], "")

    def better(problem, budget, rng, verify):
        ran.append("better")
        [r] = yield from sample(problem.prompt)
        return best([r], [0.0], "")

    ran = []
    planned([-20, -60, 20, 40, 60, 90], prior="[1] 0.6\n[2] 0.5", budget=4, algorithms=(worse, better), size=1)
    assert ran == ["worse", "better", "better"]


def test_in_two_stages_the_best_plan_is_carried_out_by_one_more_draw():
    asked, answer = planned([10, 20, 40, 30], budget=5, execute=True, algorithms=(best_of_n,), size=3)
    draws = [ask for ask in asked if agent(ask) == "draw"]
    assert [ask.n for ask in draws] == [1, 3, 1]
    assert draws[0].prompt.text.startswith("Write a plan") and P.question in draws[0].prompt.text
    assert "mend 0" in draws[1].prompt.text and "Write a plan" in draws[1].prompt.text
    assert draws[2].prompt.text.startswith("Plan:\n2=2") and draws[2].prompt.text.endswith(P.question)
    assert [r.text for r in answer.pool] == ["0=0", "2=2", "4=4"] and answer.response.text == "4=4"
    for ask in asked:  # plans are weighed against the problem, not against the wish for a plan
        assert agent(ask) != "check" or "Write a plan" not in ask.prompt.text


def test_plans_that_are_to_be_carried_out_vote_for_nothing():
    """Two of three say the same; the one with the best score is the plan."""
    verify = scored({"a=1": 0.2, "b=2": 0.4, "c=2": 0.5, "d=3": 0.8, "e=9": 0.0})
    texts = iter(["a=1", "b=2", "c=2", "d=3", "e=9"])
    options = {"verify": verify, "algorithms": (weighted_vote,), "size": 3, "execute": True}
    asked, answer = replying(plangen(P, 5, rng(), **options), lambda ask: [next(texts) for _ in range(ask.n)])
    assert asked[-1].prompt.text.startswith("Plan:\nd=3") and answer.response.text == "e=9"


def test_a_budget_of_one_is_a_plain_draw_in_two_stages_too():
    asked, answer = planned([0], budget=1, execute=True)
    assert [ask.prompt for ask in asked if agent(ask) == "draw"] == [P.prompt] and answer.response.text == "0=0"
    asked, _ = planned([0], budget=2, execute=True)
    assert [agent(ask) for ask in asked] == ["draw", "list", "check", "draw"]


def test_plans_are_checked_against_the_problem_itself_and_not_against_its_rewording():
    asked, _ = planned([0] * 12, algorithms=(best_of_n,))
    draws, checks = ([ask.prompt.text for ask in asked if agent(ask) == kind] for kind in ("draw", "check"))
    assert all("found wanting" in text for text in draws[1:]) and len(draws) == 4
    assert not any("found wanting" in text for text in checks) and len(checks) >= 12


def test_the_agents_are_not_the_policy():
    with pytest.raises(ValueError, match="the role judge, not policy"):
        next(plangen(P, 4, rng(), role="policy"))


def test_rewards_are_between_nothing_and_one():
    told = [0.4, 1.7, -math.log(2), -math.inf, math.nan, math.inf]
    assert [reward(score) for score in told] == pytest.approx([0.4, 1.0, 0.5, 0.0, 0.0, 1.0])


def test_a_recipe_names_the_algorithms():
    (spec,) = recipe(plangen={"algorithms": ["best_of_n", {"dvts": {"width": 2, "step": ["\n\n"]}}]}).strategies
    first, second = bind(spec, {}).keywords["algorithms"]
    assert first.func is best_of_n and second.keywords == {"width": 2, "step": ("\n\n",)}
    for wrong, words in (
        (["greedy"], "plangen: greedy cannot be run with another verifier"),
        ([{"best_of_n": {"verify": "oracle"}}], "plangen: best_of_n cannot be run with another verifier"),
        ([{"dvts": {"with": 2}}], "plangen: dvts has no option 'with'"),
        ([], "plangen: 'algorithms' must be a list with at least one entry"),
    ):
        with pytest.raises(RecipeError) as caught:
            recipe(plangen={"algorithms": wrong})
        assert words in str(caught.value)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_with_exact_constraints_success_is_that_of_best_of_n(n):
    """A free slot out of eight, of which three suit: 1 − (1 − 3/8)^n; the score is 100·(share that holds)·2 − 100."""
    strategy = functools.partial(plangen, verify=oracle, algorithms=(best_of_n,), size=2)
    results = repeated(strategy, n, answers({"1": 3 / 8, **dict.fromkeys("23456", 1 / 8)}))
    assert within(right(results), 1 - (5 / 8) ** n, RUNS)


def test_easy_problems_end_early():
    """Calls fall by more than 30 % against best of five where every second plan is good."""
    strategy = functools.partial(plangen, verify=oracle, algorithms=(best_of_n,), size=1)
    results = repeated(strategy, 5, answers({"1": 0.5, "2": 0.5}))
    draws = sum(len(result.answer.pool) for result in results)
    assert draws == sum(result.cost.generated for result in results) / 2
    assert draws / RUNS < 0.7 * 5 and draws / RUNS == pytest.approx(sum(0.5**k for k in range(5)), abs=0.2)
