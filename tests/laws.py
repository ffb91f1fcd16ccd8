"""What tests of votes share: models that answer at once, cells that repeat, and laws by enumeration."""

import itertools
import math
from collections import Counter

import pytest
from scipy.stats import binom
from toy import ToyEngine, problem, run, told

from extratime.evaluate.schedule import Cell

RUNS = 250


def pooled(program, pool):
    """Answer a program's one sample with `pool`."""
    next(program)
    with pytest.raises(StopIteration) as stop:
        program.send(pool)
    return stop.value.value


def answers(law):
    """A model that answers at once."""
    return told(lambda text: {"": 1.0} if text else {f"={answer}": p for answer, p in law.items()})


def repeated(strategy, budget, law, n=RUNS, max_tokens=4, **fields):
    cells = [Cell(f"{i}", problem(max_tokens=max_tokens, **fields), strategy, budget, replicate=i) for i in range(n)]
    return run(ToyEngine(law, slots=64), cells)


def right(results):
    return sum(result.cell.problem.correct(result.answer.response.text) for result in results)


def within(successes, p, n=RUNS):
    """Whether a count is inside the central 99.9 % of its binomial law."""
    return binom.ppf(0.0005, n, p) <= successes <= binom.ppf(0.9995, n, p)


def elected(votes):
    """The plurality of votes, "" is none; ties go to the answer that appeared first."""
    votes = [vote for vote in votes if vote] or [""]
    counts = Counter(votes)
    return next(vote for vote in votes if counts[vote] == max(counts.values()))


def outcomes(law, n):
    """Each row of n independent answers, and its probability."""
    for row in itertools.product(law, repeat=n):
        yield row, math.prod(law[answer] for answer in row)
