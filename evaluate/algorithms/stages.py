"""Archon's components (Saad-Falcon et al., arXiv 2409.15254, §3): what a recipe stacks into a pipeline.

A stage reads a `State`, candidates and what critics said of them, and returns the next one. New candidates have no
critiques; those that are kept keep theirs. Rankers and verifier stages take any verifier: one that writes unit tests
and runs them is the paper's pair of test generator and evaluator.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from extratime.evaluate.algorithms.prompts import ask, blocks, fill, numbered, order, usable
from extratime.evaluate.program import Problem, Program, Verifier, gather, ranking
from extratime.models.request import Completion, Prompt

CRITIC = (
    "Problem:\n{problem}\n\nResponses:\n\n{responses}\n\n"
    "Weigh each response. Write one paragraph for each, beginning with its number in brackets: first its strengths, "
    "then its weaknesses."
)
RANKER = (
    "Problem:\n{problem}\n\nResponses:\n\n{responses}\n\n"
    "Rank the responses from best to worst. End with one line of their numbers, such as: [2] > [1]"
)
FUSER = (
    "Several responses to one problem are given, right and wrong ones. Weigh them, take what is right, and write one "
    "response that is better than each of them.\n\n{responses}\n\nProblem:\n{problem}"
)
REASON = (
    "Problem:\n{problem}\n\nResponse:\n{response}\n\n"
    "Write down, step by step, why this response is right or where it goes wrong."
)
VERDICT = (
    "Problem:\n{problem}\n\nResponse:\n{response}\n\nReasons:\n{reasons}\n\n"
    "Say by these reasons whether the response is right. Write [Correct] or [Incorrect]."
)
MANY = 32
"""Candidates in one prompt above which a warning is given."""


@dataclass(frozen=True, slots=True)
class State:
    """What stands between two layers.

    Attributes:
        candidates: best first, where something ranked them.
        critiques: one for each candidate, or none at all.
        made: every response that was drawn to be a candidate, failed ones too.
    """

    candidates: tuple[Completion, ...] = ()
    critiques: tuple[str, ...] = ()
    made: tuple[Completion, ...] = ()

    def __post_init__(self) -> None:
        if self.critiques and len(self.critiques) != len(self.candidates):
            raise ValueError(f"{len(self.critiques)} critiques stand beside {len(self.candidates)} candidates")

    def keep(self, indices: Iterable[Any]) -> State:
        """These candidates with their critiques, in this order."""
        chosen = list(indices)
        critiques = tuple(self.critiques[i] for i in chosen) if self.critiques else ()
        return State(tuple(self.candidates[i] for i in chosen), critiques)


class Stage(Protocol):
    """One component."""

    def draws(self, n: int) -> int:
        """Policy draws that it asks for at most, given `n` candidates (for a generator: `n` draws to spend)."""
        ...

    def leaves(self, n: int) -> int:
        """Candidates at most after it."""
        ...

    def __call__(self, problem: Problem, state: State) -> Program[State]:
        """What it makes of a state; no candidates leave the state as it was."""
        ...


@dataclass(frozen=True, slots=True)
class Generator:
    """Draws responses to the problem.

    Attributes:
        n: draws at most; None takes what the budget pays for.
        temperature: None keeps the cell's own law (published: 0.7).
        role: whose model.
    """

    n: int | None = None
    temperature: float | None = None
    role: str = "policy"

    def __post_init__(self) -> None:
        _positive(n=self.n)

    def draws(self, n: int) -> int:
        """Its own number, but no more than `n`."""
        return self.leaves(n) if self.role == "policy" else 0

    def leaves(self, n: int) -> int:
        """See `draws`."""
        return n if self.n is None else min(self.n, n)

    def __call__(self, problem: Problem, state: State) -> Program[State]:
        """The draws that finished, or failing that those that say something."""
        drawn = yield from ask(problem, problem.prompt, self.n or 1, temperature=self.temperature, role=self.role)
        return State(tuple(usable(drawn)), made=tuple(drawn))


@dataclass(frozen=True, slots=True)
class Critic:
    """Writes strengths and weaknesses of each candidate, all in one reply.

    Attributes:
        tries: replies at most until each candidate has its paragraph; each is paid from the budget (published: 11,
            then an error; here a candidate that was not mentioned has an empty critique).
        role: whose model.
        prompt: with the places {problem} and {responses}.
    """

    tries: int = 1
    role: str = "policy"
    prompt: str = CRITIC

    def __post_init__(self) -> None:
        _positive(tries=self.tries)
        fill(self.prompt, problem="", responses="")

    def draws(self, n: int) -> int:
        """One a try."""
        return self.tries if self.role == "policy" else 0

    def leaves(self, n: int) -> int:
        """All of them."""
        return n

    def __call__(self, problem: Problem, state: State) -> Program[State]:
        """The same candidates with critiques."""
        told: list[str] = []
        for _ in range(self.tries):
            [reply] = yield from ask(problem, _about(self.prompt, problem, state, False), role=self.role)
            said = blocks(reply.text, len(state.candidates))
            told = max(told, said, key=lambda one: sum(map(bool, one)))
            if all(told):
                break
        return State(state.candidates, tuple(told) if any(told) else ())


@dataclass(frozen=True, slots=True)
class Ranker:
    """Keeps the best candidates: by a verifier's scores, or by one reply that ranks them all.

    Attributes:
        k: candidates to keep (published: 5).
        verify: scores them; None asks for a ranking. Ties keep their order.
        critiques: whether the ranking reads critiques; None where there are some.
        role: whose model ranks.
        prompt: with the places {problem} and {responses}.
    """

    k: int = 5
    verify: Verifier | None = None
    critiques: bool | None = None
    role: str = "policy"
    prompt: str = RANKER

    def __post_init__(self) -> None:
        _positive(k=self.k)
        fill(self.prompt, problem="", responses="")

    def draws(self, n: int) -> int:
        """One, if it has to ask the policy."""
        return int(self.verify is None and self.role == "policy" and n > 1)

    def leaves(self, n: int) -> int:
        """`k` at most."""
        return min(self.k, n)

    def __call__(self, problem: Problem, state: State) -> Program[State]:
        """The best `k`, best first."""
        n = len(state.candidates)
        if n == 1:
            return state.keep([0])
        if self.verify is not None:
            scores = yield from self.verify(problem, state.candidates)
            return state.keep(ranking(scores)[: self.k])
        prompt = _about(self.prompt, problem, state, self.critiques is not False)
        [reply] = yield from ask(problem, prompt, role=self.role)
        return state.keep(order(reply.text, n)[: self.k])


@dataclass(frozen=True, slots=True)
class Verification:
    """Keeps the candidates that pass: by a verifier's score, or by written reasons and then a verdict on each.

    Where none passes, those without a verdict stay, and where there are none of them either, all: a failed
    verification never drops a candidate by itself.

    Attributes:
        verify: scores candidates; None asks for reasons and verdict, two replies a candidate.
        threshold: score from which a candidate passes.
        first: stop at so many that passed; candidates are then verified one after the other. None verifies all.
        role: whose model gives reasons and verdicts.
        reason: prompt for reasons, with the places {problem} and {response}.
        verdict: prompt for a verdict, with the places {problem}, {response} and {reasons}.
    """

    verify: Verifier | None = None
    threshold: float = 0.5
    first: int | None = None
    role: str = "policy"
    reason: str = REASON
    verdict: str = VERDICT

    def __post_init__(self) -> None:
        _positive(first=self.first)
        fill(self.reason, problem="", response="")
        fill(self.verdict, problem="", response="", reasons="")

    def draws(self, n: int) -> int:
        """Two a candidate, if it has to ask the policy."""
        return 2 * n if self.verify is None and self.role == "policy" and n > 1 else 0

    def leaves(self, n: int) -> int:
        """`first` at most."""
        return n if self.first is None else min(self.first, n)

    def __call__(self, problem: Problem, state: State) -> Program[State]:
        """Those that pass, in their order."""
        n = len(state.candidates)
        if n == 1:
            return state.keep([0])
        verdicts: list[bool | None] = []
        while len(verdicts) < n and (self.first is None or verdicts.count(True) < self.first):
            some = state.candidates[len(verdicts) :][: self.first and 1]
            verdicts += yield from self._judge(problem, some)
        for outcome in (True, None):
            if passed := [i for i, verdict in enumerate(verdicts) if verdict is outcome]:
                return state.keep(passed)
        return state.keep(range(n))

    def _judge(self, problem: Problem, candidates: Sequence[Completion]) -> Program[list[bool | None]]:
        if self.verify is None:
            return (yield from gather(self._reasoned(problem, candidate) for candidate in candidates))
        scores = yield from self.verify(problem, candidates)
        return [score >= self.threshold if score == score else None for score in scores]

    def _reasoned(self, problem: Problem, candidate: Completion) -> Program[bool | None]:
        said = {"problem": problem.question, "response": candidate.text}
        [reasons] = yield from ask(problem, problem.turn(fill(self.reason, **said)), role=self.role)
        verdict = problem.turn(fill(self.verdict, **said, reasons=reasons.text))
        [reply] = yield from ask(problem, verdict, role=self.role)
        found = re.findall(r"\[(correct|incorrect)\]", reply.text, flags=re.IGNORECASE)
        return found[-1].lower() == "correct" if found else None


@dataclass(frozen=True, slots=True)
class Fuser:
    """Writes new candidates out of all that are there.

    Attributes:
        n: candidates to write.
        critiques: whether it reads critiques; None where there are some.
        temperature: None keeps the cell's own law (published: 0.7).
        role: whose model.
        prompt: with the places {problem} and {responses}.
    """

    n: int = 1
    critiques: bool | None = None
    temperature: float | None = None
    role: str = "policy"
    prompt: str = FUSER

    def __post_init__(self) -> None:
        _positive(n=self.n)
        fill(self.prompt, problem="", responses="")

    def draws(self, n: int) -> int:
        """One a candidate it writes."""
        return self.n if self.role == "policy" else 0

    def leaves(self, n: int) -> int:
        """What it writes."""
        return self.n

    def __call__(self, problem: Problem, state: State) -> Program[State]:
        """The new candidates that finished."""
        prompt = _about(self.prompt, problem, state, self.critiques is not False)
        drawn = yield from ask(problem, prompt, self.n, temperature=self.temperature, role=self.role)
        return State(tuple(r for r in drawn if r.finished), made=tuple(drawn))


STAGES: dict[str, type] = {
    "generator": Generator,
    "critic": Critic,
    "ranker": Ranker,
    "verifier": Verification,
    "fuser": Fuser,
}
"""By the name that recipes use."""


def _about(prompt: str, problem: Problem, state: State, critiques: bool) -> Prompt:
    """A prompt about all candidates, each with what critics said of it."""
    if len(state.candidates) > MANY:
        warnings.warn(f"{len(state.candidates)} candidates in one prompt; set the generator's n", stacklevel=2)
    told = state.critiques if critiques and state.critiques else [""] * len(state.candidates)
    both = zip(state.candidates, told, strict=True)
    listed = [f"{c.text.strip()}\n\nCritique: {said}" if said else c.text for c, said in both]
    return problem.turn(fill(prompt, problem=problem.question, responses=numbered(listed)))


def _positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
