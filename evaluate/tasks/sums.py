"""Integer sums with worked solutions, drawn by reasoning-gym's `chain_sum`: tasks that need no download.

Difficulty is the number of terms and of digits. Splits are disjoint: a sum that occurs in an earlier split (train
before validation before test) is skipped in a later one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import datasets
import reasoning_gym

SEEDS = {"train": 1, "validation": 2, "test": 3}


def documents(
    terms: int, digits: int, train: int = 2000, validation: int = 400, test: int = 400, **metadata: object
) -> dict[str, datasets.Dataset]:
    """Documents of one difficulty: expression, answer, solution; by split.

    Args:
        terms: numbers added or subtracted.
        digits: digits of each number.
        train: documents of the training split.
        validation: documents of the validation split.
        test: documents of the test split.
        metadata: what lm-eval adds of its own; not used.
    """
    seen: set[str] = set()
    sizes = {"train": train, "validation": validation, "test": test}
    return {split: datasets.Dataset.from_list(_fresh(terms, digits, split, n, seen)) for split, n in sizes.items()}


def _fresh(terms: int, digits: int, split: str, size: int, seen: set[str]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    expressions = _expressions(terms, digits, SEEDS[split], 20 * size)
    while len(found) < size and (expression := next(expressions, None)):
        if expression not in seen:
            seen.add(expression)
            found.append(document(expression))
    if len(found) < size:
        raise ValueError(f"only {len(found)} of {size} different sums of {terms} terms with {digits} digits exist")
    return found


def _expressions(terms: int, digits: int, seed: int, size: int) -> Iterator[str]:
    problems = reasoning_gym.create_dataset(
        "chain_sum", min_terms=terms, max_terms=terms, min_digits=digits, max_digits=digits, seed=seed, size=size
    )
    for problem in problems:
        yield problem["metadata"]["expression"]


def document(expression: str) -> dict[str, str]:
    """The document of an expression such as `12 + 7 - 30`."""
    steps = _steps(expression)
    return {
        "expression": expression.replace(" ", ""),
        "answer": steps[-1].partition("=")[2],
        "solution": "\n".join(steps),
    }


def _steps(expression: str) -> list[str]:
    """One line per operation, each from the running total: `12+7=19`, `19-30=-11`."""
    first, *rest = re.findall(r"[+-] \d+|^-?\d+", expression)
    total, lines = int(first), []
    for term in rest:
        sign, number = term.split()
        result = total + int(number) if sign == "+" else total - int(number)
        lines.append(f"{total}{sign}{number}={result}")
        total = result
    return lines
