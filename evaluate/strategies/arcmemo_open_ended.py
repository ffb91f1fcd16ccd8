"""ArcMemo, open-ended (arXiv 2509.04439): answer with lessons of solved problems in the prompt.

    description ← describe(problem);  lessons ← the k that help most, out of all, by their numbers
    response ~ policy(lessons, problem);  with a verifier, retries as in `arcmemo`

A lesson says what to do in a situation. Whoever selects reads both: the published selection prompt shows the situation
in place of the suggestion. Where the reply names no lesson the problem is asked as it is. The memory is a file that
was written before (`extratime train concepts`, `form: lessons`), and is only read here; see `arcmemo`.

Budget law: one reply of the policy describes, one selects, the others are draws. A budget of 2 selects by the problem
itself, and a budget of 1 is a plain draw. Without a memory it is a majority vote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms.concepts import Lesson, Memory
from extratime.evaluate.algorithms.prompts import ask, fill
from extratime.evaluate.program import Answer, Problem, Program, Verifier
from extratime.evaluate.strategies.arcmemo import attempted, remembered

DESCRIBE = (
    "Problem:\n{problem}\n\n"
    "Describe this problem in plain words: what is given, what is asked, and what is particular about it. Do not "
    "solve it."
)
SELECT = (
    "Lessons from other problems:\n\n{lessons}\n\nA problem:\n{problem}\n\n"
    "Which lessons help most to solve this problem? Write the numbers of at most {k}, one a line, each after a dash, "
    "the most helpful first. Do not solve the problem."
)
HINT = "These lessons from other problems may or may not be relevant:\n\n{lessons}\n\nProblem:\n{problem}"


def arcmemo_open_ended(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    memory: str | Memory | None = None,
    describe: bool = True,
    k: int = 5,
    verify: Verifier | None = None,
    threshold: float = 1.0,
    passes: int = 3,
    role: str = "policy",
) -> Program[Answer]:
    """The majority of the responses with lessons; with a verifier, the one with the highest score.

    Args:
        problem: what to answer.
        budget: see the budget law.
        rng: not used.
        memory: a file of lessons, or the memory itself; None has none.
        describe: whether lessons are selected for a description of the problem (published), or for itself.
        k: lessons at most (published: 5).
        verify: says whether an attempt has failed; None never tries again.
        threshold: score from which an attempt has not failed.
        passes: attempts, the first one included (published: 3).
        role: whose model describes and selects.

    Raises:
        ValueError: the memory can't be read, was written from this problem, or holds concepts and no lessons.
    """
    known = remembered(memory, problem)
    if known.concepts and not known.lessons:
        raise ValueError("the memory holds concepts and no lessons; `arcmemo` reads them")
    spare = budget - 1 if role == "policy" else 2
    replies = min(spare, 1 + describe) if known.lessons else 0
    chosen = (yield from _selected(problem, known.lessons, replies > 1, k, role)) if replies else []
    told = fill(HINT, lessons="\n".join(map(_said, chosen)), problem=problem.question) if chosen else ""
    left = budget - (replies if role == "policy" else 0)
    return (yield from attempted(problem, left, told, f"with {len(chosen)} lessons", verify, threshold, passes))


def _selected(problem: Problem, lessons: Sequence[Lesson], describe: bool, k: int, role: str) -> Program[list[Lesson]]:
    """The lessons that a reply names, the first `k` of them."""
    asked = problem.question
    if describe:
        said = problem.turn(fill(DESCRIBE, problem=problem.question))
        [reply] = yield from ask(problem, said, temperature=0, role=role)
        asked = reply.text.strip() or asked
    listed = "\n".join(f"[{i}] {_said(lesson)}" for i, lesson in enumerate(lessons, 1))
    told = fill(SELECT, lessons=listed, problem=asked, k=str(k))
    [reply] = yield from ask(problem, problem.turn(told), temperature=0, role=role)
    named = (int(number) for number in re.findall(r"^\s*-\s*\[?(\d+)\b", reply.text, flags=re.MULTILINE))
    return [lessons[i - 1] for i in dict.fromkeys(named) if 1 <= i <= len(lessons)][:k]


def _said(lesson: Lesson) -> str:
    return f"Situation: {lesson.situation}\n    Suggestion: {lesson.suggestion}"
