"""Forward passes over the pool: reading contexts, extending rows, answering questions.

Everything that goes through the model goes through `Runner`, which counts it at that place, for the engine and for
whoever asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from extratime.models.engines.kv import Pool, PrefixStore, Segment, common
from extratime.models.engines.memory import attempt, no_memory
from extratime.models.request import Work

_BATCH_TOKENS = 2048
_BATCH_ROWS = 16
_PIECE = 1024
"""Tokens of a row that go through the model at once, and a quarter of them where the answer needs their logits."""
_SMALLEST = 32
"""After running out of memory pieces get smaller, down to this."""
_SHARED = 16
"""Contexts that share this many tokens not yet read are read one after the other, the shared part once."""

Context: TypeAlias = tuple[int, ...]
Pieces: TypeAlias = list[tuple[Segment, int]]


@dataclass(slots=True)
class Tally:
    """Work while it is being done; see `Work` for the units."""

    prefill: int = 0
    decode: int = 0
    cached: int = 0
    pairs: int = 0
    decode_pairs: int = 0
    skipped: int = 0
    skipped_pairs: int = 0

    def read(self, before: int, tokens: int) -> None:
        """Count `tokens` that were read in one pass after `before` others."""
        self.prefill += tokens
        self.pairs += tokens * before + tokens * (tokens + 1) // 2

    def generated(self, tokens: int, contexts: int) -> None:
        """Count `tokens` generated from contexts of `contexts` tokens in all."""
        self.decode += tokens
        self.pairs += contexts
        self.decode_pairs += contexts

    def left_out(self, layers: int, context: int) -> None:
        """Count the layers that a token with a context of `context` tokens, itself included, left out."""
        self.skipped += layers
        self.skipped_pairs += layers * context

    def work(self) -> Work:
        """The work so far."""
        return Work(
            self.prefill,
            self.decode,
            self.cached,
            self.pairs,
            self.decode_pairs,
            self.skipped,
            self.skipped_pairs,
        )


@dataclass(slots=True)
class Chunk:
    """Tokens to read after a context.

    Attributes:
        context: all tokens before them.
        ids: the tokens.
        asked: whose log-probability is wanted: (index in `ids` of the token before it, its id), in order of index.
        tally: who pays.
        switch: index in `ids` from which an activated LoRA is on.
        values: the answer: a log-probability for each of `asked`.
        error: why there is none.
    """

    context: Context
    ids: list[int]
    asked: list[tuple[int, int]]
    tally: Tally
    switch: int = 0
    values: list[float] = field(default_factory=list)
    error: str = ""


@dataclass(slots=True, eq=False)
class Runner:
    """A model, the pool it writes to, the prefixes it has read, and what all that cost.

    Attributes:
        model: a transformers model, or a PEFT model around one.
        adapter: the adapter that is on, None for the plain model.
    """

    model: Any
    device: torch.device
    pool: Pool
    store: PrefixStore
    total: Tally = field(default_factory=Tally)
    seconds: dict[str, float] = field(default_factory=lambda: {"prefill": 0.0, "decode": 0.0})
    adapter: str | None = ""

    def step(self, tokens: list[int], lengths: list[int], tallies: list[Tally]) -> Tensor:
        """Read one token in each of the first rows, which hold `lengths` tokens; returns logits [rows, vocabulary]."""
        self.pool.reserve(len(tokens), max(lengths) + 1)
        self.use(None)
        ids = torch.tensor(tokens, device=self.device)[:, None]
        logits = self._forward(0, ids, lengths, 1)
        for tally, length in zip(tallies, lengths, strict=True):
            tally.generated(1, length + 1)
            self.total.generated(1, length + 1)
        return logits

    def read(self, chunks: Sequence[Chunk], low: int, adapter: str | None = None) -> None:
        """Answer chunks on scratch rows from `low` on; puts values or an error into each."""
        # With an activated LoRA everything before the invocation is the plain model's.
        under = None if adapter is None or self.invocation(adapter) else adapter
        held, errors = self.hold([(c.context, c.tally) for c in chunks], low, under)
        for chunk in chunks:
            if chunk.context in errors:
                chunk.error = no_memory(errors[chunk.context], len(chunk.context) + len(chunk.ids))
        fine = sorted((c for c in chunks if not c.error), key=lambda c: len(c.ids))
        for batch in _batches(fine, [len(c.ids) for c in fine]):
            self._answer(batch, held, low, adapter)

    def _answer(
        self, chunks: list[Chunk], held: dict[Context, Pieces], low: int, adapter: str | None, piece: int = _PIECE // 4
    ) -> None:
        with self.timed("prefill"):
            why = attempt(lambda: self._extend(chunks, held, low, adapter, piece))
        if why is None:
            return
        self.relieve()
        if len(chunks) > 1:
            self._answer(chunks[: len(chunks) // 2], held, low, adapter, piece)
            self._answer(chunks[len(chunks) // 2 :], held, low, adapter, piece)
        elif piece > _SMALLEST:
            self._answer(chunks, held, low, adapter, piece // 2)
        else:
            chunks[0].error = no_memory(why, len(chunks[0].context) + len(chunks[0].ids))

    def _extend(
        self, chunks: list[Chunk], held: dict[Context, Pieces], low: int, adapter: str | None, piece: int
    ) -> None:
        activated = adapter is not None and bool(self.invocation(adapter))
        for i, chunk in enumerate(chunks):
            chunk.values = []
            self.enter(low + i, chunk.context, held[chunk.context], plain=adapter is None or activated)
        width = max(len(c.ids) for c in chunks)
        # What switches an adapter on has to go through the model in one piece.
        size = width if activated else piece
        for begin in range(0, width, size):
            news = [c.ids[begin : begin + size] for c in chunks]
            starts = [len(c.context) + min(begin, len(c.ids)) for c in chunks]
            asked = [[(i - begin, t) for i, t in c.asked if begin <= i < begin + size] for c in chunks]
            extra = {"alora_offsets": [max(map(len, news)) - c.switch for c in chunks]} if activated else {}
            logits = self._read_rows(low, news, starts, adapter, [sorted({i for i, _ in a}) for a in asked], extra)
            for chunk, start, new in zip(chunks, starts, news, strict=True):
                self._charge(chunk.tally, start, len(new))
            for chunk, values in zip(chunks, _told(logits, asked), strict=True):
                chunk.values += values

    def hold(
        self, wanted: Sequence[tuple[Context, Tally]], low: int, adapter: str | None = None
    ) -> tuple[dict[Context, Pieces], dict[Context, str]]:
        """Read contexts that are not stored yet, on scratch rows from `low` on, and store them.

        Args:
            wanted: contexts and who pays; equal contexts are read once, for the first who asks.
            low: the first scratch row.
            adapter: the adapter to read under.

        Returns:
            Keys and values of each context, and by context what went wrong.
        """
        payers: dict[Context, Tally] = {}
        for context, tally in wanted:
            if payers.setdefault(context, tally) is not tally:
                self._cached(tally, len(context))
        held: dict[Context, Pieces] = {}
        errors: dict[Context, str] = {}
        todo = sorted(payers)
        while todo:
            found = {c: self.store.match(c, adapter) for c in todo}
            known = {c: sum(n for _, n in found[c]) for c in todo}
            now, todo = _apart(todo, known)
            for context in now:
                self._cached(payers[context], known[context])
                held[context] = found[context]
            unread = sorted((c for c in now if known[c] < len(c)), key=lambda c: len(c) - known[c])
            for batch in _batches(unread, [len(c) - known[c] for c in unread]):
                self._prefill({c: payers[c] for c in batch}, held, errors, low, adapter)
        return held, errors

    def _prefill(
        self,
        batch: dict[Context, Tally],
        held: dict[Context, Pieces],
        errors: dict[Context, str],
        low: int,
        adapter: str | None,
        piece: int = _PIECE,
    ) -> None:
        with self.timed("prefill"):
            why = attempt(lambda: self._read_contexts(batch, held, low, adapter, piece))
        if why is None:
            return
        self.relieve()
        items = list(batch.items())
        if len(items) > 1:
            self._prefill(dict(items[: len(items) // 2]), held, errors, low, adapter, piece)
            self._prefill(dict(items[len(items) // 2 :]), held, errors, low, adapter, piece)
        elif piece > _SMALLEST:
            self._prefill(batch, held, errors, low, adapter, piece // 2)
        else:
            errors[items[0][0]] = why

    def _read_contexts(
        self, batch: dict[Context, Tally], held: dict[Context, Pieces], low: int, adapter: str | None, piece: int
    ) -> None:
        for i, context in enumerate(batch):
            self.enter(low + i, context, held[context], plain=adapter is None)
        done = [sum(n for _, n in held[c]) for c in batch]
        while any(k < len(c) for c, k in zip(batch, done, strict=True)):
            news = [list(c[k : k + piece]) for c, k in zip(batch, done, strict=True)]
            self._read_rows(low, news, done, adapter, [[] for _ in news])
            for tally, k, new in zip(batch.values(), done, news, strict=True):
                self._charge(tally, k, len(new))
            done = [k + len(new) for k, new in zip(done, news, strict=True)]
        for row, context in enumerate(batch, low):
            self.pool.kept[row] = () if adapter else context
            self.keep(row, context, adapter)
            held[context] = self.store.match(context, adapter)
            if sum(n for _, n in held[context]) < len(context):
                held[context] = [(self.pool.read(row, 0, len(context)), len(context))]

    def enter(self, row: int, context: Context, pieces: Pieces, plain: bool = True) -> None:
        """Make `row` hold `context` as far as `pieces` go."""
        self.pool.reserve(row + 1, len(context) + 1)
        if plain and context and self.pool.kept[row][: len(context)] == context:
            self.pool.kept[row] = context  # what comes next is written behind it
            return
        self.pool.kept[row] = ()
        known = self.pool.write(row, 0, pieces)
        if plain:
            self.pool.kept[row] = context[:known]

    def keep(self, row: int, context: Context, adapter: str | None = None) -> None:
        """Store what a row of the pool holds of `context`, if there is memory for it."""
        if attempt(lambda: self.store.insert(context, lambda a, b: self.pool.read(row, a, b), adapter)):
            self.relieve()

    def relieve(self) -> None:
        """After running out of memory: keep less."""
        self.store.shrink(self.store.bytes // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _read_rows(
        self,
        low: int,
        news: list[list[int]],
        starts: list[int],
        adapter: str | None,
        keep: list[list[int]],
        extra: dict[str, Any] | None = None,
    ) -> Tensor:
        """Read new tokens behind `starts` in the rows from `low` on; logits of the places in `keep`, row by row."""
        width = max(map(len, news))
        self.pool.reserve(low + len(news), max(starts) + width)
        self.use(adapter)
        ids = torch.tensor([[*new, *[0] * (width - len(new))] for new in news], device=self.device)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, places in enumerate(keep):
            mask[row, places] = True
        return self._forward(low, ids, starts, mask.to(self.device), extra)

    def _forward(
        self, low: int, ids: Tensor, starts: list[int], keep: Tensor | int, extra: dict[str, Any] | None = None
    ) -> Tensor:
        """One pass over rows low … low+rows-1 of the pool.

        Args:
            low: the first row.
            ids: [rows, tokens], padded on the right.
            starts: tokens already in each row.
            keep: [rows, tokens] the positions to give logits for, or how many of the last.
            extra: more arguments for the model.

        Returns:
            Logits [positions kept, vocabulary], float32.
        """
        places = torch.tensor(starts, device=self.device)[:, None] + torch.arange(ids.shape[1], device=self.device)
        columns = max(starts) + ids.shape[1]
        even = min(starts) == max(starts)
        # Where nothing but the causal mask is needed, attention is quicker without one.
        plain = even and (ids.shape[1] == 1 or starts[0] == 0)
        model = self.model if self.adapter or not hasattr(self.model, "peft_config") else self.model.get_base_model()
        out = model(
            input_ids=ids,
            attention_mask=None if plain else self._mask(places, columns),
            position_ids=places,
            past_key_values=self.pool.look(low, places, columns, starts[0] if even else None),
            use_cache=True,
            logits_to_keep=keep,
            **(extra or {}),
        )
        logits: Tensor = out.logits
        return logits.reshape(-1, logits.shape[-1]).float()

    def _mask(self, places: Tensor, columns: int) -> Tensor:
        """Additive mask [rows, 1, tokens, columns]."""
        hidden = torch.arange(columns, device=self.device) > places[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self.model.dtype, device=self.device)
        return mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)[:, None]

    def _charge(self, tally: Tally, before: int, tokens: int) -> None:
        tally.read(before, tokens)
        self.total.read(before, tokens)

    def _cached(self, tally: Tally, tokens: int) -> None:
        tally.cached += tokens
        self.total.cached += tokens

    def use(self, adapter: str | None) -> None:
        """Switch to an adapter, or to the plain model."""
        if adapter == self.adapter:
            return
        self.adapter = adapter
        if adapter is not None:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(adapter, inference_mode=True)
        elif hasattr(self.model, "peft_config"):
            self.model.base_model.disable_adapter_layers()

    def invocation(self, adapter: str) -> list[int] | None:
        """The tokens that switch an activated LoRA on, or None if the adapter is of another kind."""
        tokens: list[int] | None = getattr(self.model.peft_config[adapter], "alora_invocation_tokens", None)
        return tokens

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Add the seconds spent inside to `seconds`."""
        begin = perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[kind] += perf_counter() - begin


def _told(logits: Tensor, asked: list[list[tuple[int, int]]]) -> list[list[float]]:
    """Log-probabilities asked for in each row, from logits of the places asked about, row by row."""
    lines: list[int] = []
    first = 0
    for row in asked:
        order = {place: first + n for n, place in enumerate(sorted({i for i, _ in row}))}
        lines += [order[i] for i, _ in row]
        first += len(order)
    tokens = torch.tensor([t for row in asked for _, t in row], device=logits.device, dtype=torch.long)
    at = torch.tensor(lines, device=logits.device, dtype=torch.long)
    values = iter((logits[at, tokens] - logits.logsumexp(-1)[at]).tolist())
    return [[next(values) for _ in row] for row in asked]


def _batches(items: Sequence[Any], sizes: Sequence[int]) -> Iterator[list[Any]]:
    """Split items, sorted by size, into batches of similar sizes that fit one pass."""
    begin = 0
    for i in range(1, len(items) + 1):
        if i == len(items) or (
            (i + 1 - begin) * sizes[i] > _BATCH_TOKENS or i - begin == _BATCH_ROWS or sizes[i] > 2 * sizes[begin]
        ):
            yield list(items[begin:i])
            begin = i


def _apart(contexts: list[Context], known: dict[Context, int]) -> tuple[list[Context], list[Context]]:
    """Split sorted contexts into those to read now and those that first wait for one that they share tokens with."""
    now: list[Context] = []
    later: list[Context] = []
    for context in contexts:
        waits = now and known[context] < len(context) and common(now[-1], context) - known[context] >= _SHARED
        (later if waits else now).append(context)
    return now, later
