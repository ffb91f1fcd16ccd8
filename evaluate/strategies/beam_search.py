"""Beam search over steps (Snell et al., arXiv 2408.03314, §5): keep the best prefixes, branch each, repeat.

Beam(N = budget, M = width): sample N first steps; score; keep the N/M best unfinished; branch each into M; repeat
until all have ended. The finals vote with their scores. Ties keep the earlier beam; NaN and -inf rank last. With fewer
beams than M one is kept. Budget law: N beams of at most one full length each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extratime.evaluate.program import Answer, Problem, Program, Verifier, extend, growing, ranking, sample
from extratime.evaluate.strategies.weighted_vote import weights
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.evaluate.vote import elect
from extratime.models.request import Completion


def beam_search(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    width: int = 4,
    verify: Verifier = likelihood,
    step: Sequence[str] = ("\n",),
    rounds: int = 40,
) -> Program[Answer]:
    """A final beam with the answer of the greatest total score.

    Args:
        problem: what to answer.
        budget: beams.
        rng: not used.
        width: continuations of each surviving beam.
        verify: scores prefixes and responses.
        step: strings that end a step.
        rounds: steps after which every beam is read to its end.
    """
    beams, scores = yield from grow(problem, budget, width, verify, step, rounds)
    return elect(problem, beams, weights(scores), "weighted vote of the final beams")


def grow(
    problem: Problem, budget: int, width: int, verify: Verifier, step: Sequence[str], rounds: int = 40
) -> Program[tuple[list[Completion], list[float]]]:
    """The final beams and their scores; see `beam_search` for the arguments."""
    beams = yield from sample(problem.prompt, budget, pause=step)
    for _ in range(rounds):
        open_ = [beam for beam in beams if growing(problem, beam)]
        if not open_:
            break
        done = [beam for beam in beams if not growing(problem, beam)]
        scores = yield from verify(problem, open_)
        kept = [open_[i] for i in ranking(scores)[: max(1, len(open_) // width)]]
        again = [kept[i % len(kept)] for i in range(len(open_))]
        beams = done + (yield from extend(again, pause=step))
    beams = yield from extend(beams)
    return beams, (yield from verify(problem, beams))
