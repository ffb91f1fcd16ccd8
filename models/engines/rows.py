"""The running batch of the `hf` engine: draws enter and leave it at any step.

A draw that does not fit waits. A batch that outgrows its memory, as planned or as the device says, puts its youngest
draws back into the queue and goes on with fewer; they lose nothing but the time to read their context again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import islice

import torch

from extratime.models.engines.decode import Context, Pieces, Runner, Tally
from extratime.models.engines.law import Heat, Laws, pick
from extratime.models.engines.memory import attempt, no_memory
from extratime.models.engines.text import Text
from extratime.models.paths import uniforms
from extratime.models.request import Draw, Drawn, Failure, Reply

_MARGIN = 64
"""Tokens by which rows may grow before the batch has to be smaller."""


@dataclass(slots=True, eq=False)
class Row:
    """A draw in progress.

    Attributes:
        ids: prompt and path; all but the last have their keys and values in the pool once it runs.
        have: how many of `ids` were given.
        given: how many of those belong to the path.
        text: the path's text.
        base: length of the text that was given.
        skipped: layers that each forward pass left out, where any can be.
    """

    ticket: Hashable
    draw: Draw
    ids: list[int]
    have: int
    given: int
    text: Text
    base: int
    started: bool = False
    tally: Tally = field(default_factory=Tally)
    ends: list[int] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    tempered: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, ticket: Hashable, draw: Draw, prompt: Context, have: Context, decode: Callable[[Context], str]) -> Row:
        """A draw about to begin after `prompt` and the part of its path that is known."""
        text = Text(decode, prompt, have)
        return cls(ticket, draw, [*prompt, *have], len(prompt) + len(have), len(have), text, len(text.value))

    @property
    def context(self) -> Context:
        """Everything but the token that goes through the model next."""
        return tuple(self.ids[:-1])

    @property
    def position(self) -> int:
        """Index in the path of the token drawn next."""
        return self.given + len(self.ids) - self.have

    def take(self, token: int, raw: float, tempered: float, ends: frozenset[int]) -> bool:
        """Add a drawn token; returns whether the draw stops there for reasons of its own."""
        self.raw.append(raw)
        self.tempered.append(tempered)
        old = len(self.text.value)
        if token not in ends:
            self.ids.append(token)
            self.text.push(token)
        self.ends.append(len(self.text.value) - self.base)
        return (
            token in ends
            or self.position >= self.draw.max_tokens
            or self.text.ends_with_new(self.draw.until + self.draw.pause, old)
        )

    def drawn(self) -> Drawn:
        """What was read so far."""
        tokens = tuple(self.ids[self.have :])
        return Drawn(
            text=self.text.value[self.base :],
            ends=tuple(self.ends),
            tokens=tokens,
            logprobs=tuple(self.raw),
            tempered=tuple(self.tempered),
            eos=len(self.ends) > len(tokens),
            skipped=tuple(self.skipped),
            work=self.tally.work(),
        )


@dataclass(slots=True, eq=False)
class Batch:
    """Draws being decoded, and those that wait for a place.

    Attributes:
        run: what reads and decodes.
        ends: token ids that end a response.
        context: tokens up to which a row may grow.
        limit: rows at a time.
        tokens: tokens that all rows together may hold, counted as a rectangle.
        heat: gives each row a temperature of its own.
        replies: finished draws, to be taken by whoever polls.
    """

    run: Runner
    ends: frozenset[int]
    context: int
    limit: int
    tokens: int
    heat: Heat | None = None
    replies: list[tuple[Hashable, Reply]] = field(default_factory=list)
    _rows: list[Row | None] = field(default_factory=list)
    _waiting: deque[Row] = field(default_factory=deque)
    _laws: tuple[list[Row], Laws] | None = None

    def __len__(self) -> int:
        """Rows of the pool in use."""
        return len(self._rows)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._rows or self._waiting)

    def add(self, row: Row) -> None:
        """Take on a draw."""
        if row.position >= row.draw.max_tokens or len(row.ids) >= self.context:
            self.replies.append((row.ticket, row.drawn()))
        else:
            self._waiting.append(row)

    def cancel(self, ticket: Hashable) -> Reply | None:
        """Drop a draw; returns what was read of it, or None if nothing was done for it."""
        for at, row in enumerate(self._rows):
            if row is not None and row.ticket == ticket:
                self._leave(at)
                return row.drawn()
        for row in self._waiting:
            if row.ticket == ticket:
                self._waiting.remove(row)
                return row.drawn() if row.started else None
        return None

    def clear(self) -> None:
        """Drop everything."""
        self._rows.clear()
        self._waiting.clear()
        self.replies.clear()

    def advance(self) -> None:
        """Let draws in and draw one token in every row."""
        self._admit()
        self._close_gaps()
        self._fit()
        if rows := [row for row in self._rows if row is not None]:
            self._step(rows)

    def _admit(self) -> None:
        free = self._room() - sum(row is not None for row in self._rows)
        come = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        if not come:
            return
        for row in come:
            row.started = True
        held, errors = self.run.hold([(row.context, row.tally) for row in come], len(self._rows))
        stay: list[Row] = []
        for row in come:
            why = errors.get(row.context) or self._enter(row, held[row.context])
            if why and any(self._rows):
                stay.append(row)
            elif why:
                self.replies.append((row.ticket, Failure(no_memory(why, len(row.ids)), row.tally.work())))
        if stay:
            self.limit = sum(row is not None for row in self._rows)
            self._waiting.extendleft(reversed(stay))

    def _room(self) -> int:
        """How many rows there may be now."""
        live = [len(row.ids) for row in self._rows if row is not None]
        longest = max([*live, *(len(row.ids) for row in islice(self._waiting, self.limit))], default=1)
        room = max(1, min(self.limit, self.tokens // (longest + _MARGIN)))
        if not live and room * self.run.pool.columns > self.tokens:
            self.run.pool.free()  # it was made for longer rows than these
        return room

    def _enter(self, row: Row, pieces: Pieces) -> str | None:
        """Give a draw a free row, if possible one that still holds its context; returns what went wrong."""
        context, kept, rows = row.context, self.run.pool.kept, self._rows
        gaps = [i for i, taken in enumerate(rows) if taken is None]
        places = [i for i in [*gaps, len(rows)] if i < len(kept) and kept[i][: len(context)] == context]
        at = [*places, *gaps, len(rows)][0]
        with self.run.timed("prefill"):
            why = attempt(lambda: self.run.enter(at, context, pieces))
        if why is None:
            rows[at : at + 1] = [row]
            self._laws = None
        return why

    def _close_gaps(self) -> None:
        rows = self._rows
        while None in rows:
            if (last := rows.pop()) is not None:
                at = rows.index(None)
                self.run.pool.move(len(rows), at, len(last.ids) - 1)
                rows[at] = last
                self._laws = None

    def _fit(self) -> None:
        """Put the youngest draws back into the queue while the rows hold more than they may."""
        while len(self._rows) > 1 and len(self._rows) * max(len(r.ids) for r in self._rows if r) > self.tokens:
            self._waiting.appendleft(self._leave(len(self._rows) - 1))
            self._rows.pop()

    def _step(self, rows: list[Row]) -> None:
        drawn: list[list[float]] = []
        with self.run.timed("decode"):
            why = attempt(lambda: drawn.extend(self._draw(rows)))
        if why is not None:
            self._retreat(why)
            return
        for at, (row, token, raw, tempered) in enumerate(zip(rows, *drawn, strict=True)):
            if row.take(int(token), raw, tempered, self.ends) or len(row.ids) >= self.context:
                self._leave(at)
                self.replies.append((row.ticket, row.drawn()))

    def _draw(self, rows: list[Row]) -> list[list[float]]:
        """Tokens, raw and tempered log-probabilities, a column each."""
        lengths = [len(row.ids) - 1 for row in rows]
        device = self.run.device
        if self._laws is None:
            self._laws = (rows, Laws.of([row.draw.sampling for row in rows], device))
        uniform = [uniforms(row.draw.seed, row.position, 1)[0] for row in rows]
        logits = self.run.step([row.ids[-1] for row in rows], lengths, [row.tally for row in rows])
        drawn = torch.tensor(uniform, device=device, dtype=torch.float64)
        picked = pick(logits, self._laws[1], drawn, self.heat)
        columns: list[list[float]] = torch.stack([column.double() for column in picked]).tolist()
        return columns

    def _leave(self, at: int) -> Row:
        """Free a row; what it holds stays available."""
        row = self._rows[at]
        assert row is not None
        self.run.pool.kept[at] = row.context
        self.run.keep(at, row.context)
        self._rows[at] = None
        self._laws = None
        return row

    def _retreat(self, why: str) -> None:
        """After running out of memory: go on with half the rows."""
        self.run.relieve()
        rows = [row for row in self._rows if row is not None]
        if len(rows) == 1:
            self.replies.append((rows[0].ticket, Failure(no_memory(why, len(rows[0].ids)), rows[0].tally.work())))
            self._rows.clear()
            return
        self.limit = len(rows) // 2
        self._waiting.extendleft(reversed(rows[self.limit :]))
        del self._rows[self.limit :]
        self._laws = None
