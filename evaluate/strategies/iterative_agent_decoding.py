"""Iterative agent decoding (IAD, arXiv 2504.01931): what a verifier thinks of the draws so far conditions the next.

Draw `samples` responses, score them, and ask for the next ones with the best and the weakest attempt so far in view:
surpass the one, avoid the faults of the other. A new response takes the best one's place only if it scores strictly
higher, so that the best score never falls. Stop when the budget is spent, when the best score reaches `enough`, or
after `patience` rounds without a better one.

A response from which no answer can be read ranks below all others and is never shown; neither is a weakest attempt
that scores as high as the best, or says the same.

Budget law: at most `budget` full-length samples, in rounds of `samples`; a critique is one of them where the policy is
its own critic. Each round's prompt is read anew and holds up to two responses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from extratime.evaluate.algorithms.prompts import ask, fill
from extratime.evaluate.algorithms.vote import ballots
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, rank, sample
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.models.request import Completion

Feedback = Literal["none", "attempts", "scores", "critique"]

PROMPT = (
    "{question}\n\n{feedback}\n\nKeep what is good about the best attempt, mend its remaining faults and do not "
    "repeat those of the others. Write one complete new solution with its final answer."
)
CRITIQUE = (
    "{question}\n\nAn attempt at this problem:\n{attempt}\n\nName the most serious fault of this attempt and say "
    "how to mend it. Do not solve the problem."
)


def iterative_agent_decoding(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = likelihood,
    samples: int = 4,
    feedback: Feedback = "scores",
    enough: float = 1.0,
    patience: int | None = None,
    critic: str = "judge",
    prompt: str = PROMPT,
    critique: str = CRITIQUE,
) -> Program[Answer]:
    """The response of the highest score over all rounds.

    Args:
        problem: what to answer.
        budget: see the budget law.
        rng: not used.
        verify: scores complete responses.
        samples: draws of a round; 2 to 6 in the paper, with 3 or 4 rounds.
        feedback: what a round is told: nothing (the control, resampling with the same rule), the best and the weakest
            attempt, their scores, or what a critic says of the best one as well.
        enough: score at which to stop, the highest that the verifier gives.
        patience: rounds without a better response after which to stop; None never gives up.
        critic: role that writes the critique.
        prompt: with the places {question} and {feedback}.
        critique: asks the critic; with the places {question} and {attempt}.
    """
    pool = yield from sample(problem.prompt, min(samples, budget))
    scores = ranked(problem, pool, (yield from verify(problem, pool)))
    idle, spent, price = 0, len(pool), int(feedback == "critique" and critic == "policy")
    while spent + price < budget and max(scores) < enough and idle != patience:
        told = yield from _told(problem, pool, scores, feedback, critic, critique)
        text = fill(prompt, question=problem.question, feedback=told) if told else ""
        asked = problem.turn(text) if told else problem.prompt
        drawn = yield from ask(problem, asked, min(samples, budget - spent - price))
        fresh = ranked(problem, drawn, (yield from verify(problem, drawn)))
        idle = 0 if max(fresh) > max(scores) else idle + 1
        pool, scores, spent = [*pool, *drawn], [*scores, *fresh], spent + len(drawn) + price
    return best(pool, scores, f"highest score of {len(pool)} draws")


def ranked(problem: Problem, responses: Sequence[Completion], scores: Sequence[float]) -> list[float]:
    """Scores, -inf where they are missing and for responses from which no answer can be read."""
    votes = ballots(problem, responses)
    return [-math.inf if v is None else rank(s) for v, s in zip(votes, scores, strict=True)]


def extremes(pool: Sequence[Completion], scores: Sequence[float]) -> tuple[int | None, int | None]:
    """The best and the weakest attempt worth showing, the earlier ones of equals; None where there is none."""
    known = [i for i, s in enumerate(scores) if s > -math.inf]
    if not known:
        return None, None
    top, low = max(known, key=lambda i: scores[i]), min(known, key=lambda i: scores[i])
    same = scores[low] == scores[top] or pool[low].text.strip() == pool[top].text.strip()
    return top, None if same else low


def _told(
    problem: Problem, pool: Sequence[Completion], scores: Sequence[float], feedback: Feedback, role: str, template: str
) -> Program[str]:
    """The feedback on what was drawn so far; "" where there is none."""
    top, low = extremes(pool, scores)
    if top is None or feedback == "none":
        return ""
    said = [_shown(f"The {rank} attempt so far", pool[i].text, scores[i], feedback) for rank, i in _both(top, low)]
    if feedback == "critique":
        text = fill(template, question=problem.question, attempt=pool[top].text)
        [found] = yield from ask(problem, problem.turn(text), role=role)
        said += [f"What a critic says of the best attempt:\n{found.text.strip()}"] if found.text.strip() else []
    return "\n\n".join(said)


def _both(top: int, low: int | None) -> list[tuple[str, int]]:
    return [("best", top)] + ([("weakest", low)] if low is not None else [])


def _shown(name: str, text: str, score: float, feedback: Feedback) -> str:
    told = "" if feedback == "attempts" else f" (score {score:.3g})"
    return f"{name}{told}:\n{text.strip()}"
