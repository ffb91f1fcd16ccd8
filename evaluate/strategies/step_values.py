"""Monte-Carlo values of steps (Math-Shepherd, arXiv 2312.08935, §3.3): what process reward models are trained on.

Draw responses and stop at each end of a step; from each such prefix draw K completions of the policy. The value of the
step is the share of them that is right: the soft label c/K, an unbiased estimate of P(right | prefix). A response
that has ended has one completion, itself. The values know the reference answer: they are training data, or a ceiling
to hold verifiers against, never a result. The answer is the first draw, which they do not choose.

Budget law: 1 + `completions` · `steps` full lengths pay for a response and for all completions of its first `steps`
steps. So many responses are drawn as `budget` pays for; where it pays for none, one without values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, islice

import numpy as np

from extratime.evaluate.algorithms.search import trails
from extratime.evaluate.program import Answer, Problem, Program, best, extend, gather, sample
from extratime.models.request import Completion


def step_values(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    completions: int = 8,
    steps: int = 8,
    step: Sequence[str] = ("\n",),
) -> Program[Answer]:
    """The first draw; the pool holds each draw after its prefixes, weighed by their values, NaN where unknown.

    Args:
        problem: what to answer.
        budget: see the budget law.
        rng: not used.
        completions: of each prefix.
        steps: most steps of a response that get a value.
        step: strings that end a step.

    Raises:
        ValueError: the task gives no way to tell what is right, or `completions` or `steps` is below 1.
    """
    if problem.correct is None:
        raise ValueError(f"problem {problem.id}: this task has no per-response check, so steps have no value")
    if completions < 1 or steps < 1:
        raise ValueError(f"completions and steps must be at least 1, not {completions} and {steps}")
    whole = 1 + completions * steps
    begun = yield from sample(problem.prompt, max(1, budget // whole), pause=step)
    found = yield from trails(problem, begun, step)
    valued = [trail[:-1][: steps if budget >= whole else 0] for trail in found]
    values = iter((yield from gather(value(problem, prefix, completions) for prefix in chain(*valued))))
    pool: list[Completion] = []
    weights: list[float] = []
    for trail, prefixes in zip(found, valued, strict=True):
        pool += [*prefixes, trail[-1]]
        weights += [*islice(values, len(prefixes)), _settled(problem, trail[-1])]
    answer = best([trail[-1] for trail in found], [0.0] * len(found), "").response
    return Answer(answer, tuple(pool), tuple(weights), "the first draw")


def value(problem: Problem, prefix: Completion, completions: int) -> Program[float]:
    """Share of so many fresh completions of `prefix` that are right; NaN unless each of them was read to its end.

    Those that the budget cuts are the long ones: what is left would be no fair sample.
    """
    assert problem.correct is not None
    ends = yield from extend([prefix] * completions)
    return sum(_settled(problem, end) for end in ends) / completions


def _settled(problem: Problem, response: Completion) -> float:
    assert problem.correct is not None
    return math.nan if response.finish in ("cut", "failed") else float(problem.correct(response.text))
