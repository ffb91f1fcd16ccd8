"""Recursive reasoning (PRefLexOR, arXiv 2410.12375, inference): criticise the thinking, rewrite it, answer again.

The policy thinks and answers. Then, `rounds` times: a critic says what is wrong with the thinking, rewrites it by what
was said, and the policy answers anew with the rewritten thinking put into its mouth, between its own marks. With
`reflect`, the policy's own section between those marks stands for the critique where its last response holds one.

The published merge has the critic write one answer out of all, which means nothing for numbers: it is an option, and
by default the answers vote. The thinking of a response is what stands before the mark that ends it; a response without
such a mark is all thinking.

Budget law: one full length for the first response; a round costs one for the answer and, where the policy is its own
critic, one for the critique and one for the rewriting; merging by the critic costs one more. Rounds that the budget
does not pay for in full are not begun. Words put into the policy's mouth count towards a response's length, but are
not generated. A rewritten thinking that leaves no room for an answer ends the rounds.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from extratime.evaluate.algorithms.forcing import put
from extratime.evaluate.algorithms.prompts import ask, fill, numbered
from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, extend, growing, sample
from extratime.evaluate.strategies.self_refine import latest
from extratime.models.request import Completion

CRITIQUE = (
    "{question}\n\nSomeone thinks about this problem:\n{thinking}\n\nSay briefly what is wrong or missing in this "
    "thinking, and how to mend it. Do not give the answer."
)
REWRITE = (
    "{question}\n\nSomeone thinks about this problem:\n{thinking}\n\nWhat a critic says of it:\n{critique}\n\nWrite "
    "the thinking again with what the critic asks for. Keep its form, and write nothing else."
)
MERGE = "{question}\n\nAnswers to this problem:\n\n{answers}\n\nPut them together into one complete answer."


def recursive_reasoning(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    rounds: int = 2,
    critic: str = "policy",
    merge: Literal["vote", "last", "critic"] = "vote",
    think: tuple[str, str] = ("<think>", "</think>"),
    reflect: tuple[str, str] | None = None,
    critique: str = CRITIQUE,
    rewrite: str = REWRITE,
) -> Program[Answer]:
    """A response out of all rounds, or the critic's own.

    Args:
        problem: what to answer.
        budget: see the budget law.
        rng: not used.
        rounds: rounds after the first response.
        critic: role that criticises and rewrites: the policy, or "judge", which is no part of the budget.
        merge: majority of all answers, the last one, or one that the critic writes out of all.
        think: texts around the thinking; `<|thinking|>` and `<|/thinking|>` in the published models.
        reflect: texts around the policy's own reflection, `<|reflect|>` and `<|/reflect|>` in the published models.
        critique: asks for a critique; with the places {question} and {thinking}.
        rewrite: asks for a rewriting; with the places {question}, {thinking} and {critique}.
    """
    own = critic == "policy"
    pool = yield from sample(problem.prompt)
    thinking = thought(pool[0].text, think)
    for _ in range(min(rounds, (budget - 1 - (own and merge == "critic")) // (3 if own else 1))):
        said = section(pool[-1].text, reflect) if reflect else ""
        said = said or (yield from _asked(problem, critic, critique, thinking=thinking))
        thinking = thought((yield from _asked(problem, critic, rewrite, thinking=thinking, critique=said)), think)
        stem = put(problem, Completion(problem.prompt, "", 0, finish="length"), thinking.join(think))
        if not (thinking and growing(problem, stem)):
            break
        pool += yield from extend([stem])
    if merge == "critic" and len(pool) > 1:
        answers = numbered([response.text.rpartition(think[1])[2] for response in pool])
        merged = fill(MERGE, question=problem.question, answers=answers)
        pool += yield from ask(problem, problem.turn(merged), role=critic)
    if merge == "vote":
        return elect(problem, pool, [1.0] * len(pool), "majority of all rounds")
    return latest(problem, pool, "the last round")


def thought(text: str, marks: tuple[str, str]) -> str:
    """The thinking in a response: what stands before the last mark that ends it, without marks."""
    head, closed, _ = text.rpartition(marks[1])
    said = head if closed else text
    return said.replace(marks[0], "").replace(marks[1], "").strip()


def section(text: str, marks: tuple[str, str]) -> str:
    """What stands between the last opening mark and the closing one after it; "" where there is no such place."""
    _, opened, rest = text.rpartition(marks[0])
    said, closed, _ = rest.partition(marks[1])
    return said.strip() if opened and closed else ""


def _asked(problem: Problem, role: str, template: str, **told: str) -> Program[str]:
    text = fill(template, question=problem.question, **told)
    [said] = yield from ask(problem, problem.turn(text), role=role)
    return said.text.strip()
