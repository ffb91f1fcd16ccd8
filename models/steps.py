"""Steps of a response, and how a model that weighs them reads them.

A separator ends a step. Prompt, steps and separators are turned into tokens apart from each other, so that a step's
end is always the same token, whatever stands beside it; the last step gets a separator even where the response has
none. A blank step is read like any other and has no end: there is nothing to weigh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from extratime.models.engines.text import encoder

Reading: TypeAlias = "tuple[tuple[int, ...], tuple[int, ...]]"
"""Token ids, and those of their places at which a step ends; no places where the whole text is weighed."""


class Unreadable(ValueError):
    """A response whose steps a reward model cannot be asked about; the message says why."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What ends a step for a model that weighs steps."""

    separator: str = "\n"

    def __post_init__(self) -> None:
        if not self.separator:
            raise ValueError("the separator must not be empty")


def split(text: str, separator: str) -> list[str]:
    """The steps of a response that say something."""
    return [step for step in text.split(separator) if step.strip()]


def reader(tokenizer: Any, separator: str) -> Callable[[str, str], Reading]:
    """From the texts of prompt and response to what goes through the model; one place for each step of `split`."""
    encode = encoder(tokenizer)

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    def read(prompt: str, said: str) -> Reading:
        ids, ends = list(encode(prompt).ids or ()), []
        for step in said.removesuffix(separator).split(separator) if said else ():
            ids += tokens(step) + tokens(separator)
            if step.strip():
                ends.append(len(ids) - 1)
        return tuple(ids), tuple(ends)

    return read
