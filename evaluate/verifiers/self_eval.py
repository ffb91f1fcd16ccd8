"""Self-evaluation (Manvi et al., arXiv 2410.02725): the policy's own token for "a restart would not beat this".

One question is appended to a response, whole or partial; the score is g = P(good)/(P(good) + P(bad)) in [0, 1]. With a
suffix-only adapter the response's KV cache is reused, so that a read-out costs the question's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from extratime.evaluate.program import Problem, Program, probe
from extratime.models.request import Completion, Probe
from extratime.models.self_eval import WEAKEST, SelfEval, tell


def self_eval(
    problem: Problem,
    responses: Sequence[Completion],
    adapter: str | None = "self_eval",
    question: str = SelfEval().question,
    targets: tuple[str, str] = (SelfEval().good, SelfEval().bad),
    role: str = "policy",
) -> Program[list[float]]:
    """G of each response; -inf for failed ones, and where neither target has any probability.

    Args:
        problem: not used.
        responses: whole or partial.
        adapter: the adapter that reads the question; None asks the plain model.
        question: as the model reads it, chat mark-up included; a checkpoint's manifest names its own. `{weakest}` in
            it becomes the level of a response's weakest token.
        targets: (good, bad), one token each.
        role: whose engine answers.

    Raises:
        ValueError: the question tells log-probabilities, and those of a response are not known.
    """
    alive = [r for r in responses if r.finish != "failed"]
    replies = iter((yield from probe(Probe(r, _ask(question, r), targets, adapter, role) for r in alive)))
    return [_share(*next(replies)) if r.finish != "failed" else -math.inf for r in responses]


def _ask(question: str, response: Completion) -> str:
    if WEAKEST in question and response.n_tokens and not response.logprobs:
        raise ValueError(
            f"the self-evaluation question tells {WEAKEST}, but the engine tells no log-probabilities of its draws: "
            "use an engine that does, or a checkpoint whose question tells nothing"
        )
    return tell(question, response.logprobs)


def _share(good: float, bad: float) -> float:
    return good / (good + bad) if good + bad > 0 else -math.inf
