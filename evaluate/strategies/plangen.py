"""PlanGEN (arXiv 2502.16111), mixture of algorithms: plan, verify, choose an algorithm, run it, and again.

    plan ← one draw
    until score(plan) ≥ threshold or the budget is spent:
        a ← argmax UCB(a; priors of the selection agent);  plan ← a(problem with the last feedback)
    return the plan with the best score, or what carrying it out comes to

The verification agent scores plans against the problem's constraints (`extratime.evaluate.verifiers.constraints`), or
any verifier does, which has no feedback to give. The algorithms are strategies that take a verifier: PlanGEN's own are
best-of-N, a tree of three children a step of which the best goes on, and REBASE. What is learned of them (`ucb`) ends
with the problem: kept on, a result would hang on the problems that came before. So few runs are made that the terms
for exploring decide; the priors make the first choice.

Where a plan is the answer (calendars, trips), it is a response to the problem. For reasoning the paper has two stages:
with `execute` plans are only plans, which vote for nothing, and one more draw answers by the best of them.

Budget law: the first plan is one full length, each run up to `size` of them, the draw that carries a plan out another.
The agents are another role than the policy and no part of the budget, but results count them as `judged`. A budget
of 1 is a plain draw.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from extratime.evaluate.algorithms.prompts import ask, blocks, fill, numbered
from extratime.evaluate.algorithms.ucb import Arm, choose
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, sample
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.dvts import dvts
from extratime.evaluate.strategies.rebase import rebase
from extratime.evaluate.verifiers.constraints import against, checked, listed
from extratime.models.request import Completion

AGAIN = (
    "A first response to the problem below was weighed and found wanting. Write a better one.\n\n"
    "What was said of it:\n{feedback}\n\nProblem:\n{problem}"
)
SUITABILITY = (
    "Problem:\n{problem}\n\nWhat was said of the last response:\n{feedback}\n\nAlgorithms:\n\n{algorithms}\n\n"
    "How well does each algorithm suit this problem? Write one line for each: its number in brackets, then a number "
    "from 0 (not at all) to 1 (best)."
)
PLAN = "Write a plan, step by step, for solving the problem below. Do not carry it out.\n\nProblem:\n{problem}"
EXECUTE = "Plan:\n{plan}\n\nSolve this problem by the plan.\n\nProblem:\n{problem}"
NEUTRAL = 0.5

Algorithm = Callable[..., Program[Answer]]
"""A strategy with the option `verify`."""


def plangen(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    algorithms: Sequence[Algorithm] = (best_of_n, functools.partial(dvts, width=3), rebase),
    verify: Verifier | None = None,
    size: int = 5,
    threshold: float = 0.975,
    lambda_prior: float = 1.0,
    alpha_div: float = 0.2,
    alpha_rec: float = 0.5,
    execute: bool = False,
    role: str = "judge",
) -> Program[Answer]:
    """The plan with the best score, or what carrying it out came to; the pool holds the first plan and those of runs.

    Args:
        problem: what to answer.
        budget: see the budget law.
        rng: given to the algorithms.
        algorithms: to choose among.
        verify: scores plans in [0, 1] (negative scores are read as log-probabilities); None asks the agents.
        size: budget of one run (published: best of 5).
        threshold: score that ends the search (published: 95 on a scale from -100 to 100, which is 0.975).
        lambda_prior: weight of the priors, divided by 1 + the number of runs.
        alpha_div: weight of algorithms that were seldom run.
        alpha_rec: weight of algorithms that improved on failures.
        execute: whether plans are drawn apart from answers (published: for reasoning tasks).
        role: whose model the agents are.

    Raises:
        ValueError: the agents are the policy, whose budget is for plans.
    """
    if role == "policy":
        raise ValueError("plangen's agents are paid outside the budget: give them the role judge, not policy")
    asked = _planning(problem) if execute and budget > 1 else problem
    [plan] = yield from sample(asked.prompt)
    told = "" if verify else (yield from listed(problem, role))
    judge = verify or functools.partial(against, told=told, role=role)
    plans, scores, arms, left = [plan], (yield from judge(problem, [plan])), [Arm()] * len(algorithms), budget - 1
    left -= int(asked is not problem)
    while left and not any(s >= threshold and p.finished for p, s in zip(plans, scores, strict=True)):
        feedback = "" if verify else (yield from _feedback(problem, plans[-1], told, role))
        priors = yield from suitability(problem, feedback, algorithms, role)
        k = choose(arms, len(plans) - 1, priors, lambda_prior=lambda_prior, alpha_div=alpha_div, alpha_rec=alpha_rec)
        run = algorithms[k](_with(asked, feedback), min(size, left), rng, verify=_about(problem, judge))
        plans.append((yield from run).response)
        scores += yield from judge(problem, plans[-1:])
        arms[k] = arms[k].after(reward(scores[-1]), scores[-1] > scores[-2])
        left -= min(size, left)
    chosen = best(plans, scores, f"the best of {len(plans)} plans")
    return chosen if asked is problem else (yield from _executed(problem, chosen))


def suitability(problem: Problem, feedback: str, algorithms: Sequence[Algorithm], role: str) -> Program[list[float]]:
    """The selection agent's priors in [0, 1]; neutral where it says nothing, or where there is nothing to choose."""
    if len(algorithms) == 1:
        return [NEUTRAL]
    listed = numbered([_described(algorithm) for algorithm in algorithms])
    said = fill(SUITABILITY, problem=problem.question, feedback=feedback or "nothing", algorithms=listed)
    [reply] = yield from ask(problem, problem.turn(said), temperature=0, role=role)
    found = [
        re.search(r"(?<![\w.])(?:0?\.\d+|[01](?:\.\d+)?)(?!\w)", line) for line in blocks(reply.text, len(algorithms))
    ]
    return [min(1.0, float(number[0])) if number else NEUTRAL for number in found]


def reward(score: float) -> float:
    """A score as a reward in [0, 1]: negative ones are log-probabilities, and what is no number earns nothing."""
    if math.isnan(score):
        return 0.0
    return math.exp(score) if score < 0 else min(1.0, score)


def _feedback(problem: Problem, plan: Completion, told: str, role: str) -> Program[str]:
    """What the verification agent wrote of a plan; it is greedy, so that this reads what is there already."""
    if plan.finish == "failed":
        return ""
    [opinion] = yield from checked(problem, told, [plan.text], role)
    return opinion.feedback


def _planning(problem: Problem) -> Problem:
    """To plan the problem in place of solving it; what is written votes for nothing."""
    said = fill(PLAN, problem=problem.question)
    told = ({"role": "user", "content": said},)
    return replace(problem, prompt=problem.turn(said), messages=told, answer=lambda text: None)


def _executed(problem: Problem, chosen: Answer) -> Program[Answer]:
    """The draw that carries the chosen plan out, behind the plans in the pool."""
    said = fill(EXECUTE, plan=chosen.response.text, problem=problem.question)
    [done] = yield from sample(problem.turn(said))
    return Answer(done, (*chosen.pool, done), (*chosen.weights, max(chosen.weights)), f"by {chosen.why}")


def _with(problem: Problem, feedback: str) -> Problem:
    """The problem as a plan's author reads it after some feedback."""
    if not feedback:
        return problem
    return replace(problem, prompt=problem.turn(fill(AGAIN, feedback=feedback, problem=problem.question)))


def _about(asked: Problem, judge: Verifier) -> Verifier:
    """`judge`, asked about the problem itself, however its prompt was worded."""

    def verify(problem: Problem, responses: Sequence[Completion]) -> Program[list[float]]:
        return judge(asked, responses)

    return verify


def _described(algorithm: Algorithm) -> str:
    function = getattr(algorithm, "func", algorithm)
    return f"{function.__name__}: {(inspect.getdoc(function) or '').partition(chr(10))[0]}"
