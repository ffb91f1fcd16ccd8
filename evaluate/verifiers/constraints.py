"""Constraints (PlanGEN, arXiv 2502.16111): one agent lists what a response must meet, another checks it against that.

    C = constraints(x);   feedback, s = check(x, C, y),  s in [-100, 100];   score = (s + 100) / 200

Both agents answer greedily. A check without a readable score is made once more, by chance; if that has none either it
is missing, not -100. Scores beyond the range are clipped. Where no constraint is found the problem itself is all that
a response is checked against. Models give high scores easily: set thresholds on problems with known answers.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from extratime.evaluate.algorithms.prompts import ask, fill
from extratime.evaluate.program import EngineError, Problem, Program, gather
from extratime.models.request import Completion

log = logging.getLogger(__name__)

LIST = (
    "List the constraints that a response to this problem must meet: one a line, each so that it can be checked. Do "
    "not solve the problem.\n\nProblem:\n{problem}"
)
CHECK = (
    "Check a response to this problem against each constraint. Be strict.\n\nProblem:\n{problem}\n\n"
    "Constraints:\n{constraints}\n\nResponse:\n{response}\n\n"
    "Write what does not hold and how to mend it. Then end with one line: the word Score, a colon, and a whole number "
    "from -100 (nothing holds) to 100 (everything holds)."
)
NONE = "what the problem says"
RETRY = 0.7
"""Temperature of a second check: the paper's own for plans."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the check of one response came to: a score in [0, 1], -inf where none could be read, and its words."""

    score: float
    feedback: str


def constraints(
    problem: Problem, responses: Sequence[Completion], role: str = "judge", listing: str = LIST, check: str = CHECK
) -> Program[list[float]]:
    """How far each response meets the constraints, in [0, 1]; -inf for failed ones and those without a score.

    Equal texts are checked once.

    Args:
        problem: what the responses answer.
        responses: whole or partial.
        role: whose model the agents are.
        listing: prompt for the constraints, with the place {problem}.
        check: prompt for a check, with the places {problem}, {constraints} and {response}.

    Raises:
        EngineError: the engine failed on the constraints, or on every check.
    """
    alive = any(r.finish != "failed" for r in responses)
    told = (yield from listed(problem, role, listing)) if alive else ""
    return (yield from against(problem, responses, told, role, check))


def against(
    problem: Problem, responses: Sequence[Completion], told: str, role: str = "judge", check: str = CHECK
) -> Program[list[float]]:
    """Scores of responses against constraints that are known; see `constraints`."""
    texts = list(dict.fromkeys(r.text for r in responses if r.finish != "failed"))
    opinions = yield from checked(problem, told, texts, role, check)
    scores = {text: opinion.score for text, opinion in zip(texts, opinions, strict=True)}
    return [scores[r.text] if r.finish != "failed" else -math.inf for r in responses]


def listed(problem: Problem, role: str = "judge", prompt: str = LIST) -> Program[str]:
    """The constraints of a problem, as the agent writes them.

    Raises:
        EngineError: the engine failed.
    """
    [reply] = yield from ask(problem, problem.turn(fill(prompt, problem=problem.question)), temperature=0, role=role)
    if reply.finish == "failed":
        raise EngineError(reply.error)
    if not reply.text.strip():
        log.warning("problem %s: no constraints were found; responses are checked against the problem", problem.id)
    return reply.text.strip() or NONE


def checked(
    problem: Problem, told: str, texts: Sequence[str], role: str = "judge", prompt: str = CHECK
) -> Program[list[Opinion]]:
    """An opinion on each text.

    Raises:
        EngineError: the engine failed on every one.
    """
    checks = [fill(prompt, problem=problem.question, constraints=told, response=text) for text in texts]
    replies = yield from gather(_check(problem, said, role) for said in checks)
    if replies and all(reply.finish == "failed" for reply in replies):
        raise EngineError(replies[0].error)
    return [Opinion(_score(reply), reply.text.strip()) for reply in replies]


def _check(problem: Problem, said: str, role: str) -> Program[Completion]:
    [reply] = yield from ask(problem, problem.turn(said), temperature=0, role=role)
    if reply.finish != "failed" and _score(reply) == -math.inf:
        [reply] = yield from ask(problem, problem.turn(said), temperature=RETRY, role=role)
    return reply


def _score(reply: Completion) -> float:
    """The last score that a check states, on [0, 1]."""
    found = re.findall(r"score\W{0,6}?(-?\d+(?:\.\d+)?)", reply.text, flags=re.IGNORECASE)
    return (min(100.0, max(-100.0, float(found[-1]))) + 100) / 200 if found else -math.inf
