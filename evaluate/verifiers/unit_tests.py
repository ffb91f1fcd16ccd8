"""Unit tests that a model writes, run on what responses say (Archon, arXiv 2409.15254): the share that passes.

A model reads the problem and writes short tests, one `assert` a line; each response's program runs against each of
them in a jailed process (`evaluate/jail.py` says what that guards). Running replaces the published judgement by a
model, whose verdicts were read so that "does not pass" passed. The tests are written greedily, so that all responses
of a cell meet the same ones, and once. They may be wrong: a test that no right program passes costs all the same.

With `subject: answer` the tests check an answer in place of a program: they find it as text in the name `answer`.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from typing import Literal

from extratime.evaluate.algorithms.prompts import ask, fill
from extratime.evaluate.jail import passes
from extratime.evaluate.program import EngineError, Problem, Program
from extratime.models.request import Completion

PROMPTS = {
    "program": (
        "{question}\n\nDo not solve this problem. Write {tests} short tests of a Python program that solves it, of "
        "common and of edge cases. Write each test as one line that begins with `assert`, and nothing else."
    ),
    "answer": (
        "{question}\n\nDo not solve this problem. Write {tests} short checks of a given answer. It is text, in the "
        "Python variable `answer`. Write each check as one line that begins with `assert`, and nothing else."
    ),
}


def unit_tests(
    problem: Problem,
    responses: Sequence[Completion],
    tests: int = 8,
    subject: Literal["program", "answer"] = "program",
    role: str = "judge",
    seconds: float = 2.0,
    memory: int = 1 << 28,
    prompt: str | None = None,
) -> Program[list[float]]:
    """The share of tests that each response passes, in [0, 1].

    -inf for failed responses, for those that hold nothing to run, and for all where no test could be read: then
    nothing is known about them.

    Args:
        problem: what the responses answer.
        responses: whole or partial.
        tests: most tests to run; 5 to 10 in the paper.
        subject: what is tested: the Python in a response, or the answer that it votes for.
        role: whose engine writes the tests. The policy pays for them from the budget, which a strategy that draws all
            of it first leaves none of.
        seconds: of processor time for a program and one test.
        memory: bytes of address space for the same.
        prompt: with the places {question} and {tests}; None takes the one for the subject.

    Raises:
        EngineError: the engine could not write the tests.
    """
    asked = fill(prompt or PROMPTS[subject], question=problem.question, tests=str(tests))
    [said] = yield from ask(problem, problem.turn(asked), temperature=0, role=role)
    if said.finish == "failed":
        raise EngineError(said.error)
    wanted = tuple(asserts(said.text)[:tests])
    found = [_subject(problem, r, subject) if wanted and r.finish != "failed" else None for r in responses]
    return [
        -math.inf if program is None else sum(passes(program, wanted, seconds, memory)) / len(wanted)
        for program in found
    ]


def asserts(text: str) -> list[str]:
    """The different tests in a text: lines that are one `assert` statement each, behind a bullet or number perhaps."""
    lines = (re.sub(r"^\s*(?:[-*]|\d+[.)])?\s*`?(?=assert\b)", "", line).rstrip("` \t") for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if _is_assert(_parsed(line))))


def code(text: str) -> str | None:
    """The last Python block of a response, an unclosed one to its end; all of it where it has none but is Python."""
    blocks = re.findall(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", text, flags=re.DOTALL | re.IGNORECASE)
    if blocks:
        return str(blocks[-1])
    return text if _parsed(text) else None


def _subject(problem: Problem, response: Completion, subject: str) -> str | None:
    if subject == "program":
        return code(response.text)
    said = problem.answer(response.text)
    return None if said is None else f"answer = {str(said)!r}"


def _parsed(text: str) -> list[ast.stmt]:
    """The statements of a Python text; none where it is no Python."""
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _is_assert(statements: list[ast.stmt]) -> bool:
    return len(statements) == 1 and isinstance(statements[0], ast.Assert)
