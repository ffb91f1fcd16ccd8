"""Episodes: the consecutive parts of a trace of thinking, as MRT cuts it (arXiv 2503.07572).

A trace is its thinking and, from the text that ends it on, the answer. Blank lines part the thinking into steps; each
step is an episode, or each step that opens with a cue word begins one. Nothing is lost: parts joined are the trace.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise

CUES = (
    "Wait",
    "But wait",
    "Alternatively",
    "Is there another way to think about this?",
    "But let me double-check",
    "But hold on",
)
"""How the published models begin an episode."""


def split(trace: str, end: str) -> tuple[str, str]:
    """Thinking, and what follows from `end` on; all is thinking where `end` does not occur or is empty."""
    at = trace.find(end) if end else -1
    return (trace, "") if at < 0 else (trace[:at], trace[at:])


def episodes(
    thinking: str, cues: Sequence[str] = (), gap: int = 2, most: int | None = None, group: int = 1
) -> list[str]:
    """The episodes of some thinking, each with the blank line that ends it.

    Args:
        thinking: the trace without its answer.
        cues: words that begin an episode; without any, each step is one.
        gap: steps after the beginning of an episode in which no cue counts; the first step begins one.
        most: episodes to tell apart; the last holds the rest.
        group: how many episodes are joined to one, after that.
    """
    if gap < 0 or group < 1 or (most is not None and most < 1):
        raise ValueError(f"gap must be ≥ 0, most and group ≥ 1, not {gap}, {most} and {group}")
    steps = [step for step in re.split(r"(?<=\n\n)(?!\n)", thinking) if step]
    begins = _begins(steps, cues, gap)[:most]
    parts = ["".join(steps[i:j]) for i, j in pairwise([*begins, len(steps)])]
    return ["".join(parts[i : i + group]) for i in range(0, len(parts), group)]


def _begins(steps: Sequence[str], cues: Sequence[str], gap: int) -> list[int]:
    if not (cues and steps):
        return list(range(len(steps)))
    found = [0]
    for i, step in enumerate(steps):
        if step.startswith(tuple(cues)) and i - found[-1] > gap:
            found.append(i)
    return found


def prefixes(parts: Sequence[str]) -> list[str]:
    """The context after each number of episodes: k + 1 of them, from nothing to all."""
    return list(accumulate(parts, initial=""))


def bridge(said: str, cue: str) -> str:
    """`cue` as it goes on from `said`: without the line breaks that `said` ends with, or any where nothing is said."""
    leading = len(cue) - len(cue.lstrip("\n"))
    trailing = len(said) - len(said.rstrip("\n")) if said else leading
    return cue[min(leading, trailing) :]
