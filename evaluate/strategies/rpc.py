"""Reasoning-pruning perplexity consistency (RPC, arXiv 2510.15444): answers weighed by their paths' probabilities.

    s_i = exp(mean log-probability per token of response i)
    drop i if a mixture of two Weibull laws, fitted to all s, says "low" of it and s_i is below the mean
    score(a) = Σ s over the distinct texts that are left with answer a

Without the pruning this is perplexity consistency; the likeliest response alone, the paper's perplexity baseline, is
`best_of_n`. The theory sums probabilities of whole sequences, p(t | x), the published code those of a mean token:
whole ones vanish for long responses and favour short ones. Log-probabilities are the model's own, untempered.
Budget law: reads at most `budget` full-length samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.algorithms.weibull import lower
from extratime.evaluate.program import Answer, Problem, Program, sample
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.models.request import Completion


def rpc(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    prune: bool = True,
    apart: float = 1.0,
    whole: bool = False,
) -> Program[Answer]:
    """A response with the answer whose distinct responses are likeliest together.

    Args:
        problem: what to answer.
        budget: responses; published 64 and 128.
        rng: not used.
        prune: whether unlikely responses are dropped first.
        apart: pooled standard deviations between likely and unlikely ones for any to be dropped; 0 as published.
        whole: whether a response counts with the probability of its whole text, as in theory, not of a mean token.
    """
    responses = yield from sample(problem.prompt, budget)
    means = yield from likelihood(problem, responses)
    chances = [math.exp(mean * r.n_tokens if whole else mean) for mean, r in zip(means, responses, strict=True)]
    kept = survivors(chances, apart) if prune else [True] * budget
    weights = distinct(responses, [p if keep else 0.0 for p, keep in zip(chances, kept, strict=True)])
    return elect(problem, responses, weights, f"total likelihood of {sum(w > 0 for w in weights)} of {budget}")


def survivors(chances: Sequence[float], apart: float) -> list[bool]:
    """Who is not dropped; those of probability 0, such as failed ones, are no part of the fit."""
    x = np.asarray(chances, dtype=np.float64)
    kept = x > 0
    kept[kept] = ~lower(x[kept], apart)
    return [bool(keep) for keep in kept]


def distinct(responses: Sequence[Completion], weights: Sequence[float]) -> list[float]:
    """The weights, but 0 for a text with which an earlier response ended, and for what has not ended."""
    first = {r.text: i for i, r in reversed(list(enumerate(responses))) if r.finished}
    return [w if first.get(r.text) == i else 0.0 for i, (r, w) in enumerate(zip(responses, weights, strict=True))]
