"""Beam search over steps (Snell et al., arXiv 2408.03314, §5): keep the best prefixes, branch each, repeat.

Beam(N = budget, M = width): sample N first steps; score; keep the best 1/M of the unfinished; branch each into M;
repeat until all have ended. The finals vote with their scores. Ties keep the earlier beam; NaN and -inf rank last.
With fewer beams than M one is kept. Beams stay in their places: in order of completion, short responses would win the
ties.

Budget law: N beams of at most one full length each. What is pruned counts, too: where that was longer than what was
kept, and the tokens come to their end, branches are read less far, then fewer, so that one can always be read to its
end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms.search import together
from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, Verifier, extend, growing, ranking, sample
from extratime.evaluate.strategies.weighted_vote import weights
from extratime.evaluate.verifiers.likelihood import likelihood
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
    read = [beam.n_tokens for beam in beams]
    left, longest = budget * problem.max_tokens - sum(read), max(read)
    for _ in range(rounds):
        slots = [i for i, beam in enumerate(beams) if growing(problem, beam)]
        if not slots:
            break
        scores = yield from verify(problem, [beams[i] for i in slots])
        kept = [beams[slots[i]] for i in ranking(scores)[: max(1, len(slots) // width)]]
        again = [kept[i % len(kept)] for i in range(len(slots))]
        again, limit = together(problem, again, left, longest)
        after = yield from extend(again, pause=step, max_tokens=limit)
        read = [there.n_tokens - here.n_tokens for here, there in zip(again, after, strict=True)]
        left, longest = left - sum(read), max(longest, *read)
        grown = dict(zip(slots, after, strict=False))
        beams = [grown.get(i, beam) for i, beam in enumerate(beams) if i in grown or i not in slots]
    beams = yield from extend(beams)
    return beams, (yield from verify(problem, beams))
