"""Search spaces inside a recipe: any value of it may be one of these, at any depth.

    {choice: [a, b, …]}                 one of them; each may be a mapping or list with spaces of its own
    {integer: [1, 8]}                   both ends included
    {uniform: [0.4, 1.2]}
    {log_uniform: [0.05, 5.0]}
    {repeat: [0, 3], of: [a, …]}        inside a list: these entries so often in its place, each time filled anew

Beside a range `default: x` says where it starts; a choice starts at its first entry, a repeat at its least. What a
choice did not take is not asked for, so that strategies with different options, and architectures of different depth,
are one space.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from extratime.evaluate.named import RecipeError

KINDS = ("choice", "integer", "uniform", "log_uniform")
Ask = Callable[[str, str, Sequence[Any], Any], Any]
"""(name, kind, choices or bounds, default) → a value; of a choice, the word for it."""


def fill(value: Any, ask: Ask, name: str = "") -> Any:
    """`value` with a value in place of every space.

    Args:
        value: plain values with spaces in them.
        ask: gives a value for each space, which has a name of its own.
        name: of this place.

    Raises:
        RecipeError: a space is not one of the kinds above; the message names its place.
    """
    kind = _kind(value, name)
    if kind == "choice":
        words = [word(option, i) for i, option in enumerate(value[kind])]
        taken = ask(name, kind, words, words[0])
        return fill(value[kind][words.index(taken)], ask, f"{name}={taken}")
    if kind:
        return ask(name, kind, value[kind], value.get("default"))
    if isinstance(value, Mapping):
        return {key: fill(inner, ask, f"{name}.{key}".lstrip(".")) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [entry for i, inner in enumerate(value) for entry in _entries(inner, ask, f"{name}[{i}]")]
    return value


def _entries(value: Any, ask: Ask, name: str) -> list[Any]:
    """What a list has in place of one entry: itself, or those of a repeat."""
    if not isinstance(value, Mapping) or "repeat" not in value:
        return [fill(value, ask, name)]
    times = value["repeat"]
    if not _pair(times) or "of" not in value or set(value) - {"repeat", "of", "default"}:
        raise RecipeError(f"{name}: a repeat is {{repeat: [low, high], of: [a, …]}}, perhaps a default, not {value!r}")
    found: list[Any] = []
    for i in range(ask(name, "integer", times, value.get("default", times[0]))):
        of = fill(value["of"], ask, f"{name}#{i}")
        if not isinstance(of, list):
            raise RecipeError(f"{name}: a repeat is of a list of entries, not of {of!r}")
        found += of
    return found


def word(option: Any, i: int) -> str:
    """The i-th option in a word: itself, or its number and what it begins with where it is no plain value."""
    if isinstance(option, Mapping):
        return f"{i} {next(iter(option), '')}"
    return f"{i}" if isinstance(option, list | tuple) else json.dumps(option)


def asked(trial: Any) -> Ask:
    """Values that an Optuna trial suggests."""

    def ask(name: str, kind: str, said: Sequence[Any], default: Any) -> Any:
        if kind == "choice":
            return trial.suggest_categorical(name, list(said))
        if kind == "integer":
            return trial.suggest_int(name, *said)
        return trial.suggest_float(name, *said, log=kind == "log_uniform")

    return ask


def starting(found: dict[str, Any]) -> Ask:
    """Where every space starts; what is asked for is noted in `found`."""

    def ask(name: str, kind: str, said: Sequence[Any], default: Any) -> Any:
        if default is None:
            raise RecipeError(
                f"{name}: say `default: …` beside {kind}, since the first strategy has to start somewhere"
            )
        found[name] = default
        return default

    return ask


def _kind(value: Any, name: str) -> str:
    """The kind of space that a value is, or ""."""
    kinds = [kind for kind in KINDS if isinstance(value, Mapping) and kind in value]
    if not kinds:
        return ""
    said = value[kinds[0]]
    sized = _pair(said) if kinds[0] != "choice" else isinstance(said, list | tuple) and len(said) > 0
    extra = set(value) - {kinds[0]} - ({"default"} if kinds[0] != "choice" else set())
    if extra or not sized:
        raise RecipeError(
            f"{name}: a space is {{choice: [a, …]}}, or one of integer, uniform and log_uniform with [low, high] and "
            f"perhaps a default, not {value!r}"
        )
    return kinds[0]


def _pair(said: Any) -> bool:
    return isinstance(said, list | tuple) and len(said) == 2
