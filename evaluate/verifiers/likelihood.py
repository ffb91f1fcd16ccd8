"""Likelihood: the policy's own mean log-probability per token. The baseline that every verifier has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence

from extratime.evaluate.program import Problem, Program, score
from extratime.models.request import Completion, Score


def likelihood(problem: Problem, responses: Sequence[Completion]) -> Program[list[float]]:
    """Mean log-probability per token under the untempered policy, at most 0; -inf for failed or empty responses.

    Costs nothing where the engine tells the log-probabilities of what it draws; else one `Score` a response.
    """
    told = yield from token_logprobs(responses)
    return [-math.inf if r.finish == "failed" else _mean(values) for r, values in zip(responses, told, strict=True)]


def token_logprobs(responses: Sequence[Completion]) -> Program[list[Sequence[float]]]:
    """Log-probability of each token under the untempered policy; asked of it where the engine told none."""
    unknown = [r for r in responses if r.n_tokens and not r.logprobs and r.finish != "failed"]
    replies = (yield from score(Score(r.prompt, r.text, "policy") for r in unknown)) if unknown else []
    told = {id(r): values for r, values in zip(unknown, replies, strict=True)}
    return [told.get(id(r), r.logprobs) for r in responses]


def mean_logprob(response: Completion) -> float:
    """Mean log-probability per token of a response as far as the engine told it; -inf if it failed or is empty."""
    return -math.inf if response.finish == "failed" else _mean(response.logprobs)


def _mean(logprobs: Sequence[float]) -> float:
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf
