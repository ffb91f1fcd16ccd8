"""Integer sums with traces of repeated attempts: what a model imitates before it learns when to stop thinking.

    3+5=8
    8-9=-2

    Wait, 3+5=8
    8-9=-1

    Answer: -1

A trace is a Markov chain of up to three attempts, parted by blank lines. The first is right half of the time, a later
one more often; one in ten attempts after a right one breaks it. The answer is the last attempt's, right or wrong.
"""

from __future__ import annotations

import random
import re
import zlib

import datasets

from extratime.evaluate.tasks import sums

ATTEMPTS = 3
RIGHT = {None: 0.5, False: 0.65, True: 0.9}
"""Probability that an attempt is right, by whether the one before it was."""
STOP = {False: 0.1, True: 0.5}
"""Probability that an attempt is the last, by whether it is right."""


def documents(terms: int, digits: int, **options: int) -> dict[str, datasets.Dataset]:
    """The documents of `sums.documents`, with traces as solutions."""
    splits = sums.documents(terms, digits, **options)
    return {split: found.map(lambda doc: {"solution": trace(doc["expression"])}) for split, found in splits.items()}


def trace(expression: str) -> str:
    """Attempts at a sum such as `3+5-9`, and the answer of the last one; always the same for the same sum."""
    rng = random.Random(zlib.crc32(expression.encode()))
    said: list[str] = []
    right = None
    while right is None or (len(said) < ATTEMPTS and rng.random() >= STOP[right]):
        right = rng.random() < RIGHT[right]
        said.append(attempt(expression, None if right else rng))
    answer = said[-1].rpartition("=")[2]
    return "\n\n".join([said[0], *(f"Wait, {again}" for again in said[1:]), f"Answer: {answer}"])


def attempt(expression: str, slips: random.Random | None = None) -> str:
    """One line per operation; where `slips` is given, one of them is off by 1 or 2, and so is what follows from it."""
    first, *rest = re.findall(r"[+-]?\d+", expression)
    off = {slips.randrange(len(rest)): slips.choice([-2, -1, 1, 2])} if slips else {}
    total, lines = int(first), []
    for i, term in enumerate(rest):
        result = total + int(term) + off.get(i, 0)
        lines.append(f"{total}{term}={result}")
        total = result
    return "\n".join(lines)
