"""Deep Think with Confidence, offline (DeepConf, arXiv 2508.15260): the surest responses vote with their confidence.

Draw `budget` responses; of those with an answer keep the surest share `keep`; each of them votes with its confidence.
Confidence comes from log-probabilities of the tokens drawn, not of the twenty likeliest (`algorithms/confidence.py`).
Budget law: reads at most `budget` full-length samples.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from extratime.evaluate.algorithms.confidence import bar, confidence
from extratime.evaluate.algorithms.vote import ballots, elect
from extratime.evaluate.program import Answer, Problem, Program, sample
from extratime.evaluate.verifiers.likelihood import token_logprobs


def deepconf(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    measure: Literal["mean", "tail", "lowest", "bottom"] = "tail",
    keep: float = 0.1,
    window: int = 2048,
) -> Program[Answer]:
    """The surest response of those with the answer of the greatest total confidence.

    Args:
        problem: what to answer.
        budget: responses; published 512.
        rng: not used.
        measure: confidence over the whole response, its last `window` tokens, its least sure group of so many tokens,
            or the least sure tenth of the groups.
        keep: share that votes; published 0.1 and 0.9.
        window: tokens of a group; of the order of a reasoning step's length.
    """
    responses = yield from sample(problem.prompt, budget)
    told = yield from token_logprobs(responses)
    sure = [confidence(logprobs, measure, window) for logprobs in told]
    votes = ballots(problem, responses)
    least = bar([c for c, vote in zip(sure, votes, strict=True) if vote is not None], keep)
    weights = [c if c >= least else 0.0 for c in sure]
    return elect(problem, responses, weights, f"vote of the surest {keep:.0%} by {measure} confidence")
