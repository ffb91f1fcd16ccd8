"""Which signs make a sum come out, with traces of repeated attempts: the models here learn from them when to stop.

    Signs: 3 5 1 = 7

    3+5+1=8+1=9 7 no

    Wait, 3+5-1=8-1=7 7 yes

    Wait, 3+5-1=8-1=7 7 yes

    Answer: 3+5-1

Whether an attempt is right stands at its end, each wrong one leaves fewer to guess from, and all after a right one are
in vain. Of the four choices of signs exactly one is right.
"""

from __future__ import annotations

import itertools
import random
import zlib

import datasets

ATTEMPTS = 4
FIRST = 0.4
"""Probability that the first attempt is right."""
STOP = {False: 0.1, True: 0.4}
"""Probability that an attempt is the last, by whether it is right."""
LOSE = 0.1
"""Probability that an attempt after a right one is another."""
SEED = 1


def documents(
    train: int = 2000, validation: int = 192, test: int = 400, **metadata: object
) -> dict[str, datasets.Dataset]:
    """Documents (numbers, target, answer, solution) by split; no problem is in two.

    Args:
        train: documents of the training split.
        validation: documents of the validation split.
        test: documents of the test split.
        metadata: what lm-eval adds of its own; not used.
    """
    found = [document(numbers, answer) for numbers in _numbers() for answer in choices(numbers)]
    random.Random(SEED).shuffle(found)
    if train + validation + test > len(found):
        raise ValueError(f"only {len(found)} problems of signs exist, not {train + validation + test}")
    ends = itertools.accumulate((train, validation, test))
    sizes = {"train": train, "validation": validation, "test": test}
    return {
        split: datasets.Dataset.from_list(found[end - size : end])
        for (split, size), end in zip(sizes.items(), ends, strict=True)
    }


def _numbers() -> list[tuple[int, int, int]]:
    """Three digits; the last two differ, or swapping their signs would change nothing."""
    return [(a, b, c) for a, b, c in itertools.product(range(1, 10), repeat=3) if b != c]


def choices(numbers: tuple[int, int, int]) -> list[str]:
    """The four expressions, such as `3+5-1`."""
    a, b, c = numbers
    return [f"{a}{one}{b}{other}{c}" for one, other in itertools.product("+-", repeat=2)]


def document(numbers: tuple[int, int, int], answer: str) -> dict[str, str]:
    """The document of three numbers and the expression that is right."""
    said = " ".join(map(str, numbers))
    return {"numbers": said, "target": total(answer), "answer": answer, "solution": trace(numbers, answer)}


def attempt(expression: str, target: str) -> str:
    """`3+5-1` worked out and held to the target: `3+5-1=8-1=7 7 yes`."""
    result = total(expression)
    told = "yes" if result == target else "no"
    return f"{expression}={total(expression[:3])}{expression[3:]}={result} {target} {told}"


def total(expression: str) -> str:
    """What single digits come to, signs between them."""
    return str(int(expression[0]) + sum(int(expression[i : i + 2]) for i in range(1, len(expression), 2)))


def trace(numbers: tuple[int, int, int], answer: str) -> str:
    """Attempts, and the last one as the answer, or a guess if it is wrong; always the same for the same problem."""
    rng = random.Random(zlib.crc32(answer.encode()))
    left = rng.sample(choices(numbers), 4)
    said = [answer if rng.random() < FIRST else rng.choice([e for e in left if e != answer])]
    while len(said) < ATTEMPTS and rng.random() >= STOP[said[-1] == answer]:
        said.append(_after(said, answer, left, rng))
    untried = [e for e in left if e not in said]
    told = said[-1] if said[-1] == answer or not untried else rng.choice(untried)
    return "\n\nWait, ".join(attempt(e, total(answer)) for e in said) + f"\n\nAnswer: {told}"


def _after(said: list[str], answer: str, every: list[str], rng: random.Random) -> str:
    """The next attempt: the same once more after a right one, mostly; else one that was not tried, or any other."""
    if said[-1] == answer and rng.random() >= LOSE:
        return answer
    return rng.choice([e for e in every if e not in said] or [e for e in every if e != said[-1]])
