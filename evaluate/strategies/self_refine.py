"""Self-refinement (Madaan et al., arXiv 2303.17651; as benchmarked in arXiv 2502.07191): draft, critique, revise.

A draft is criticised and revised, `rounds` times, until the critic finds nothing: a line of its own that says `stop`,
not the words somewhere in its text, which may as well be about one step. The last revision from which an answer can be
read is the answer; nothing compares it with the draft, so a critic that is wrong does harm.

Budget law: one full length for the draft and for each revision, and one for each critique where the policy is its own
critic. Rounds that the budget does not pay for in full are not begun; `rounds` is the most, however great the budget.
"""

from __future__ import annotations

import numpy as np

from extratime.evaluate.algorithms.prompts import ask, fill
from extratime.evaluate.algorithms.vote import ballots
from extratime.evaluate.program import Answer, Problem, Program, best, sample
from extratime.models.request import Completion

CRITIQUE = (
    "{question}\n\nA solution to this problem:\n{attempt}\n\nCheck it step by step. Say what is wrong with it and "
    "how to mend it. If nothing is wrong, write one line and nothing else: {stop}"
)
REVISE = (
    "{question}\n\nA solution to this problem:\n{attempt}\n\nWhat a critic says of it:\n{critique}\n\nWrite the "
    "complete solution again with its faults mended, and its final answer."
)


def self_refine(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    rounds: int = 3,
    critic: str = "policy",
    stop: str = "No error",
    critique: str = CRITIQUE,
    revise: str = REVISE,
) -> Program[Answer]:
    """The last revision.

    Args:
        problem: what to answer.
        budget: see the budget law.
        rng: not used.
        rounds: critiques at most; 3 in arXiv 2502.07191.
        critic: role that criticises: the policy, or "judge", which is no part of the budget.
        stop: what the critic writes where nothing is wrong.
        critique: asks for a critique; with the places {question}, {attempt} and {stop}.
        revise: asks for a revision; with the places {question}, {attempt} and {critique}.
    """
    pool = yield from sample(problem.prompt)
    for _ in range(min(rounds, (budget - 1) // (2 if critic == "policy" else 1))):
        attempt = pool[-1].text
        asked = fill(critique, question=problem.question, attempt=attempt, stop=stop)
        [said] = yield from ask(problem, problem.turn(asked), role=critic)
        if said.finish == "failed" or content(said.text, stop):
            break
        asked = fill(revise, question=problem.question, attempt=attempt, critique=said.text)
        pool += yield from ask(problem, problem.turn(asked))
    return latest(problem, pool, f"revised {len(pool) - 1} times")


def content(critique: str, stop: str) -> bool:
    """Whether a critique says on a line of its own that nothing is wrong; case and punctuation around don't matter."""
    return any(_bare(line) == _bare(stop) for line in critique.splitlines())


def latest(problem: Problem, pool: list[Completion], why: str) -> Answer:
    """The last finished response from which an answer can be read, else the last; `pool` in the order of drawing."""
    weights = [float(i if vote is not None else i - len(pool)) for i, vote in enumerate(ballots(problem, pool))]
    return best(pool, weights, why)


def _bare(line: str) -> str:
    return line.strip(" \t.!:*_`\"'").casefold()
