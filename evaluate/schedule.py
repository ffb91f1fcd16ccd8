"""The loop: programs × engines × streams.

All cells run together. Each program advances until it yields a request; what its streams already hold is answered at
once, the rest goes to the engines; whenever replies arrive, they are kept, charged and handed on. Nothing waits for a
barrier, and what a cell gets depends on its own requests alone, never on timing: a program reads from lanes of its
own, and programs gathered side by side share out the budget that is left when they start.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from extratime.evaluate.cost import Cost, Ledger, Meter
from extratime.evaluate.lanes import Aim, Cursor, in_tokens
from extratime.evaluate.program import Answer, EngineError, Gather, Problem, Program
from extratime.evaluate.streams import Known, Reader, Streams, reply_key
from extratime.models.request import (
    Completion,
    Draw,
    Drawn,
    Engine,
    Failure,
    Probe,
    Prompt,
    Read,
    Reply,
    Sample,
    Sampling,
    Score,
    fail,
)
from extratime.models.unmasking import Unmasking


@dataclass(frozen=True, slots=True)
class Cell:
    """One problem under one strategy, budget and replicate.

    Attributes:
        key: unique within a run; seeds the program's rng.
        problem: what to answer.
        strategy: the program, `strategy(problem, budget, rng)`.
        budget: full-length samples' worth of policy tokens; the cap is budget × problem.max_tokens.
        sampling: the policy's law unless a request names another.
        until: terminal stop strings of the task.
        replicate: replicates read from different lanes.
    """

    key: str
    problem: Problem
    strategy: Callable[[Problem, int, np.random.Generator], Program[Answer]]
    budget: int
    sampling: Sampling = field(default_factory=Sampling)
    until: tuple[str, ...] = ()
    replicate: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What a cell came to. `error` names what failed; such a cell stays in every denominator."""

    cell: Cell
    answer: Answer
    cost: Cost
    error: str = ""


@dataclass(slots=True, eq=False)
class _Fiber:
    """One running program."""

    cell: Cell
    program: Program[Any]
    meter: Meter
    cursor: Cursor
    parent: tuple[_Fiber, int] | None = None
    children: list[_Fiber] = field(default_factory=list)
    forks: int = 0
    replies: list[Any] = field(default_factory=list)
    missing: int = 0
    drawing: list[int] = field(default_factory=list)
    role: str = "policy"


class _Want(NamedTuple):
    """A fiber's slot that waits for a path of an engine; `full` is the length of a full response."""

    fiber: _Fiber
    slot: int
    aim: Aim
    role: str
    full: int


@dataclass(slots=True)
class _Job:
    """One ticket with an engine: who waits, and for what."""

    role: str
    request: Draw | Score | Probe
    wants: list[_Want] = field(default_factory=list)
    askers: list[tuple[_Fiber, int]] = field(default_factory=list)


class Schedule:
    """Runs cells on engines, through streams, on one ledger.

    Args:
        engines: by role; each answers the requests that name its role.
        streams: what is known already, and where new draws are kept.
        ledger: charged with every reply, cancelled work included.
        on_result: called with each result as it comes.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        streams: Streams,
        ledger: Ledger | None = None,
        on_result: Callable[[Result], None] = lambda result: None,
    ) -> None:
        self.engines = engines
        self.streams = streams
        self.ledger = ledger or Ledger()
        self._on_result = on_result
        self._jobs: dict[Any, _Job] = {}
        self._ready: deque[tuple[_Fiber, Any]] = deque()
        self._results: dict[str, Result] = {}

    def run(self, cells: Iterable[Cell]) -> list[Result]:
        """Run all cells together; results in the order of `cells`.

        Raises:
            Exception: whatever a strategy raises, with a note naming the cell. What was drawn by then is kept, as it
                is on an interrupt.
        """
        cells = list(cells)
        if len({cell.key for cell in cells}) < len(cells):
            raise ValueError("two cells have one key; keys must be unique within a run")
        try:
            for cell in cells:
                self._ready.append((_start(cell, self.engines["policy"].fingerprint), None))
            self._drain()
            while self._jobs:
                for role, ticket, reply in self._poll():
                    self._take(role, ticket, reply)
                self.streams.commit()
                self._drain()
        finally:
            self._abandon()
        return [self._results[cell.key] for cell in cells]

    # --- programs

    def _drain(self) -> None:
        while self._ready:
            self._advance(*self._ready.popleft())

    def _advance(self, fiber: _Fiber, value: Any) -> None:
        try:
            send = fiber.program.throw if isinstance(value, EngineError) else fiber.program.send
            request = send(value)
        except StopIteration as stop:
            self._finish(fiber, stop.value)
        except EngineError as error:
            self._finish(fiber, error)
        except Exception as error:
            error.add_note(f"in cell {fiber.cell.key}")
            raise
        else:
            self._issue(fiber, request)

    def _issue(self, fiber: _Fiber, request: Any) -> None:
        match request:
            case Sample():
                self._sample(fiber, request)
            case Gather():
                self._fork(fiber, request.programs)
            case Score() | Probe():
                self._ask(fiber, (request,))
            case tuple() | list():
                self._ask(fiber, request)
            case _:
                raise TypeError(f"cell {fiber.cell.key}: a program yielded {request!r}, which is not a request")

    def _finish(self, fiber: _Fiber, value: Any) -> None:
        if fiber.parent is not None:
            self._fill(*fiber.parent, value)
            return
        if isinstance(value, EngineError):
            nothing = fail(Completion(fiber.cell.problem.prompt, "", 0), str(value))
            value = Answer(nothing, (), (), f"nothing: {value}")
        elif not isinstance(value, Answer):
            raise TypeError(f"cell {fiber.cell.key}: the strategy returned {value!r}, which is not an Answer")
        result = Result(fiber.cell, value, fiber.meter.cost, value.response.error)
        self._results[fiber.cell.key] = result
        self._on_result(result)

    def _expect(self, fiber: _Fiber, n: int) -> None:
        fiber.replies, fiber.missing, fiber.drawing = [None] * n, n, []
        if n == 0:
            self._ready.append((fiber, []))

    def _fill(self, fiber: _Fiber, slot: int, value: Any) -> None:
        fiber.replies[slot] = value
        fiber.missing -= 1
        if fiber.missing:
            return
        if fiber.children:
            fiber.meter.join([child.meter for child in fiber.children])
            fiber.children = []
        self._settle(fiber)
        errors = [reply for reply in fiber.replies if isinstance(reply, EngineError)]
        self._ready.append((fiber, errors[0] if errors else fiber.replies))

    def _settle(self, fiber: _Fiber) -> None:
        """Charge a sample when all of its paths are there, in their order: the charge never hangs on timing."""
        chain = max((self._charge(fiber, fiber.replies[slot]) for slot in fiber.drawing), default=0)
        fiber.meter.cost += Cost(sequential=chain)

    def _charge(self, fiber: _Fiber, reply: Completion) -> int:
        prompt, stem, path, law = _length(reply.prompt), reply.stem[0], reply.path, reply.sampling
        tokens, policy = reply.n_tokens - stem, fiber.role == "policy"
        assert path is not None  # it was drawn, or an engine failed to draw it
        if isinstance(law, Unmasking):
            return fiber.meter.unmask(path, law, prompt + stem, tokens)
        known = self.streams.paths.get(path)
        left_out = known.skipped[: tokens + (reply.finish == "stopped")] if known and known.skipped else ()
        return fiber.meter.draw(path, prompt, stem, tokens, policy, left_out)

    def _fork(self, fiber: _Fiber, programs: Sequence[Program[Any]]) -> None:
        serial, fiber.forks = fiber.forks, fiber.forks + 1
        self._expect(fiber, len(programs))
        for i, program in enumerate(programs):
            meter = fiber.meter.fork(len(programs))
            child = _Fiber(fiber.cell, program, meter, fiber.cursor.fork(serial, i, meter.extents), (fiber, i))
            fiber.children.append(child)
            self._ready.append((child, None))

    # --- drawing

    def _sample(self, fiber: _Fiber, request: Sample) -> None:
        wants = list(self._wants(fiber, request))
        self._expect(fiber, len(wants))
        fiber.role = request.role
        fiber.drawing = [slot for slot, want in enumerate(wants) if isinstance(want, _Want)]
        for slot, want in enumerate(wants):
            if isinstance(want, Completion):
                self._fill(fiber, slot, want)
            else:
                self._want(want)

    def _wants(self, fiber: _Fiber, request: Sample) -> Iterable[_Want | Completion]:
        cell, role = fiber.cell, request.role
        engine, ours = self._engine(role, cell), role == "policy"
        full = cell.problem.max_tokens if ours else request.max_tokens or cell.problem.max_tokens
        limit, left = min(full, request.max_tokens or full), fiber.meter.left
        prompt = request.prompt if request.prompt.ids is not None else engine.encode(request.prompt.text)
        until, fresh = cell.until if ours else (), _law(request, cell.sampling if ours else Sampling())
        for slot, given in enumerate(request.along or [None] * request.n):
            stem = given if ours or given is None else in_tokens(given, engine)
            if stem is not None and not (stem.readable and stem.n_tokens < limit):
                yield replace(stem, finish="length") if stem.readable else stem
                continue
            have = stem.n_tokens if stem else 0
            grant = min(limit - have, left) if ours else limit - have
            left -= grant
            if grant <= 0:
                yield replace(stem or Completion(prompt, "", 0), finish="cut")
                continue
            law = _law(request, stem.sampling) if stem and stem.sampling else fresh
            reader = Reader(have + grant, until, request.pause, len(stem.text) if stem else 0)
            cut = grant < limit - have
            aim = fiber.cursor.aim(prompt, law, stem, reader, cut, engine.fingerprint)
            yield _Want(fiber, slot, aim, role, full)

    def _want(self, want: _Want, last: bool = False) -> None:
        """Hand over what is known of a path if that is far enough, or `last`; else have it drawn.

        What an engine that can't resume once left unfinished stays so: to draw it again would favour short paths.
        """
        aim, engine = want.aim, self.engines[want.role]
        known, resumes = self.streams.paths.get(aim.path) or Known(), engine.profile.resumes
        completion = aim.read(known, last or bool(known.ends and not resumes))
        if completion is not None:
            self._fill(want.fiber, want.slot, completion)
        elif aim.path in self._jobs:
            self._jobs[aim.path].wants.append(want)
        else:
            request = aim.draw(known, None if resumes else want.full)
            self._jobs[aim.path] = _Job(want.role, request, wants=[want])
            engine.submit(aim.path, request)

    # --- scoring and probing

    def _ask(self, fiber: _Fiber, requests: Sequence[Score | Probe]) -> None:
        self._expect(fiber, len(requests))
        for slot, request in enumerate(requests):
            engine = self._engine(request.role, fiber.cell)
            key = reply_key(engine, request)
            if key in self.streams.values:
                self._answer(fiber, slot, request, key)
            elif key in self._jobs:
                self._jobs[key].askers.append((fiber, slot))
            else:
                self._jobs[key] = _Job(request.role, request, askers=[(fiber, slot)])
                engine.submit(key, request)

    def _answer(self, fiber: _Fiber, slot: int, request: Score | Probe, key: str) -> None:
        values, tokens = self.streams.values[key]
        fiber.meter.question(key, _context(request), tokens)
        self._fill(fiber, slot, values)

    def _engine(self, role: str, cell: Cell) -> Engine:
        if role not in self.engines:
            have = ", ".join(sorted(self.engines))
            raise KeyError(f"cell {cell.key} asks the role {role!r}, but the recipe's engines are: {have}")
        return self.engines[role]

    # --- engines

    def _poll(self) -> Iterable[tuple[str, Any, Reply]]:
        busy = {job.role for job in self._jobs.values()}
        polled: list[Engine] = []
        for role in sorted(busy):
            engine = self.engines[role]
            if not any(engine is other for other in polled):
                polled.append(engine)
                for ticket, reply in engine.poll():
                    yield self._jobs[ticket].role, ticket, reply

    def _take(self, role: str, ticket: Any, reply: Reply) -> None:
        job = self._jobs.pop(ticket)
        self.ledger.charge(role, reply.work)
        match reply:
            case Drawn():
                self._drawn(job, ticket, reply)
            case Read():
                context = _context(job.request)  # type: ignore[arg-type]
                tokens = max(1, reply.work.prefill + reply.work.cached - context)
                self.streams.remember(ticket, reply.values, tokens)
                for fiber, slot in job.askers:
                    self._answer(fiber, slot, job.request, ticket)  # type: ignore[arg-type]
            case Failure():
                self._failed(job, reply.error)

    def _drawn(self, job: _Job, path: Any, drawn: Drawn) -> None:
        stuck = not (drawn.ends or drawn.eos or drawn.stopped)
        if not stuck:
            self.streams.append(path, drawn)
        for want in job.wants:
            self._want(want, last=stuck)

    def _failed(self, job: _Job, error: str) -> None:
        for want in job.wants:
            self._fill(want.fiber, want.slot, want.aim.failed(error))
        for fiber, slot in job.askers:
            self._fill(fiber, slot, EngineError(error))

    def _abandon(self) -> None:
        """Cancel what is under way; prefixes already drawn are kept, to be read on another time."""
        for ticket, job in self._jobs.items():
            reply = self.engines[job.role].cancel(ticket)
            if reply is not None:
                self.ledger.charge(job.role, reply.work)
            if isinstance(reply, Drawn) and reply.ends:
                self.streams.append(ticket, reply)
        self._jobs.clear()
        self._ready.clear()
        self.streams.commit()


def _start(cell: Cell, fingerprint: str) -> _Fiber:
    rng = np.random.default_rng(zlib.crc32(cell.key.encode()))
    program = cell.strategy(cell.problem, cell.budget, rng)
    meter = Meter(cell.budget * cell.problem.max_tokens)
    return _Fiber(cell, program, meter, Cursor(fingerprint, (cell.replicate,), meter.extents))


def _law(request: Sample, law: Sampling) -> Sampling:
    """`law` as far as a request leaves it as it is."""
    law = law if request.temperature is None else law.at(request.temperature)
    return law if request.block is None else law.in_blocks(request.block)


def _length(prompt: Prompt) -> int:
    return len(prompt.ids or ())


def _context(request: Score | Probe) -> int:
    """Tokens that a request's own words come after."""
    if isinstance(request, Score):
        return _length(request.prompt)
    return _length(request.completion.prompt) + len(request.completion.tokens)
