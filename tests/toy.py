"""A language model whose laws are known in closed form, behind the real `Engine` protocol.

`law(prompt, text)` gives the probability of each next piece of text; the empty string ends the path.
"""

from __future__ import annotations

import json
import math
import random
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

from scipy.stats import chisquare

from extratime.evaluate.cost import Ledger
from extratime.evaluate.program import Gather, Problem
from extratime.evaluate.schedule import EngineError, Result, Schedule
from extratime.evaluate.streams import Streams
from extratime.models.paths import digest, uniforms
from extratime.models.request import (
    Draw,
    Drawn,
    Failure,
    Probe,
    Profile,
    Prompt,
    Read,
    Sample,
    Score,
    Shape,
    Work,
)

Law = Callable[[str, str], Mapping[str, float]]
SHAPE = Shape(parameters=1000, layers=1, heads=1, kv_heads=1, head_dim=4)


@dataclass
class Row:
    draw: Draw
    pieces: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tempered: list[float] = field(default_factory=list)
    eos: bool = False
    work: Work = field(default_factory=Work)

    @property
    def done(self) -> bool:
        text = "".join(self.pieces)
        whole = self.draw.have_text + text
        paused = any(whole.find(p, max(0, len(self.draw.have_text) - len(p) + 1)) >= 0 for p in self.draw.pause)
        ended = any(u in whole for u in self.draw.until)
        return self.eos or paused or ended or len(self.draw.have) + len(self.pieces) >= self.draw.max_tokens


class ToyEngine:
    """Advances up to `slots` rows a token at a time; service order is random under `seed`."""

    def __init__(self, law: Law, slots: int = 8, seed: int = 0, name: str = "toy", value=None, yes=None) -> None:
        self.law, self.slots, self.value, self.yes = law, slots, value, yes
        self.fingerprint = digest("toy", name)
        self.profile = Profile(concurrency=slots, shape=SHAPE)
        self.adapters = {"self_eval": "toy-adapter", "shuffled": "toy-shuffled"}
        self.counts = Work()
        self.seconds = {"prefill": 1.0, "decode": 1.0}
        self.submitted = 0
        self._rng = random.Random(seed)
        self._rows: dict[Hashable, Row] = {}
        self._reads: list[tuple[Hashable, Score | Probe]] = []

    def encode(self, text: str) -> Prompt:
        return read(text)

    def submit(self, ticket: Hashable, request: Draw | Score | Probe) -> None:
        self.submitted += 1
        if isinstance(request, Draw):
            self._rows[ticket] = Row(request)
        else:
            self._reads.append((ticket, request))

    def cancel(self, ticket: Hashable) -> Drawn | None:
        self._reads = [item for item in self._reads if item[0] != ticket]
        row = self._rows.pop(ticket, None)
        return self._reply(row) if (row and row.pieces) or (row and row.eos) else None

    def poll(self) -> list[tuple[Hashable, Drawn | Read]]:
        replies: list = [(ticket, self._answer(request)) for ticket, request in self._reads]
        self._reads = []
        while self._rows and not replies:
            waiting = list(self._rows)
            for ticket in self._rng.sample(waiting, min(self.slots, len(waiting))):
                row = self._rows[ticket]
                if not row.done:
                    self._step(row)
                if row.done:
                    replies.append((ticket, self._reply(self._rows.pop(ticket))))
        self._rng.shuffle(replies)
        return replies

    def close(self) -> None:
        self._rows.clear()

    def _step(self, row: Row) -> None:
        draw, position = row.draw, len(row.draw.have) + len(row.pieces)
        raw = {k: p for k, p in self.law(draw.prompt.text, draw.have_text + "".join(row.pieces)).items() if p > 0}
        t = draw.sampling.temperature
        hot = (
            {k: float(p == max(raw.values())) for k, p in raw.items()}
            if t == 0
            else {k: p ** (1 / t) for k, p in raw.items()}
        )
        total = sum(hot.values())
        u, acc = uniforms(draw.seed, position, 1)[0] * total, 0.0
        for piece, p in hot.items():  # noqa: B007  (the last piece that was reached)
            acc += p
            if u < acc:
                break
        if not row.pieces:
            self._count(row, Work(prefill=len(draw.prompt.ids or ()) + len(draw.have)))
        row.logprobs.append(math.log(raw[piece] / sum(raw.values())))
        row.tempered.append(math.log(hot[piece] / total))
        row.eos = piece == ""
        if piece:
            row.pieces.append(piece)
        context = len(draw.prompt.ids or ()) + position + 1
        self._count(row, Work(decode=1, pairs=context, decode_pairs=context))

    def _count(self, row: Row, work: Work) -> None:
        row.work += work
        self.counts += work

    def _reply(self, row: Row) -> Drawn:
        ends, at = [], 0
        for piece in row.pieces + [""] * row.eos:
            at += len(piece)
            ends.append(at)
        tokens = tuple(zlib.crc32(piece.encode()) for piece in row.pieces)
        return Drawn(
            "".join(row.pieces), tuple(ends), tokens, tuple(row.logprobs), tuple(row.tempered), row.eos, row.work
        )

    def _answer(self, request: Score | Probe) -> Read:
        if isinstance(request, Score):
            values = tuple(self.value(request.continuation)) if self.value else (0.0,)
            work = Work(prefill=len(request.continuation), cached=len(request.prompt.ids or ()))
        else:
            p = self.yes(request.completion, request.adapter) if self.yes else 0.5
            values = (p, 1 - p)[: len(request.targets)]
            said = request.completion
            work = Work(prefill=7, cached=len(said.prompt.ids or ()) + len(said.tokens))
        self.counts += work
        return Read(values, work)


def told(law: Callable[[str], Mapping[str, float]]) -> Law:
    """A law of the response alone: whatever follows the last question mark, branched or not."""
    return lambda prompt, text: law((prompt + text).rpartition("?")[2])


def lines(text: str) -> Mapping[str, float]:
    """Two lines of one or two letters, then an answer that hangs on the first letter: 6 to 8 tokens, 108 texts."""
    line = text.rpartition("\n")[2]
    if "=" in text:
        return {"": 1.0}
    if text.count("\n") == 2:
        return {"=1": 0.5, "=2": 0.3, "=3": 0.2} if text[0] == "a" else {"=1": 0.2, "=2": 0.5, "=3": 0.3}
    if not line:
        return {"a": 0.5, "b": 0.3, "c": 0.2}
    return {"\n": 0.6, "d": 0.4} if len(line) == 1 else {"\n": 1.0}


def texts(law: Callable[[str], Mapping[str, float]], length: int) -> tuple[dict[str, float], dict[str, float]]:
    """Probabilities of all finished and of all unfinished texts of at most `length` tokens, by enumeration."""
    finished: Counter = Counter()
    growing: Counter = Counter({"": 1.0})
    for _ in range(length):
        grown: Counter = Counter()
        for text, p in growing.items():
            for piece, q in law(text).items():
                (grown if piece else finished)[text + piece] += p * q
        growing = grown
    return dict(finished), dict(growing)


def p_value(seen: Iterable[Hashable], law: Mapping[Hashable, float]) -> float:
    """Of a chi-square test of independent outcomes against their law; outcomes expected less than 5 times are one."""
    counts = Counter(seen)
    n = counts.total()
    assert set(counts) <= {outcome for outcome, p in law.items() if p > 0}, "an outcome that the law excludes"
    often = [outcome for outcome, p in law.items() if n * p >= 5]
    observed, expected = [counts[outcome] for outcome in often], [n * law[outcome] for outcome in often]
    rest = n - sum(expected)
    if rest > 1e-6:
        observed, expected = [*observed, n - sum(observed)], [*expected, rest]
    return float(chisquare(observed, expected).pvalue) if len(observed) > 1 else 1.0


def ended(text: str) -> str | None:
    """The answer of a toy response: what stands after its last "="."""
    return text.rpartition("=")[2] or None if "=" in text else None


def problem(id: str = "p", max_tokens: int = 16, right: str = "1", **fields) -> Problem:
    told = {"answer": ended, "correct": lambda text: ended(text) == right, "max_tokens": max_tokens}
    return Problem(id, read(f"{id}?"), **({"encode": read, "turn": turn} | told | fields))


def turn(text: str) -> Prompt:
    """What is said beside the problem, ended as a question is."""
    return read(text if text.endswith("?") else f"{text} ok?")


def read(text: str) -> Prompt:
    """A text as the toy reads it: a token a byte."""
    return Prompt(text, tuple(text.encode()))


def run(engine, cells, streams: Streams | None = None, ledger: Ledger | None = None, **on) -> list[Result]:
    """Run cells with one engine in every role."""
    roles = dict.fromkeys(("policy", "verifier", "judge"), engine)
    return Schedule(roles, Streams() if streams is None else streams, ledger, **on).run(cells)


def plain(result: Result) -> str:
    """Everything a result says, as text."""
    said = asdict(result.answer), result.cost._asdict(), result.error
    return f"{result.cell.key}: {json.dumps(said, sort_keys=True)}"


def spied(strategy, log: list):
    """`strategy`, with each stretch of a path that it reads added to `log` as (path, first token, token after)."""

    def watched(program):
        step, value = program.send, None
        while True:
            try:
                request = step(value)
            except StopIteration as stop:
                return stop.value
            if isinstance(request, Gather):
                request = Gather(tuple(watched(child) for child in request.programs))
            try:
                step, value = program.send, (yield request)
            except EngineError as error:
                step, value = program.throw, error
            if isinstance(request, Sample):
                log.extend(_stretches(request, value))

    return lambda problem, budget, rng: watched(strategy(problem, budget, rng))


def _stretches(request: Sample, replies):
    for before, after in zip(request.along or [None] * request.n, replies, strict=True):
        if after.path is not None and after is not before:
            same = before is not None and (before.path, before.stem) == (after.path, after.stem)
            start = before.n_tokens - before.stem[0] if same else 0
            yield after.path, start, after.n_tokens - after.stem[0]


class Rebooting(ToyEngine):
    """Times out on each path that would grow beyond `patience` tokens, `times` times; then lets it be."""

    def __init__(self, law: Law, patience: int, times: int, **options) -> None:
        super().__init__(law, **options)
        self.patience, self.times = patience, times
        self.timeouts: Counter = Counter()

    def poll(self):
        return [(ticket, self._late(ticket, reply)) for ticket, reply in super().poll()]

    def _late(self, ticket, reply):
        if not isinstance(reply, Drawn) or len(reply.ends) <= self.patience or self.timeouts[ticket] >= self.times:
            return reply
        self.timeouts[ticket] += 1
        return Failure("timed out", reply.work)


class Silent(ToyEngine):
    """An engine that must not be asked."""

    def submit(self, ticket, request) -> None:
        raise AssertionError(f"a replay asked the engine for {request}")
