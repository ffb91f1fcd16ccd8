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
from extratime.models.request import Work

_BATCH_TOKENS = 2048
_BATCH_ROWS = 16
_PIECE = 1024
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

    def read(self, before: int, tokens: int) -> None:
        """Count `tokens` that were read in one pass after `before` others."""
        self.prefill += tokens
        self.pairs += tokens * before + tokens * (tokens + 1) // 2

    def generated(self, tokens: int, contexts: int) -> None:
        """Count `tokens` generated from contexts of `contexts` tokens in all."""
        self.decode += tokens
        self.pairs += contexts
        self.decode_pairs += contexts

    def work(self) -> Work:
        """The work so far."""
        return Work(self.prefill, self.decode, self.cached, self.pairs, self.decode_pairs)


@dataclass(slots=True)
class Chunk:
    """Tokens to read after a context.

    Attributes:
        context: all tokens before them.
        ids: the tokens.
        tally: who pays.
        tail: how many of the last positions to give logits for.
        switch: index in `ids` from which an activated LoRA is on.
        logits: the answer, [tail, vocabulary].
        error: why there is none.
    """

    context: Context
    ids: list[int]
    tally: Tally
    tail: int = 1
    switch: int = 0
    logits: Tensor | None = None
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

    def step(self, tokens: list[int], lengths: list[int]) -> Tensor:
        """Read one token in each of the first rows, which hold `lengths` tokens; returns logits [rows, vocabulary]."""
        self.use(None)
        ids = torch.tensor(tokens, device=self.device)[:, None]
        starts = torch.tensor(lengths, device=self.device)
        logits = self._forward(0, ids, starts, max(lengths) + 1, torch.ones_like(ids, dtype=torch.bool))
        self.total.generated(len(tokens), sum(lengths) + len(lengths))
        return logits

    def read(self, chunks: Sequence[Chunk], low: int, adapter: str | None = None) -> None:
        """Answer chunks on scratch rows from `low` on; puts logits or an error into each."""
        # With an activated LoRA everything before the invocation is the plain model's.
        under = None if adapter is None or self.invocation(adapter) else adapter
        held, errors = self.hold([(c.context, c.tally) for c in chunks], low, under)
        for chunk in chunks:
            chunk.error = errors.get(chunk.context, "")
        fine = sorted((c for c in chunks if not c.error), key=lambda c: len(c.ids))
        for batch in _batches(fine, [len(c.ids) for c in fine]):
            self._answer(batch, held, low, adapter)

    def _answer(self, chunks: list[Chunk], held: dict[Context, Pieces], low: int, adapter: str | None) -> None:
        try:
            with self.timed("prefill"):
                self._extend(chunks, held, low, adapter)
        except Exception as error:
            if not out_of_memory(error):
                raise
            if len(chunks) == 1:
                chunks[0].error = no_memory(error, len(chunks[0].context) + len(chunks[0].ids))
                return
            self._answer(chunks[: len(chunks) // 2], held, low, adapter)
            self._answer(chunks[len(chunks) // 2 :], held, low, adapter)

    def _extend(self, chunks: list[Chunk], held: dict[Context, Pieces], low: int, adapter: str | None) -> None:
        for i, chunk in enumerate(chunks):
            self.enter(low + i, chunk.context, held[chunk.context], plain=adapter is None or bool(self._extra(adapter)))
        starts = [len(c.context) for c in chunks]
        ids, keep = self._pad([c.ids for c in chunks], [c.tail for c in chunks])
        extra = self._extra(adapter, [ids.shape[1] - c.switch for c in chunks])
        logits = self._read_rows(low, ids, starts, keep, adapter, extra)
        for chunk, part in zip(chunks, logits.split([c.tail for c in chunks]), strict=True):
            self._charge(chunk.tally, len(chunk.context), len(chunk.ids))
            chunk.logits = part

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
        try:
            with self.timed("prefill"):
                self._read_contexts(batch, held, low, adapter, piece)
        except Exception as error:
            if not out_of_memory(error):
                raise
            items = list(batch.items())
            if len(items) > 1:
                self._prefill(dict(items[: len(items) // 2]), held, errors, low, adapter, piece)
                self._prefill(dict(items[len(items) // 2 :]), held, errors, low, adapter, piece)
            elif piece > 32:
                self._prefill(batch, held, errors, low, adapter, piece // 2)
            else:
                errors[items[0][0]] = no_memory(error, len(items[0][0]))

    def _read_contexts(
        self, batch: dict[Context, Tally], held: dict[Context, Pieces], low: int, adapter: str | None, piece: int
    ) -> None:
        for i, context in enumerate(batch):
            self.enter(low + i, context, held[context], plain=adapter is None)
        done = [sum(n for _, n in held[c]) for c in batch]
        while any(k < len(c) for c, k in zip(batch, done, strict=True)):
            news = [list(c[k : k + piece]) for c, k in zip(batch, done, strict=True)]
            ids, keep = self._pad(news, [0] * len(news))
            self._read_rows(low, ids, done, keep, adapter)
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
        """Store what a row of the pool holds of `context`."""
        self.store.insert(context, lambda begin, end: self.pool.read(row, begin, end), adapter)

    def _read_rows(
        self,
        low: int,
        ids: Tensor,
        starts: list[int],
        keep: Tensor,
        adapter: str | None,
        extra: dict[str, Any] | None = None,
    ) -> Tensor:
        columns = max(starts) + ids.shape[1]
        self.pool.reserve(low + len(ids), columns)
        self.use(adapter)
        return self._forward(low, ids, torch.tensor(starts, device=self.device), columns, keep, extra)

    def _forward(
        self, low: int, ids: Tensor, starts: Tensor, columns: int, keep: Tensor, extra: dict[str, Any] | None = None
    ) -> Tensor:
        """One pass over rows low … low+rows-1 of the pool.

        Args:
            low: the first row.
            ids: [rows, tokens], padded on the right.
            starts: [rows] tokens already in each row.
            columns: columns that attention has to see.
            keep: [rows, tokens] the positions to give logits for.
            extra: more arguments for the model.

        Returns:
            Logits [positions kept, vocabulary], float32.
        """
        places = starts[:, None] + torch.arange(ids.shape[1], device=self.device)
        fresh = columns == ids.shape[1]
        model = self.model if self.adapter or not hasattr(self.model, "peft_config") else self.model.get_base_model()
        out = model(
            input_ids=ids,
            # Without anything before them, rows padded on the right need no mask but the causal one.
            attention_mask=None if fresh else self._mask(places, columns),
            position_ids=places,
            past_key_values=self.pool.look(low, places, columns, 0 if fresh else None),
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

    def _pad(self, news: list[list[int]], tails: list[int]) -> tuple[Tensor, Tensor]:
        width = max(map(len, news))
        ids = [[*new, *[0] * (width - len(new))] for new in news]
        keep = [[len(n) - t <= i < len(n) for i in range(width)] for n, t in zip(news, tails, strict=True)]
        return torch.tensor(ids, device=self.device), torch.tensor(keep, device=self.device)

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

    def _extra(self, adapter: str | None, offsets: Sequence[int] = ()) -> dict[str, Any]:
        return {"alora_offsets": list(offsets)} if adapter is not None and self.invocation(adapter) else {}

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


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error) for s in ("DefaultCPUAllocator", "out of memory"))


def no_memory(error: Exception, tokens: int) -> str:
    """What to tell who asked for a row that does not fit alone."""
    first = str(error).strip().splitlines() or [type(error).__name__]
    return f"out of memory with a single row of {tokens} tokens; use a smaller model, dtype or context ({first[0]})"


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
