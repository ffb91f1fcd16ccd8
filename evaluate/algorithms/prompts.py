"""What strategies say to a model beside the problem itself, and how they read what it says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from extratime.evaluate.program import Problem, Program, sample, standing
from extratime.models.request import Completion, Prompt


def ask(
    problem: Problem, prompt: Prompt, n: int = 1, *, temperature: float | None = None, role: str = "policy"
) -> Program[list[Completion]]:
    """Replies of at most a full length from the model of a role.

    Another model reads the prompt's text in tokens of its own; its replies come back as words alone, since whoever
    reads them next may have other tokens.
    """
    if role == "policy":
        return (yield from sample(prompt, n, temperature=temperature))
    bare, length = Prompt(prompt.text), problem.max_tokens
    replies = yield from sample(bare, n, temperature=temperature, max_tokens=length, role=role)
    return [replace(reply, prompt=prompt, tokens=(), logprobs=(), tempered=()) for reply in replies]


def fill(template: str, **said: str) -> str:
    """`template` with each `{name}` replaced by what is said of it; braces around other words stay.

    Raises:
        ValueError: the template has no place for one of the names; the message names it.
    """
    for name in said:
        if f"{{{name}}}" not in template:
            raise ValueError(f"a prompt has no place for {{{name}}}: {template!r}")
    return re.sub(rf"\{{({'|'.join(said)})\}}", lambda found: said[found[1]].strip(), template)


def numbered(texts: Sequence[str]) -> str:
    """Texts one after the other, each after its number in brackets, from 1."""
    return "\n\n".join(f"[{i}] {text.strip()}" for i, text in enumerate(texts, 1))


def blocks(text: str, n: int) -> list[str]:
    """What `text` says after each number in brackets at the beginning of a line; "" where it says nothing."""
    parts = re.split(r"^[\s*#]*\[(\d+)\][:.*]*", text, flags=re.MULTILINE)
    said = {int(number): part.strip() for number, part in zip(parts[1::2], parts[2::2], strict=True)}
    return [said.get(i, "") for i in range(1, n + 1)]


def order(text: str, n: int) -> list[int]:
    """Indices of `n` things in the order of a ranking such as `[3] > [1]`; those it does not name follow as they were.

    The last line that ranks counts, so that reasons may stand before it; numbers out of range and repeats do not.
    """
    rankings = re.findall(r"^.*\[\d+\]\s*>.*$", text, flags=re.MULTILINE)
    named = [int(number) - 1 for number in re.findall(r"\[(\d+)\]", rankings[-1] if rankings else text)]
    return list(dict.fromkeys([*(i for i in named if 0 <= i < n), *range(n)]))


def usable(responses: Sequence[Completion]) -> list[Completion]:
    """The finished responses; where none finished, the unfinished ones that say something. Failed ones never."""
    finished = [r for r in responses if r.finished]
    return finished or [r for r in responses if standing(r) and r.text.strip()]
