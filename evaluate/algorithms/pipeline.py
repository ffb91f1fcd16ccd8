"""Layers of stages: the rules that hold between them, what they cost, and one step.

Rules (Archon, arXiv 2409.15254, §3.2; the last two are ours):

- the first layer holds generators, and no other layer does;
- a layer holds one kind of component, and several of it only where they write candidates: generators and fusers;
- who must read critiques has a critic before it, after whatever wrote its candidates;
- each critic has a ranker or a fuser that reads it;
- the last layer leaves one candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, TypeAlias

from extratime.evaluate.algorithms.stages import MANY, STAGES, Critic, Fuser, Generator, Ranker, Stage, State
from extratime.evaluate.named import check_options, named
from extratime.evaluate.program import Problem, Program, Verifier

Layer: TypeAlias = tuple[Stage, ...]


def advance(problem: Problem, layer: Layer, state: State) -> Program[State]:
    """`state` after one layer. Where no component leaves a candidate, those before it stay."""
    after: list[State] = []
    for stage in layer:
        after.append((yield from stage(problem, state)))
    made = (*state.made, *chain.from_iterable(one.made for one in after))
    candidates = tuple(chain.from_iterable(one.candidates for one in after))
    return State(candidates, after[0].critiques, made) if candidates else replace(state, made=made)


def read_stages(said: Any, verifier: Callable[[Any], Verifier]) -> tuple[Layer, ...]:
    """The layers that a recipe writes, held to the rules.

    Args:
        said: a list of components, each a name or one name with its options; or of lists of them.
        verifier: reads the option `verify`.

    Raises:
        ValueError: it can't be meant; the message names the stage.
    """
    if not isinstance(said, list | tuple):
        raise ValueError(f"stages must be a list, not {said!r}")
    layers = [entry if isinstance(entry, list | tuple) else [entry] for entry in said]
    stages = tuple(
        tuple(_stage(f"stage {i}", entry, verifier) for entry in layer) for i, layer in enumerate(layers, 1)
    )
    check(stages)
    return stages


def _stage(where: str, entry: Any, verifier: Callable[[Any], Verifier]) -> Stage:
    name, options = named(entry, where)
    if name not in STAGES:
        raise ValueError(f"{where}: no component {name!r}; there are {', '.join(STAGES)}")
    try:
        check_options(STAGES[name], options, skip=0)
        if "verify" in options:
            options["verify"] = verifier(options["verify"])
        stage: Stage = STAGES[name](**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} ({name}): {error}") from error
    return stage


def layered(stages: Sequence[Stage | Sequence[Stage]]) -> tuple[Layer, ...]:
    """Each entry as a layer."""
    return tuple(tuple(entry) if isinstance(entry, Sequence) else (entry,) for entry in stages)


def check(stages: Sequence[Stage | Sequence[Stage]]) -> None:
    """Hold stages to the rules.

    Raises:
        ValueError: they break one; the message names the stage and the rule.
    """
    layers = layered(stages)
    if not layers:
        raise ValueError("there is no stage; the first must be a generator")
    wheres = [f"stage {i} ({', '.join(map(_kind, layer))})" for i, layer in enumerate(layers, 1)]
    for i, (where, layer) in enumerate(zip(wheres, layers, strict=True)):
        _check_layer(where, [_kind(stage) for stage in layer], first=i == 0)
    _check_critiques(dict(zip(wheres, layers, strict=True)))
    if (left := sum(stage.leaves(MANY) for stage in layers[-1])) != 1:
        said = f"{wheres[-1]}: the last stage must leave one candidate, and this may leave {left}"
        raise ValueError(f"{said}; end with a fuser of n: 1, a ranker of k: 1 or a verifier of first: 1")


def _check_layer(where: str, kinds: Sequence[str], first: bool) -> None:
    if len(set(kinds)) != 1:
        raise ValueError(f"{where}: a stage holds one kind of component; give each kind a stage of its own")
    if first and kinds[0] != "generator":
        raise ValueError(f"{where}: the first stage must be a generator; nothing has candidates before it")
    if not first and kinds[0] == "generator":
        raise ValueError(f"{where}: generators stand in the first stage only; a fuser writes later candidates")
    if len(kinds) > 1 and kinds[0] not in ("generator", "fuser"):
        raise ValueError(f"{where}: only generators and fusers stand side by side; give each a stage of its own")


def _check_critiques(layers: Mapping[str, Layer]) -> None:
    """Whether critiques are there for who must read them, and whether somebody reads them while they hold."""
    told, unread = False, ""
    for where, layer in layers.items():
        if not told and any(getattr(stage, "critiques", None) for stage in layer):
            raise ValueError(f"{where}: it reads critiques, but no critic comes after what wrote its candidates")
        unread = "" if any(map(_reads, layer)) else unread
        renewed = isinstance(layer[0], Critic | Fuser)
        if unread and renewed:
            break
        if renewed:
            told, unread = isinstance(layer[0], Critic), where if isinstance(layer[0], Critic) else ""
    if unread:
        raise ValueError(f"{unread}: no ranker or fuser reads its critiques while they hold")


def _reads(stage: Stage) -> bool:
    asks = isinstance(stage, Fuser) or (isinstance(stage, Ranker) and stage.verify is None)
    return asks and getattr(stage, "critiques", None) is not False


def paid(layers: Sequence[Layer], budget: int) -> tuple[Layer, ...]:
    """The layers that a budget pays for, with the draws of each generator."""
    free = [layer for i, layer in enumerate(layers) if not i or not sum(stage.draws(2) for stage in layer)]
    for kept, least in ((layers, 2), (free, 1)):
        for n in range(budget, least - 1, -1):
            if cost(kept, n) <= budget:
                return (_drawing(kept[0], n), *kept[1:])
    return (_drawing(free[0], 1), *free[1:])


def cost(layers: Sequence[Layer], n: int) -> int:
    """Policy draws of all layers at most, with `n` to spend for each generator."""
    total = 0
    for layer in layers:
        total += sum(stage.draws(n) for stage in layer)
        n = sum(stage.leaves(n) for stage in layer)
    return total


def _drawing(layer: Layer, n: int) -> Layer:
    return tuple(replace(stage, n=stage.leaves(n)) if isinstance(stage, Generator) else stage for stage in layer)


def _kind(stage: Stage) -> str:
    return next((name for name, kind in STAGES.items() if isinstance(stage, kind)), type(stage).__name__)
