"""First Finish Search (FFS, arXiv 2505.18149; FFS-k: arXiv 2512.02008): vote among the first k to finish.

`budget` responses are read in lockstep, `chunk` tokens at a time, and reading stops once k of them have finished with
an answer that parses; the k shortest vote. First means by token count, so that the result never hangs on timing. All
tokens read count, those of abandoned responses too (the authors' code leaves them out). Ties in length all vote.
Budget law: reads at most `budget` full-length samples, about budget × the k-th smallest length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms.vote import ballots, elect_among
from extratime.evaluate.program import Answer, Problem, Program, extend, growing, sample
from extratime.models.request import Completion


def first_finish(
    problem: Problem, budget: int, rng: np.random.Generator, k: int = 1, chunk: int = 16
) -> Program[Answer]:
    """A response with the majority answer among the k that finish in the fewest tokens.

    Args:
        problem: what to answer.
        budget: responses read in lockstep.
        rng: not used.
        k: how many must finish.
        chunk: tokens read between looks; 1 reads no token too many.
    """
    responses = yield from sample(problem.prompt, budget, max_tokens=chunk)
    length = chunk
    while len(answered(problem, responses)) < k and any(growing(problem, r) for r in responses):
        length += chunk
        responses = yield from extend(responses, max_tokens=length)
    lengths = answered(problem, responses)
    cutoff = lengths[min(k, len(lengths)) - 1] if lengths else max(r.n_tokens for r in responses)
    voters = [r.finished and r.n_tokens <= cutoff for r in responses]
    return elect_among(problem, responses, voters, f"vote of the first {k} to finish")


def answered(problem: Problem, responses: Sequence[Completion]) -> list[int]:
    """Lengths of the responses that count as finished, those with an answer that parses; ascending."""
    votes = ballots(problem, responses)
    return sorted(r.n_tokens for r, vote in zip(responses, votes, strict=True) if vote is not None)
