"""What recipes write: entries with options, lists, and strategies and verifiers by the names of their files."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent


class RecipeError(ValueError):
    """A recipe says something that can't be meant; the message names file, key and remedy."""


def named(entry: Any, what: str) -> tuple[str, dict[str, Any]]:
    """Name and options of an entry: `name`, or `{name: {option: value}}`.

    Args:
        entry: as a recipe writes it.
        what: it is, for the message.

    Raises:
        RecipeError: it is neither.
    """
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise RecipeError(f"{what} is a name or one name with its options, not {entry!r}")
    name, options = next(iter(entry.items()))
    return name, dict(options or {})


def listed(key: str, said: Any) -> list[Any]:
    """The entries of a list.

    Args:
        key: whose value it is, for the message.
        said: as a recipe writes it.

    Raises:
        RecipeError: it is no list, or empty.
    """
    if not isinstance(said, list | tuple) or not said:
        raise RecipeError(f"{key!r} must be a list with at least one entry, not {said!r}")
    return list(said)


def find(kind: Literal["strategies", "verifiers"], name: str) -> Callable[..., Any]:
    """The strategy or verifier of a name: the function of that name in the file of that name.

    Raises:
        RecipeError: there is none; the message lists those there are.
    """
    known = sorted(p.stem for p in (HERE / kind).glob("*.py") if p.stem != "__init__")
    if name not in known:
        one = {"strategies": "strategy", "verifiers": "verifier"}[kind]
        raise RecipeError(f"no {one} {name!r}; there are {', '.join(known)}")
    module = importlib.import_module(f"extratime.evaluate.{kind}.{name}")
    function: Callable[..., Any] = getattr(module, name)
    return function


def check_options(function: Callable[..., Any], options: Mapping[str, Any], skip: int) -> None:
    """Refuse options that a function does not have after its first `skip` arguments.

    Raises:
        RecipeError: names function and option.
    """
    known = list(inspect.signature(function).parameters)[skip:]
    for key in options:
        if key not in known:
            raise RecipeError(f"{function.__name__} has no option {key!r}; it has {', '.join(known) or 'none'}")
