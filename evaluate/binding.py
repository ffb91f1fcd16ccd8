"""Strategies with the options that a recipe writes: plain values become verifiers, stages and other strategies."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from extratime.evaluate.algorithms.pipeline import read_stages
from extratime.evaluate.named import RecipeError, check_options, find, listed, named

Known = Mapping[str, Sequence[Mapping[str, Any]]]
"""By verifier, options that checkpoints tell together: an adapter and the question it was taught."""


def bound(name: str, options: Mapping[str, Any], known: Known) -> Callable[..., Any]:
    """A strategy with its options.

    Args:
        name: file and function under `evaluate/strategies`.
        options: as a recipe writes them.
        known: a verifier's defaults are its entry for the adapter that the options name, or else its first.

    Raises:
        RecipeError: there is no such strategy, verifier or option, or the options can't be meant.
    """
    function = find("strategies", name)
    told = _told(function, options, known)
    default = inspect.signature(function).parameters.get("verify")
    if default is not None and "verify" not in options and default.default is not None:
        told["verify"] = _verifier(default.default.__name__, known)
    return functools.partial(function, **told)


def _told(function: Callable[..., Any], options: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """Options of a strategy, each as it takes it."""
    check_options(function, options, skip=3)
    return {key: _value(key, said, known) for key, said in options.items()}


def _value(key: str, said: Any, known: Known) -> Any:
    """An option as the strategy takes it; some plain values stand for programs."""
    if key == "verify":
        return _verifier(said, known)
    if key == "strategies":
        return tuple(bound(*named(entry, "a strategy"), known) for entry in listed(key, said))
    if key == "stages":
        return read_stages(said, functools.partial(_verifier, known=known))
    if key == "algorithms":
        return tuple(_algorithm(entry) for entry in listed(key, said))
    return tuple(said) if isinstance(said, list) else said


def _algorithm(said: Any) -> Callable[..., Any]:
    """A strategy that another one runs, with that one's verifier."""
    name, options = named(said, "an algorithm")
    function = find("strategies", name)
    if "verify" not in inspect.signature(function).parameters or "verify" in options:
        raise RecipeError(
            f"{name} cannot be run with another verifier; choose a strategy that takes one, name none here"
        )
    return functools.partial(function, **_told(function, options, {}))


def _verifier(said: Any, known: Known) -> Callable[..., Any]:
    name, options = named(said, "a verifier")
    function = find("verifiers", name)
    check_options(function, options, skip=2)
    told = sorted(known.get(name, ()), key=lambda entry: entry.get("adapter") != options.get("adapter"))
    return functools.partial(function, **{**(told[0] if told else {}), **options})
