"""Last Finish Search (LFS-k, arXiv 2512.02008): vote among the k that finish last; the control of first finish.

All `budget` responses are read to their ends, and of those with an answer that parses the k longest vote, by token
count. Ties in length all vote. Budget law: reads at most `budget` full-length samples, as a majority vote does.
"""

from __future__ import annotations

import numpy as np

from extratime.evaluate.algorithms.vote import elect_among
from extratime.evaluate.program import Answer, Problem, Program, sample
from extratime.evaluate.strategies.first_finish import answered


def last_finish(problem: Problem, budget: int, rng: np.random.Generator, k: int = 1) -> Program[Answer]:
    """A response with the majority answer among the k that finish in the most tokens.

    Args:
        problem: what to answer.
        budget: responses.
        rng: not used.
        k: how many vote.
    """
    responses = yield from sample(problem.prompt, budget)
    lengths = answered(problem, responses)
    cutoff = lengths[-min(k, len(lengths))] if lengths else 0
    voters = [r.finished and r.n_tokens >= cutoff for r in responses]
    return elect_among(problem, responses, voters, f"vote of the last {k} to finish")
