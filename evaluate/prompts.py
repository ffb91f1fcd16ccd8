"""What a strategy asks besides the problem itself: templates, filled and put as a user's turn."""

from __future__ import annotations

import re
from collections.abc import Sequence

from extratime.evaluate.program import Problem
from extratime.models.request import Prompt


def fill(template: str, **told: str) -> str:
    """`template` with each {name} that is told replaced; all other braces stay, and what is put in is not searched.

    Raises:
        ValueError: the template has no place for something that is told.
    """
    for name in told:
        if f"{{{name}}}" not in template:
            raise ValueError(f"the prompt has no place for {{{name}}}: {template!r}")
    names = "|".join(map(re.escape, told))
    return re.sub(rf"\{{({names})\}}", lambda found: told[found[1]].strip(), template)


def ask(problem: Problem, text: str, role: str = "policy") -> Prompt:
    """`text` as a user's turn; a role other than the policy reads its words in tokens of its own."""
    turn = problem.turn(text)
    return turn if role == "policy" else Prompt(turn.text)


def listed(attempts: Sequence[str]) -> str:
    """Attempts one after the other, numbered from 1."""
    return "\n\n".join(f"Attempt {i}:\n{text.strip()}" for i, text in enumerate(attempts, 1))
