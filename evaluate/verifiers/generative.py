"""A generative judge behind the role "judge": it reasons about responses, then its verdict is read.

Pointwise (GenRM, arXiv 2408.15240), s the probability of the verdict "Yes" at the slot after the opener:

    votes = 0:  s(x, y) = P(Yes | x, y, opener)                        one probe, nothing sampled
    votes = K:  s(x, y) = (1/K) Σ_k P(Yes | x, y, c_k, opener)         c_k sampled reasoning

Pairwise (J1, arXiv 2505.10320): each pair is judged in both orders, and only a verdict that names the same response in
both is a win; all else is a tie. A round robin gives each response its share of wins, ties counted half; a knockout
the share of rounds it survives.

Forced thinking (J1-7B, arXiv 2505.11875; s1, arXiv 2501.19393): a judgement that reaches the opener of its verdict has
the opener taken back and a cue put there, `cues` times.

A judgement without a verdict is missing, not 0. The judge's tokens are charged under its role.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from extratime.evaluate.program import EngineError, Problem, Program, extend, gather, probe, rewrite, sample
from extratime.models import judge as judges
from extratime.models.judge import Form, Judge
from extratime.models.request import Completion, Probe, Prompt


@dataclass(frozen=True, slots=True)
class Bench:
    """A judge and how it is asked; see `generative`."""

    judge: Judge
    votes: int = 0
    cues: int = 0
    soft: bool = True
    temperature: float = 1.0
    role: str = "judge"


def generative(
    problem: Problem,
    responses: Sequence[Completion],
    form: Form = "pointwise",
    votes: int = 0,
    cues: int = 0,
    soft: bool = True,
    tournament: Literal["round_robin", "knockout"] = "round_robin",
    temperature: float = 1.0,
    judge: Mapping[str, Any] | None = None,
    role: str = "judge",
) -> Program[list[float]]:
    """What a judge makes of each response, in [0, 1]; -inf for failed ones, and where no judgement has a verdict.

    Equal texts are judged once. One response alone has nobody to be compared with: pairwise it gets ½.

    Args:
        problem: what the responses answer.
        responses: whole or partial.
        form: whether the judge sees one response at a time, or two.
        votes: judgements sampled for each prompt; 0 reads the verdict slot straight after the prompt.
        cues: how often a judgement is made to think on before its verdict.
        soft: whether a vote counts with the probabilities at its verdict slot, or by the verdict it went on to write.
        tournament: which pairs meet.
        temperature: of the judge.
        judge: fields of `Judge`, prompts as the model reads them; a checkpoint's manifest tells its own.
        role: whose engine answers.

    Raises:
        EngineError: the engine failed on every judgement of a prompt.
    """
    bench = Bench(Judge(**(judge or {})), votes, cues, soft, temperature, role)
    texts = list(dict.fromkeys(r.text for r in responses if r.finish != "failed"))
    scores = yield from (points if form == "pointwise" else _TOURNAMENTS[tournament])(problem.question, texts, bench)
    told = dict(zip(texts, scores, strict=True))
    return [told[r.text] if r.finish != "failed" else -math.inf for r in responses]


def points(problem: str, texts: Sequence[str], bench: Bench) -> Program[list[float]]:
    """Mean P(Yes) over the judgements of each text; -inf where none has a verdict."""
    opinions = yield from gather(opinion(bench.judge.about(problem, text), "pointwise", bench) for text in texts)
    return [sum(said) / len(said) if said else -math.inf for said in opinions]


def opinion(prompt: str, form: Form, bench: Bench) -> Program[list[float]]:
    """The weight in [0, 1] of the first verdict of a form in each judgement that has a verdict."""
    if not bench.votes:
        empty = Completion(Prompt(prompt), "", 0)
        return (yield from _weights([empty], bench.judge.opener, form, bench))
    thoughts = yield from think(prompt, bench)
    if bench.soft:
        ended = [thought for thought in thoughts if thought.finish == "pause"]
        return (yield from _weights(ended, "", form, bench))
    written = yield from conclude(thoughts, form, bench)
    verdicts = [judges.verdict(said.text, bench.judge, form) for said in written]
    return [float(v == 0) for v in verdicts if v is not None]


def _weights(thoughts: Sequence[Completion], asked: str, form: Form, bench: Bench) -> Program[list[float]]:
    verdicts = bench.judge.verdicts(form)
    replies = yield from probe(Probe(thought, asked, verdicts, role=bench.role) for thought in thoughts)
    if form == "pointwise":
        return [yes for yes, _ in replies]
    return [one / (one + other) for one, other in replies if one + other > 0]


def think(prompt: str, bench: Bench) -> Program[list[Completion]]:
    """Judgements up to where their verdict begins (`finish` is then "pause"), each made to think on `cues` times.

    Raises:
        EngineError: the engine failed on all of them.
    """
    stop, length = (bench.judge.opener,), bench.judge.max_tokens
    thoughts = yield from sample(
        Prompt(prompt), bench.votes, temperature=bench.temperature, pause=stop, max_tokens=length, role=bench.role
    )
    for _ in range(bench.cues):
        open_ = [i for i, thought in enumerate(thoughts) if thought.finish == "pause"]
        cued = [_cued(thoughts[i], bench.judge) for i in open_]
        longer = yield from extend(cued, pause=stop, max_tokens=length, role=bench.role)
        for i, thought in zip(open_, longer, strict=True):
            thoughts[i] = thought
    if all(thought.finish == "failed" for thought in thoughts):
        raise EngineError(thoughts[0].error)
    return thoughts


def conclude(thoughts: Sequence[Completion], form: Form, bench: Bench) -> Program[list[Completion]]:
    """The judgements with the verdicts that the judge goes on to write; as they are where it came to none."""
    stops, length = (*bench.judge.verdicts(form), "\n"), bench.judge.max_tokens
    ended = [thought for thought in thoughts if thought.finish == "pause"]
    written = iter((yield from extend(ended, pause=stops, max_tokens=length, role=bench.role)))
    return [next(written) if thought.finish == "pause" else thought for thought in thoughts]


def _cued(thought: Completion, judge: Judge) -> Completion:
    return rewrite(thought, thought.text.rpartition(judge.opener)[0] + judge.cue)


def prefer(problem: str, one: str, other: str, bench: Bench) -> Program[float]:
    """1 if `one` is preferred in both orders, 0 if `other` is, else ½."""
    orders = [bench.judge.about(problem, *pair) for pair in ((one, other), (other, one))]
    here, there = yield from gather(opinion(prompt, "pairwise", bench) for prompt in orders)
    return (1 + _lean(here)) / 2 if _lean(here) == -_lean(there) else 0.5


def _lean(votes: Sequence[float]) -> int:
    """1 if votes prefer the first, -1 the second, 0 if neither."""
    balance = sum(vote - 0.5 for vote in votes)
    return (balance > 0) - (balance < 0)


def round_robin(problem: str, texts: Sequence[str], bench: Bench) -> Program[list[float]]:
    """Each against each: (wins + ties / 2) / games."""
    pairs = list(itertools.combinations(range(len(texts)), 2))
    results = yield from gather(prefer(problem, texts[i], texts[j], bench) for i, j in pairs)
    wins = [0.0] * len(texts)
    for (i, j), result in zip(pairs, results, strict=True):
        wins[i] += result
        wins[j] += 1 - result
    return [won / (len(texts) - 1) if len(texts) > 1 else 0.5 for won in wins]


def knockout(problem: str, texts: Sequence[str], bench: Bench) -> Program[list[float]]:
    """Neighbours meet and the winners go on, the earlier one after a tie; who has no neighbour goes on, too.

    The score is the share of rounds survived: 1 for the last that is left.
    """
    left, survived, rounds = list(range(len(texts))), [0] * len(texts), 0
    while len(left) > 1:
        pairs = list(zip(left[::2], left[1::2], strict=False))
        results = yield from gather(prefer(problem, texts[i], texts[j], bench) for i, j in pairs)
        bye = left[2 * len(pairs) :]
        left = [i if result >= 0.5 else j for (i, j), result in zip(pairs, results, strict=True)] + bye
        rounds += 1
        for i in left:
            survived[i] += 1
    return [won / rounds if rounds else 0.5 for won in survived]


_TOURNAMENTS: dict[str, Callable[[str, Sequence[str], Bench], Program[list[float]]]] = {
    "round_robin": round_robin,
    "knockout": knockout,
}
