"""Solutions and verifications from one budget (arXiv 2504.01005): when to solve, when to verify.

A budget of C solutions' worth of tokens pays for S solutions with V verifications each,

    C(S, V) = S·(1 + λV),   λ = tokens of a verification / tokens of a solution,

where λ is near 1 for a prompted judge and 2 for one that was taught (measure it: `judged` / `generated` / V). The best
allocation grows as S ∝ C^a, V ∝ C^b with a = 0.57, b = 0.39 (Llama-3.1-8B; 0.75 and 0.32 for Qwen2.5-7B): solutions
faster than verifications. No factor is published, so V = round(C^b) and S is what is left. Where that leaves fewer
than two solutions, V is lowered; at V = 0 nothing is verified and the majority answers, which is also best there.

A response's score is the verifier's, of which a generative judge makes the mean over its V verdicts; missing verdicts
do not count, and responses from which no answer can be read never win. Equal responses are judged once.

Budget law: S·(1 + λV) ≤ `budget`. The scheduler counts the S solutions; a verifier's tokens are in λ alone, unless the
policy verifies under its own role.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Literal

import numpy as np

from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, sample
from extratime.evaluate.strategies.iterative_agent_decoding import ranked
from extratime.evaluate.strategies.weighted_vote import weights
from extratime.evaluate.verifiers.generative import generative


def solve_then_verify(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = generative,
    relative_cost: float = 1.0,
    votes: int | None = None,
    exponent: float = 0.39,
    select: Literal["best", "vote"] = "best",
) -> Program[Answer]:
    """The solution with the highest mean verdict.

    Args:
        problem: what to answer.
        budget: solutions' worth of tokens, for solutions and verifications together.
        rng: not used.
        verify: scores solutions; given `votes` if it takes them.
        relative_cost: λ.
        votes: V; None takes the published law.
        exponent: b of that law.
        select: the best solution answers, or solutions vote with their scores (often better at small budgets).
    """
    n, v = allocation(budget, relative_cost, votes, exponent)
    responses = yield from sample(problem.prompt, n)
    if not v:
        return elect(problem, responses, [1.0] * n, f"majority of {n} solutions, none verified")
    ask: Callable[..., Program[list[float]]] = verify
    if "votes" in inspect.signature(verify).parameters:
        ask = functools.partial(ask, votes=v)
    scores = yield from ask(problem, responses)
    scores, why = ranked(problem, responses, scores), f"{n} solutions with {v} verifications each"
    return elect(problem, responses, weights(scores), why) if select == "vote" else best(responses, scores, why)


def allocation(budget: int, relative_cost: float, votes: int | None = None, exponent: float = 0.39) -> tuple[int, int]:
    """S and V, S·(1 + λV) ≤ budget; see the module. V is 0 where no two solutions can be verified."""
    if relative_cost < 0:
        raise ValueError(f"a verification costs at least 0 solutions, not {relative_cost}")
    wanted = max(1, round(budget**exponent)) if votes is None else votes
    for v in range(wanted, 0, -1):
        if (n := int(budget / (1 + relative_cost * v) + 1e-9)) > 1:
            return n, v
    return budget, 0
