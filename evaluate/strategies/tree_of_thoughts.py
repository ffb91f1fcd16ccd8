"""Depth-first search over steps (Tree of Thoughts, arXiv 2305.10601, as benchmarked in arXiv 2502.07191).

The prefix that was found last goes on first: `width` steps are sampled and scored, the weakest share `prune` of them
is dropped, and of the others the best is visited before its siblings, to whom the search comes back later. It stops
when `paths` responses have ended. The one whose steps have the highest mean score answers, not the one with the best
end.

The benchmark's code pushes the best child first onto a stack, so that the worst one kept is visited next, and keeps
one child more or less than it says; here the best is next, and ⌊(1 − prune)·n⌋ are kept, one at least. Its threshold
of values is not there: at its default it drops nothing.

Budget law: `budget` full lengths. A prefix has at most as many children as can still be read to their ends, so that
there is always an end and a budget of 1 is a plain draw. What cannot be paid for is passed over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from extratime.evaluate.algorithms.search import affordable, branch, probabilities, root
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, growing, ranking
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.models.request import Completion


class Way(NamedTuple):
    """A prefix, and the scores of its beginnings and itself, in [0, 1]."""

    prefix: Completion
    scores: tuple[float, ...] = ()


def tree_of_thoughts(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    width: int = 5,
    prune: float = 0.4,
    paths: int = 3,
    verify: Verifier = likelihood,
    step: Sequence[str] = ("\n",),
) -> Program[Answer]:
    """The ended response with the highest mean score of its steps; the pool holds all that ended.

    Args:
        problem: what to answer.
        budget: full lengths that may be read.
        rng: not used.
        width: children of a prefix.
        prune: share of them that is dropped (benchmarked: 0.4).
        paths: responses that end the search (benchmarked: 3).
        verify: scores prefixes and responses in [0, 1]; negative scores are read as log-probabilities.
        step: strings that end a step.
    """
    stack, ended, spent = [Way(root(problem))], list[Way](), 0
    while stack and sum(way.prefix.finished for way in ended) < paths:
        way = stack.pop()
        if way.scores and not growing(problem, way.prefix):
            ended.append(way)
        elif n := min(width, affordable(problem, way.prefix, budget, spent)):
            steps, tokens = yield from branch(problem, way.prefix, n, step)
            spent += tokens
            scores = probabilities((yield from verify(problem, steps)))
            children = [Way(said, (*way.scores, score)) for said, score in zip(steps, scores, strict=True)]
            stack += [children[i] for i in reversed(kept(scores, prune))]
    means = [float(np.mean(way.scores)) for way in ended]
    return best([way.prefix for way in ended], means, f"the best mean of {len(ended)} paths")


def kept(scores: Sequence[float], prune: float) -> list[int]:
    """Indices of the ⌊(1 − prune)·n⌋ highest scores, one at least, from high to low; ties keep their order."""
    return ranking(scores)[: max(1, math.floor((1 - prune) * len(scores) + 1e-9))]
