"""HEX: hidden semi-autoregressive experts (arXiv 2510.05040): a vote over the block schedules of a diffusion LLM.

A masked-diffusion model that writes in blocks of another size is another expert. The same prompt is decoded under each
of `blocks`, and under each again while the budget lasts, and the answers vote. Published: blocks of 8 to 128 for
responses of 256 tokens (4 to 64 for 128, 16 to 256 for 512), two tokens a step, 5 schedules and up to 6 seeds; several
seeds need a temperature above 0.
Ties go to the answer that appeared first, so to smaller blocks, or, with `ties="likelihood"`, to the answer of the
likeliest of the tied responses; the log-probabilities are those under which tokens were written, without padding,
where the authors' are those of the first pass over masks, with padding. `why` says whether there was a tie.

A single schedule with as many seeds is self-consistency: what schedules add is measured against that, and against the
best single block. A model that writes left to right has one schedule, and this is then self-consistency. Budget law:
reads at most `budget` full-length responses, one decode each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from extratime.evaluate.algorithms.vote import ballots, elect
from extratime.evaluate.program import Answer, Problem, Program, gather, sample
from extratime.evaluate.verifiers.likelihood import mean_logprob
from extratime.models.request import Completion


def hex(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    blocks: Sequence[int] = (8, 16, 32, 64, 128),
    ties: Literal["first", "likelihood"] = "first",
) -> Program[Answer]:
    """A response with the answer that most decodes give.

    Args:
        problem: what to answer.
        budget: decodes.
        rng: not used.
        blocks: tokens of a block, by schedule; each must divide the length of the law.
        ties: who wins a tie.
    """
    schedules = [blocks[i % len(blocks)] for i in range(budget)]
    drawn = yield from gather(sample(problem.prompt, block=block) for block in schedules)
    responses = [response for [response] in drawn]
    why = "tie between schedules" if tied(problem, responses) else "majority over schedules"
    if ties == "likelihood":
        responses.sort(key=mean_logprob, reverse=True)
    return elect(problem, responses, [1.0] * budget, why)


def tied(problem: Problem, responses: Sequence[Completion]) -> bool:
    """Whether two answers share the most votes."""
    counts = Counter(vote for vote in ballots(problem, responses) if vote is not None).most_common(2)
    return len(counts) == 2 and counts[0][1] == counts[1][1]
