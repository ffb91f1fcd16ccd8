"""Countdown: numbers, two at a time, until one of them is the target."""

import itertools


def moves(numbers):
    """Each way to make one number of two: (words, what is left), in order."""
    for i, j in itertools.combinations(range(len(numbers)), 2):
        a, b = sorted((numbers[i], numbers[j]), reverse=True)
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        made = {"+": a + b, "*": a * b, "-": a - b} | ({"/": a // b} if b and a % b == 0 else {})
        for sign, value in made.items():
            yield f"{a}{sign}{b}:{value}", [value, *rest]
