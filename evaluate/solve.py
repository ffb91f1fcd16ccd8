"""One strategy on one problem, from Python.

    from extratime.evaluate.solve import solve
    answer = solve("What is 17 + 25?", strategy="self_consistency", budget=8)
    print(answer.response.text, answer.why)

Nothing is kept on disk: for more than a few problems, write a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from extratime.evaluate.grade import answer_key
from extratime.evaluate.grid import EngineSpec, StrategySpec, bind
from extratime.evaluate.program import Answer, Problem
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.streams import Streams
from extratime.models.engines.open import Opened, open_engine
from extratime.models.request import Sampling


def solve(
    problem: str,
    strategy: str = "self_consistency",
    budget: int = 8,
    model: str | Opened = "embedded",
    options: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    max_tokens: int = 256,
    answer: Callable[[str], Hashable | None] = answer_key,
) -> Answer:
    """Answer a problem.

    Args:
        problem: what a user would ask.
        strategy: file and function under `evaluate/strategies`.
        budget: full-length samples' worth of policy tokens.
        model: hub id, folder, "embedded", or an engine opened before (`extratime.models.engines.open`).
        options: the strategy's options; "verify" names a verifier.
        temperature: of the policy.
        max_tokens: length of a full response.
        answer: what a response votes for; the value of its last formula by default.

    Raises:
        RuntimeError: nothing could be drawn; the message says why.
    """
    opened = model if isinstance(model, Opened) else open_engine(model, {}, EngineSpec())
    encode, turn = opened.engine.encode, opened.turn
    task = Problem("problem", turn(problem), answer, max_tokens=max_tokens, encode=encode, turn=turn)
    program = bind(StrategySpec(strategy, strategy, options or {}), opened.known)
    cell = Cell("problem", task, program, budget, Sampling(temperature))
    result = Schedule(opened.roles, Streams()).run([cell])[0]
    if result.error:
        raise RuntimeError(f"{strategy} could not answer: {result.error}")
    return result.answer
