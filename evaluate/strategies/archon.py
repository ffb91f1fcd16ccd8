"""Archon (Saad-Falcon et al., arXiv 2409.15254): a pipeline of generators, critics, rankers, verifiers and fusers.

    candidates ← generators;  for each further layer: candidates, critiques ← layer(candidates, critiques)

A recipe writes the layers; `algorithms/stages.py` has the components, `algorithms/pipeline.py` their rules:

    archon: {stages: [{generator: {n: 4}}, {critic: {}}, {ranker: {k: 2}}, {fuser: {n: 1}}]}

A list in place of one component is a layer of several. Critiques hold for the candidates they were written about: new
candidates have none (the published code carries old ones on). Ties keep the order in which candidates were drawn.

Budget law: a reply of the policy, to whatever it is asked, is one full length; other roles' replies are no part of the
budget. The generators draw what is left once every other stage is paid. A budget that does not pay for all stages with
two candidates runs those that ask the policy nothing, on as many draws as it has; with a budget of 1 that is one draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms.pipeline import advance, check, layered, paid
from extratime.evaluate.algorithms.stages import Fuser, Generator, Ranker, Stage, State
from extratime.evaluate.program import Answer, Problem, Program, best


def archon(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    stages: Sequence[Stage | Sequence[Stage]] = (Generator(), Ranker(k=5), Fuser(n=1)),
) -> Program[Answer]:
    """The candidate that the last stage leaves; the pool holds every candidate that a stage drew.

    Args:
        problem: what to answer.
        budget: see the budget law.
        rng: not used.
        stages: of the pipeline (published example: ten draws, the best five, one fused of them).

    Raises:
        ValueError: the stages break a rule.
    """
    check(stages)
    state = State()
    for layer in paid(layered(stages), budget):
        if state.candidates or not state.made:
            state = yield from advance(problem, layer, state)
    left = state.candidates or state.made
    answer = best(left, [0.0] * len(left), "").response
    weights = tuple(float(any(r is kept for kept in state.candidates)) for r in state.made)
    return Answer(answer, state.made, weights, f"what {len(state.made)} candidates came to")
