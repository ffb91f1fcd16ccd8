"""Sequential scaling with feedback (Eureka, arXiv 2504.00294): try, be told that it is wrong, get a hint, try again.

    until an attempt is right or the budget is spent:
        hint ← teacher(problem, wrong attempts so far), which must not give the solution away
        attempt ← student(problem, wrong attempts so far, hint)

The published protocol compares attempts with the reference answer (the verifier `oracle`, the default): what it
reaches is a ceiling for feedback and never a result. With another verifier it is an honest strategy. To be told that
earlier answers are wrong is elimination, which alone solves a problem of few answers: `hints: false` is the control. A
hint that the verifier would itself pass as an answer gives the solution away and is not told.

Budget law: an attempt and a hint of the policy are one full length each. Published are three attempts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms.prompts import ask, fill, numbered
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, sample
from extratime.evaluate.verifiers.oracle import oracle
from extratime.models.request import Completion, Prompt

TEACH = (
    "Problem:\n{problem}\n\nA student gave these answers, all of them wrong:\n\n{attempts}\n\n"
    "Find out what goes wrong, and write a hint that helps the student. Do not give the solution."
)
AGAIN = (
    "Your answers to the problem below were wrong, {count} so far:\n\n{attempts}\n\n"
    "Hint:\n{hint}\n\nProblem:\n{problem}"
)
NO_HINT = "none; try again"


def sequential_feedback(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = oracle,
    threshold: float = 1.0,
    attempts: int | None = None,
    hints: bool = True,
    role: str = "policy",
) -> Program[Answer]:
    """The attempt with the highest score; the earlier one of equals.

    Args:
        problem: what to answer.
        budget: see the budget law.
        rng: not used.
        verify: scores attempts.
        threshold: score from which an attempt is right.
        attempts: at most (published: 3); None makes as many as the budget pays for.
        hints: whether a teacher writes them.
        role: whose model the teacher is (published: the student's own).
    """
    price = 2 if hints and role == "policy" else 1
    tried = yield from sample(problem.prompt)
    scores = yield from verify(problem, tried)
    for _ in range(min((budget - 1) // price, (attempts or budget) - 1)):
        if tried[-1].finished and scores[-1] >= threshold:
            break
        prompt = yield from _prompt(problem, tried, verify, threshold, hints, role)
        tried += yield from sample(prompt)
        scores += yield from verify(problem, tried[-1:])
    return best(tried, scores, f"the best of {len(tried)} attempts")


def _prompt(
    problem: Problem, tried: Sequence[Completion], verify: Verifier, threshold: float, hints: bool, role: str
) -> Program[Prompt]:
    """The problem after what was tried, and a hint unless it gives the solution away."""
    wrong = [attempt.text for attempt in tried if attempt.finish != "failed" and attempt.text.strip()]
    if not wrong:
        return problem.prompt
    told, hint = {"problem": problem.question, "attempts": numbered(wrong)}, ""
    if hints:
        replies = yield from ask(problem, problem.turn(fill(TEACH, **told)), role=role)
        [score] = yield from verify(problem, replies)
        hint = "" if score >= threshold else replies[0].text.strip()
    return problem.turn(fill(AGAIN, **told, count=str(len(wrong)), hint=hint or NO_HINT))
