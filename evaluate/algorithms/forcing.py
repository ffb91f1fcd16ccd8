"""Programs that put words into a model's mouth: forced answers (s1, arXiv 2501.19393; MRT, arXiv 2503.07572).

A forced answer is what the model says after a prefix of its thinking and a text that ends it. How often it is right is
the meta-prover's success J(prefix): what an answer at this point would be worth.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from extratime.evaluate.algorithms.episodes import bridge
from extratime.evaluate.program import Answer, Problem, Program, extend
from extratime.evaluate.schedule import Cell, Schedule
from extratime.models.paths import digest
from extratime.models.request import Completion, Sampling


def put(problem: Problem, response: Completion, text: str) -> Completion:
    """`response` as if it went on with `text`, to be read on from there; each time along a path of its own.

    The words put are no choice of the model's: they have log-probability 0. Where the policy's tokens are not known,
    neither are those of the whole, and the words do not count towards its length.
    """
    said, ids = response.text + text, _ids(problem, text)
    kept = response.n_tokens - (response.finish == "eos")
    if ids is None:
        return Completion(response.prompt, said, kept, finish="length", sampling=response.sampling)
    words = (0.0,) * len(ids)
    return Completion(
        response.prompt,
        said,
        kept + len(ids),
        response.tokens + ids,
        response.logprobs[:kept] + words,
        response.tempered[:kept] + words,
        "length",
        response.sampling,
    )


def cut(problem: Problem, response: Completion, text: str) -> Completion:
    """`response` as far as `text`, with which it begins; read anew where tokens don't end there."""
    ids = _ids(problem, text)
    if ids is None:
        return Completion(response.prompt, text, response.n_tokens, finish="length", sampling=response.sampling)
    n = len(ids)
    if response.tokens[:n] == ids:
        drawn = response.logprobs[:n], response.tempered[:n]
        return Completion(response.prompt, text, n, ids, *drawn, "length", response.sampling)
    return put(problem, Completion(response.prompt, "", 0, finish="length", sampling=response.sampling), text)


def _ids(problem: Problem, text: str) -> tuple[int, ...] | None:
    """Token ids of a text inside a response: without what the tokenizer puts before every text."""
    if problem.encode is None:
        return None
    lead, ids = problem.encode("").ids, problem.encode(text).ids
    return ids[len(lead) :] if ids is not None and lead is not None else None


def forced_answers(problem: Problem, prefix: str, cue: str, k: int, max_tokens: int) -> Program[list[Completion]]:
    """`k` answers that the model gives when told by `cue` to answer after `prefix` of its thinking.

    Args:
        problem: what is asked; its `max_tokens` must leave room for prefix, cue and answer.
        prefix: of a trace of thinking; may be empty.
        cue: ends the thinking and opens the answer.
        k: how many answers.
        max_tokens: length of an answer.
    """
    stem = put(problem, Completion(problem.prompt, "", 0, finish="length"), prefix + bridge(prefix, cue))
    return (yield from extend([stem] * k, max_tokens=stem.n_tokens + max_tokens))


def success(problem: Problem, prefix: str, answers: Sequence[Completion]) -> float:
    """Ĵ: the share of right answers (eq. of J in arXiv 2503.07572); what holds no answer is not right.

    Only what comes after the prefix is judged: a right number in the thinking is no answer.
    """
    if problem.correct is None:
        raise ValueError(f"problem {problem.id} cannot tell right from wrong; forced answers cannot be judged")
    return sum(problem.correct(answer.text[len(prefix) :]) for answer in answers) / len(answers)


@dataclass(frozen=True, slots=True)
class Context:
    """Where to force answers.

    Attributes:
        problem: what is asked; its `max_tokens` must leave room for prefix, cue and answer.
        prefix: of a trace of thinking.
        cue: ends the thinking and opens the answer.
        until: terminal stop strings of the task.
    """

    problem: Problem
    prefix: str
    cue: str
    until: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name: the same prefix of two traces of a problem is one context, and is asked once."""
        return f"{self.problem.id}/{digest(self.prefix, self.cue)}"

    def success(self, answers: Sequence[Completion]) -> float:
        """Ĵ of its answers."""
        return success(self.problem, self.prefix, answers)


def force(
    schedule: Schedule,
    contexts: Sequence[Context],
    k: int,
    max_tokens: int,
    sampling: Sampling,
    replicate: int = 0,
) -> list[tuple[Completion, ...]]:
    """`k` forced answers in each context, drawn through streams like everything else; other replicates are fresh ones.

    Raises:
        RuntimeError: the engine failed on an answer: no estimate stands for it.
    """

    def strategy(problem: Problem, budget: int, rng: np.random.Generator, prefix: str, cue: str) -> Program[Answer]:
        answers = yield from forced_answers(problem, prefix, cue, k, max_tokens)
        return Answer(answers[0], tuple(answers), (0.0,) * k, "forced")

    distinct = {context.key: context for context in contexts}
    cells = [
        Cell(
            f"{key}#{replicate}",
            c.problem,
            functools.partial(strategy, prefix=c.prefix, cue=c.cue),
            k,
            sampling,
            c.until,
            replicate,
        )
        for key, c in distinct.items()
    ]
    found = dict(zip(distinct, (result.answer.pool for result in schedule.run(cells)), strict=True))
    for key, answers in found.items():
        if failed := [answer.error for answer in answers if answer.finish in ("failed", "cut")]:
            raise RuntimeError(f"{len(failed)} of {k} forced answers in {key} failed: {failed[0] or 'out of budget'}")
    return [found[context.key] for context in contexts]
