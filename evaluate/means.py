"""Whether the engines of a recipe can answer what its verifiers ask; found out before any work.

A verifier is a program: what it asks first about a made-up response tells what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from extratime.evaluate.algorithms.pipeline import layered
from extratime.evaluate.named import RecipeError
from extratime.evaluate.program import Gather, Problem
from extratime.models.request import Completion, Engine, Probe, Profile, Prompt, Sample, Score


def refuse_beyond_means(strategies: Mapping[str, Callable[..., Any]], engines: Mapping[str, Engine]) -> None:
    """Check each strategy's verifiers, and the roles of its stages, against the engines.

    Args:
        strategies: programs with their options bound, by label.
        engines: by role.

    Raises:
        RecipeError: an engine cannot answer a verifier, or a role has none; the message names both.
    """
    for label, strategy in strategies.items():
        for part in _parts(strategy):
            if lacking := _lacking(Sample(Prompt("?"), role=part.get("role", "policy")), engines):
                raise RecipeError(f"{label}: a stage or draw {lacking}")
            for request in _asked(part["verify"], engines["policy"].profile) if part.get("verify") else ():
                if lacking := _lacking(request, engines):
                    raise RecipeError(f"{label}: its verifier {lacking}; choose another verifier or engine")


def _parts(strategy: Callable[..., Any]) -> Iterable[Mapping[str, Any]]:
    """The options of a strategy, of its stages, and of the strategies that it chooses among."""
    options = getattr(strategy, "keywords", {})
    yield options
    for stage in chain.from_iterable(layered(options.get("stages", ()))):
        yield {key: getattr(stage, key) for key in ("role", "verify") if hasattr(stage, key)}
    yield from chain.from_iterable(map(_parts, options.get("strategies", ())))


def _asked(verify: Callable[..., Any], policy: Profile) -> Iterable[Any]:
    logprobs = (-1.0,) if policy.logprobs else ()
    responses = [Completion(Prompt("?"), text, 1, logprobs=logprobs) for text in ("!", "!!")]
    problem = Problem("made-up", responses[0].prompt, answer=str, correct=lambda text: False)
    yield from _asks(verify(problem, responses))


def _asks(program: Any) -> Iterable[Any]:
    """What a program asks up to its first numbers; of programs side by side, the first speaks for all."""
    said = next(program, ())
    while isinstance(said, Sample):
        yield said
        thought = Completion(said.prompt, "", 1, finish="pause")
        try:
            said = program.send([thought] * len(said.along or range(said.n)))
        except StopIteration:
            return
    if isinstance(said, Gather):
        yield from _asks(said.programs[0])
    else:
        yield from said if isinstance(said, tuple | list) else (said,)


def _lacking(request: Any, engines: Mapping[str, Engine]) -> str:
    if not isinstance(request, Sample | Score | Probe):
        return ""
    engine = engines.get(request.role)
    if engine is None:
        add = "; add `verifier: {model: …}` for a reward model" if request.role == "verifier" else ""
        return f"asks the role {request.role!r}, but the recipe's engines are: {', '.join(sorted(engines))}{add}"
    if isinstance(request, Sample):
        return ""
    if isinstance(request, Score):
        return "" if engine.profile.scores else "has responses scored, which this engine cannot do"
    if not engine.profile.probes:
        return "asks for the probabilities of single tokens, which this engine does not tell"
    if request.adapter is not None and request.adapter not in engine.adapters:
        return f"names the adapter {request.adapter!r}, but the engine's are: {', '.join(engine.adapters) or 'none'}"
    return ""
