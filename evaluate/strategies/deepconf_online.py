"""Deep Think with Confidence, online (DeepConf, arXiv 2508.15260): responses that get unsure are broken off.

The first `warmup` responses are read whole. The bar is what the surest share `keep` of them reach in their least sure
group of `window` tokens. Then, one after the other, responses are read `chunk` tokens at a time and broken off once a
whole group is below the bar. Responses at or above the bar vote with the confidence of their least sure group, those
of the warm-up too. The drawing stops when the leading answer has a share `consensus` of the votes.

Confidence comes from log-probabilities of the tokens drawn, not of the twenty likeliest (`algorithms/confidence.py`);
an engine that tells none has nothing broken off. Budget law: at most `budget` responses, of one full length at most.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from extratime.evaluate.algorithms.confidence import bar, confidence
from extratime.evaluate.algorithms.vote import ballots, elect, tally
from extratime.evaluate.program import Answer, Problem, Program, extend, growing, sample
from extratime.evaluate.verifiers.likelihood import token_logprobs
from extratime.models.request import Completion


def deepconf_online(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    warmup: int = 16,
    keep: float = 0.1,
    window: int = 2048,
    consensus: float = 0.95,
    batch: int = 1,
    chunk: int = 16,
) -> Program[Answer]:
    """The surest response of those with the answer of the greatest total confidence.

    Args:
        problem: what to answer.
        budget: responses; published 512.
        rng: not used.
        warmup: responses read whole, to set the bar.
        keep: share of them that passes the bar; published 0.1 and 0.9.
        window: tokens of a group; a response shorter than that is never broken off.
        consensus: share of the votes at which to stop; above 1 the whole budget is always drawn.
        batch: responses read side by side after the warm-up. The authors' code reads all that are left.
        chunk: tokens read between looks; 1 reads no token too many.
    """
    responses = yield from sample(problem.prompt, min(warmup, budget))
    sure = yield from _confidences(responses, window)
    least = bar([c for c, r in zip(sure, responses, strict=True) if r.finish != "failed"], keep)
    votes = ballots(problem, responses)
    while len(responses) < budget and _lead(votes, sure, least) < consensus:
        drawn = yield from _watched(problem, min(batch, budget - len(responses)), least, window, chunk)
        responses += drawn
        votes += ballots(problem, drawn)
        sure += yield from _confidences(drawn, window)
    weights = [c if c >= least else 0.0 for c in sure]
    return elect(problem, responses, weights, f"vote of the sure among {len(responses)} of {budget}")


def _confidences(responses: Sequence[Completion], window: int) -> Program[list[float]]:
    told = yield from token_logprobs(responses)
    return [confidence(logprobs, "lowest", window) for logprobs in told]


def _lead(votes: Sequence[Hashable | None], sure: Sequence[float], least: float) -> float:
    """The leading answer's share of the votes at or above the bar; 0 where there are none."""
    counts = tally([vote if c >= least else None for vote, c in zip(votes, sure, strict=True)], sure).values()
    return max(counts) / sum(counts) if counts else 0.0


def _watched(problem: Problem, n: int, least: float, window: int, chunk: int) -> Program[list[Completion]]:
    """`n` responses, each as far as its end, or the chunk in which it gets too unsure."""
    traces = yield from sample(problem.prompt, n, max_tokens=chunk)
    length = chunk
    while open_ := [i for i, t in enumerate(traces) if growing(problem, t) and not _unsure(t, least, window)]:
        length += chunk
        longer = yield from extend([traces[i] for i in open_], max_tokens=length)
        for i, trace in zip(open_, longer, strict=True):
            traces[i] = trace
    return traces


def _unsure(trace: Completion, least: float, window: int) -> bool:
    """Whether a whole group of it is below the bar."""
    return len(trace.logprobs) >= window and confidence(trace.logprobs, "lowest", window) < least
