"""ArcMemo (arXiv 2509.04439): answer with the concepts of solved problems in the prompt.

    concepts ← select(memory, problem);  response ~ policy(concepts, problem)
    with a verifier: while no response passes, up to `passes` times, draw again with the last attempt in the prompt

The memory is a file that was written before, from other problems (`algorithms/concepts.py`), and is only read
here. The paper's may also grow while it is evaluated; then a result hangs on the order of the problems, and on which
were solved by whoever ran beside it, so that no cell could be drawn again. Growing is left to the command that writes
the file, batch by batch, from training problems. A memory that was written from the very problem asked is an error.

Budget law: one reply of the policy selects, the others are draws, shared out evenly over the passes. A budget of 1
pays for the draw; concepts are then selected by their cues, as they are where the reply names none. Without a memory
it is a majority vote, or with a verifier the paper's retries alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from extratime.evaluate.algorithms.concepts import Memory, chosen, matching, read_memory, render
from extratime.evaluate.algorithms.prompts import ask, fill
from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, sample
from extratime.models.request import Completion, Prompt

SELECT = (
    "Concepts that helped to solve other problems:\n\n{concepts}\n\nProblem:\n{problem}\n\n"
    "Which concepts help to solve this problem? Look for structures and routines by what to look for, then for "
    "routines that give what those need. Do not solve the problem. Write their names, one a line, each after a dash."
)
HINT = "These concepts from other problems may or may not be relevant:\n\n{concepts}\n\nProblem:\n{problem}"
RETRY = (
    "An attempt at the problem below failed. Find out what went wrong, and solve it anew.\n\n"
    "Attempt:\n{attempt}\n\n{problem}"
)


def arcmemo(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    memory: str | Memory | None = None,
    select: Literal["model", "cues", "all"] = "model",
    k: int = 5,
    usage: int = 2,
    verify: Verifier | None = None,
    threshold: float = 1.0,
    passes: int = 3,
    role: str = "policy",
) -> Program[Answer]:
    """The majority of the responses with concepts; with a verifier, the one with the highest score.

    Args:
        problem: what to answer.
        budget: see the budget law.
        rng: not used.
        memory: a file of concepts, or the memory itself; None has none.
        select: who selects: a model that reads the memory (published), the cues of the concepts, or nobody.
        k: concepts that cues select at most.
        usage: uses from which the selecting model is told a concept in full (published: 2).
        verify: says whether an attempt has failed (published: the demonstrations of a puzzle); None never tries again.
        threshold: score from which an attempt has not failed.
        passes: attempts, the first one included (published: 3).
        role: whose model selects.

    Raises:
        ValueError: the memory can't be read, or was written from this problem.
    """
    known = remembered(memory, problem)
    if known.lessons and not known.concepts:
        raise ValueError("the memory holds lessons and no concepts; `arcmemo_open_ended` reads them")
    asks = select == "model" and bool(known.concepts) and (budget > 1 or role != "policy")
    left = budget - int(asks and role == "policy")
    names = yield from _selected(problem, known, "cues" if select == "model" and not asks else select, k, usage, role)
    told = fill(HINT, concepts=render(known, names), problem=problem.question) if names else ""
    why = f"with {len(names)} concepts"
    return (yield from attempted(problem, left, told, why, verify, threshold, passes))


def remembered(memory: str | Memory | None, problem: Problem) -> Memory:
    """A memory from its file, if it may be read for this problem.

    Raises:
        ValueError: it can't be read, or was written from this problem.
    """
    known = read_memory(Path(memory)) if isinstance(memory, str) else memory or Memory()
    if known.knows(problem.question):
        raise ValueError(
            f"problem {problem.id}: the memory of concepts was written from it, so that its answer would be no "
            "measurement; evaluate other problems, or write the memory without this one"
        )
    return known


def attempted(
    problem: Problem, budget: int, told: str, why: str, verify: Verifier | None, threshold: float, passes: int
) -> Program[Answer]:
    """The majority of `budget` draws that read `told` ("": the problem as it is), or passes until one is good enough.

    Each pass after the first is told the last attempt; see `arcmemo` for the other arguments.
    """
    responses: list[Completion] = []
    scores: list[float] = []
    rounds = min(passes, budget) if verify else 1
    for attempt in range(rounds):
        share = (budget - len(responses)) // (rounds - attempt)
        drawn = yield from sample(_prompt(problem, told, responses), share)
        responses += drawn
        scores += (yield from verify(problem, drawn)) if verify else [1.0] * share
        if any(s >= threshold and r.finished for r, s in zip(responses, scores, strict=True)):
            break
    return best(responses, scores, why) if verify else elect(problem, responses, scores, f"majority vote {why}")


def _selected(problem: Problem, known: Memory, select: str, k: int, usage: int, role: str) -> Program[list[str]]:
    """Names of the concepts to tell in full."""
    if select == "all":
        return list(known.concepts)
    if select == "model":
        said = fill(SELECT, concepts=render(known, usage=usage), problem=problem.question)
        [reply] = yield from ask(problem, problem.turn(said), temperature=0, role=role)
        if names := chosen(known, reply.text):
            return names
    return matching(known, problem.question, k)


def _prompt(problem: Problem, told: str, attempts: Sequence[Completion]) -> Prompt:
    """What is told, or the problem as it is; after the last attempt, if there is one."""
    said = [attempt.text for attempt in attempts if attempt.text.strip()]
    if not told and not said:
        return problem.prompt
    told = told or f"Problem:\n{problem.question}"
    return problem.turn(fill(RETRY, attempt=said[-1], problem=told) if said else told)
