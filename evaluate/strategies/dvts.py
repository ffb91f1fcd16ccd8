"""Diverse verifier tree search: `budget / width` independent subtrees, each keeping its best step (search-and-learn).

Each subtree samples `width` continuations a step and keeps the best one; subtrees are never compared until their last
candidates vote with their scores. Budget law: as beam search, subtree by subtree; a remainder that fills no subtree is
not used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, Verifier, gather
from extratime.evaluate.strategies.beam_search import grow
from extratime.evaluate.strategies.weighted_vote import weights
from extratime.evaluate.verifiers.likelihood import likelihood


def dvts(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    width: int = 4,
    verify: Verifier = likelihood,
    step: Sequence[str] = ("\n",),
) -> Program[Answer]:
    """A candidate with the answer of the greatest total score over all subtrees."""
    width = min(width, budget)
    trees = yield from gather(grow(problem, width, width, verify, step) for _ in range(budget // width))
    pool = [response for beams, _ in trees for response in beams]
    votes = weights([score for _, scores in trees for score in scores])
    return elect(problem, pool, votes, "weighted vote over the subtrees")
