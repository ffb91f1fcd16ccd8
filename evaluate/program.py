"""Strategies are programs: generators that yield requests and return an `Answer`.

    def best_of_n(problem, budget, rng, verify=likelihood):
        responses = yield from sample(problem.prompt, budget)
        scores = yield from verify(problem, responses)
        return best(responses, scores, "highest score")

The verbs below are all that a strategy needs. Whoever runs the program (the scheduler, or a test with `next` and
`send`) answers a `Sample` with a list of completions, a tuple of `Score` or `Probe` with a list of tuples of numbers,
and a `Gather` with the list of what its programs returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

import numpy as np

from extratime.models.request import Completion, Probe, Prompt, Sample, Score

T = TypeVar("T")
Program: TypeAlias = Generator[Any, Any, T]


class EngineError(RuntimeError):
    """An engine could not answer; raised inside the program that asked."""


@dataclass(frozen=True, slots=True)
class Gather(Generic[T]):
    """Run programs side by side; each gets a lane of its own in every stream, so that none reads another's draws."""

    programs: tuple[Program[T], ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """What a strategy works on.

    Attributes:
        id: unique within a run.
        prompt: what the policy reads.
        answer: what a response votes for; None where nothing can be read from it.
        correct: whether a response is right; only the oracle verifier asks.
        max_tokens: the length of a full response, the unit of `budget`.
        doc: the task's own record.
        messages: the chat behind the prompt, if there is one.
        encode: how the policy reads a text; None where that is not known.
        turn: how the policy reads another question, as a user's turn where it is asked in chats.
    """

    id: str
    prompt: Prompt
    answer: Callable[[str], Hashable | None]
    correct: Callable[[str], bool] | None = None
    max_tokens: int = 256
    doc: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, str], ...] = ()
    encode: Callable[[str], Prompt] | None = None
    turn: Callable[[str], Prompt] = Prompt

    @property
    def question(self) -> str:
        """What is asked; see `question`."""
        return question(self.prompt.text, self.messages)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a strategy returns: one complete response, and the evidence for it.

    Attributes:
        response: the answer.
        pool: every candidate it was chosen from.
        weights: what counted for each candidate; as long as `pool`.
        why: the rule that chose, in words.
    """

    response: Completion
    pool: tuple[Completion, ...]
    weights: tuple[float, ...]
    why: str


def question(prompt: str, messages: Sequence[Mapping[str, Any]] = ()) -> str:
    """What is asked, without chat mark-up: what the user said last, or the plain prompt."""
    asked = [str(turn["content"]) for turn in messages if turn["role"] == "user"]
    return (asked[-1] if asked else prompt).strip()


class Verifier(Protocol):
    """A program that gives each response a number, higher is better; -inf for what must not win."""

    def __call__(self, problem: Problem, responses: Sequence[Completion]) -> Program[list[float]]:
        """Scores of `responses`, in their order."""
        ...


class Strategy(Protocol):
    """A program that answers a problem with `budget` full-length samples' worth of policy tokens."""

    def __call__(self, problem: Problem, budget: int, rng: np.random.Generator) -> Program[Answer]:
        """One complete response with its evidence."""
        ...


def sample(
    prompt: Prompt,
    n: int = 1,
    *,
    temperature: float | None = None,
    pause: Sequence[str] = (),
    max_tokens: int | None = None,
    role: str = "policy",
    block: int | None = None,
) -> Program[list[Completion]]:
    """Draw `n` fresh continuations of `prompt`, at another temperature or in other blocks than the cell's if given."""
    request = Sample(prompt, n, temperature, tuple(pause), max_tokens, role=role, block=block)
    return cast("list[Completion]", (yield request))


def extend(
    completions: Sequence[Completion],
    *,
    temperature: float | None = None,
    pause: Sequence[str] = (),
    max_tokens: int | None = None,
    role: str = "policy",
) -> Program[list[Completion]]:
    """Read further along each completion's own path; finished ones come back unchanged.

    `max_tokens` counts from the beginning of each path. All completions must continue one problem's prompt or one of
    its prefixes, under the law they were drawn from; at another `temperature` than its own a completion branches.
    """
    if not completions:
        return []
    request = Sample(completions[0].prompt, 0, temperature, tuple(pause), max_tokens, tuple(completions), role)
    return cast("list[Completion]", (yield request))


def rewrite(completion: Completion, text: str) -> Completion:
    """`completion` with other words; `extend` reads on after them, as after any beginning of a response."""
    bare = replace(completion, text=text, tokens=(), logprobs=(), tempered=())
    return replace(bare, path=None, stem=(0, 0), finish="length")


def score(requests: Iterable[Score]) -> Program[list[tuple[float, ...]]]:
    """One tuple of numbers a request: per token from a language model, per step from a reward model."""
    return cast("list[tuple[float, ...]]", (yield tuple(requests)))


def probe(requests: Iterable[Probe]) -> Program[list[tuple[float, ...]]]:
    """One tuple of probabilities a request, one for each target."""
    return cast("list[tuple[float, ...]]", (yield tuple(requests)))


def gather(programs: Iterable[Program[T]]) -> Program[list[T]]:
    """Run programs side by side and return their results in order."""
    return cast("list[T]", (yield Gather(tuple(programs))))


def best(responses: Sequence[Completion], scores: Sequence[float], why: str) -> Answer:
    """The finished response with the highest score; unfinished ones only if none finished, failed ones last.

    Ties go to the earlier draw, which is a fair choice because draws are exchangeable. NaN ranks below everything.
    """
    if not responses:
        raise ValueError("no response to choose from")
    ranked = max(range(len(responses)), key=lambda i: (standing(responses[i]), rank(scores[i]), -i))
    return Answer(responses[ranked], tuple(responses), tuple(scores), why)


def standing(response: Completion) -> int:
    """2 for a finished response, 1 for an unfinished one, 0 for a failed one."""
    return 2 if response.finished else 0 if response.finish == "failed" else 1


def growing(problem: Problem, response: Completion) -> bool:
    """Whether there may be more of `response` to read, short of a full length."""
    return response.readable and response.n_tokens < problem.max_tokens


def rank(score: float) -> float:
    """A score to rank by: NaN, which no comparison orders, counts as -inf."""
    return -math.inf if math.isnan(score) else score


def ranking(scores: Sequence[float]) -> list[int]:
    """Indices from the highest score to the lowest; ties keep their order."""
    return sorted(range(len(scores)), key=lambda i: -rank(scores[i]))
