"""The `hf` engine: a decode loop of our own on a transformers model, on CPU or GPU.

Rows enter and leave a running batch at any step (continuous batching); a prompt is read once for all its draws; what
was read is kept in a prefix store of bounded size, so that continuing a path or asking a question about it reads new
tokens only. A draw's randomness is `uniforms(seed, position)`, so it does not depend on its batch mates, nor on how
often it was interrupted, beyond floating-point noise.

Counting: the last token of a prompt goes through the model together with the tokens that are generated, once per draw.
So `Work.decode` is the number of drawn tokens, end token included, and `prefill` + `cached` is what precedes them less
one. Models whose layers are not plain attention (linear attention, state spaces, chunks) are refused, because their
state cannot be rolled back or shared; with a sliding window the context ends where the window is full, up to which it
changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from extratime.models.engines.decode import Chunk, Runner, Tally, no_memory, out_of_memory
from extratime.models.engines.kv import Pool, PrefixStore
from extratime.models.engines.law import Laws, pick
from extratime.models.engines.text import Text, decoder, encoder
from extratime.models.load import Loaded
from extratime.models.request import (
    Draw,
    Drawn,
    Failure,
    Probe,
    Profile,
    Prompt,
    Read,
    Reply,
    Score,
    Shape,
    Work,
    uniforms,
)

Reads: TypeAlias = "tuple[Hashable, Chunk, list[int]]"


@dataclass(slots=True, eq=False)
class _Row:
    """A draw in progress.

    Attributes:
        ids: prompt and path; all but the last have their keys and values in the pool.
        have: how many of `ids` were given.
        given: how many of those belong to the path.
        base: length of the text of the path's given tokens.
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

    @property
    def context(self) -> tuple[int, ...]:
        return tuple(self.ids[:-1])

    @property
    def position(self) -> int:
        """Index in the path of the token drawn next."""
        return self.given + len(self.ids) - self.have

    def drawn(self, eos: bool = False) -> Drawn:
        """What was read so far."""
        return Drawn(
            text=self.text.value[self.base :],
            ends=tuple(self.ends),
            tokens=tuple(self.ids[self.have :]),
            logprobs=tuple(self.raw),
            tempered=tuple(self.tempered),
            eos=eos,
            work=self.tally.work(),
        )


class HFEngine:
    """Answers draws, scores and probes with a transformers model; see `extratime.models.request.Engine`.

    Args:
        loaded: model and tokenizer; further adapters by name where it has any.
        slots: draws decoded at a time.
        kv_bytes: bytes of keys and values, half for rows being decoded, half for prefixes kept.
        device: where to run; where the model is, if None.
    """

    def __init__(
        self, loaded: Loaded, slots: int = 64, kv_bytes: int = 2 << 30, device: str | torch.device | None = None
    ) -> None:
        model = loaded.model if device is None else loaded.model.to(device)
        self._config = model.config.get_text_config(decoder=True)
        refuse_unusual(self._config)
        self._run = Runner(
            model.eval(), model.device, Pool(self._config.num_hidden_layers), PrefixStore(kv_bytes // 2)
        )
        self._tokenizer = loaded.tokenizer
        self._encode = encoder(loaded.tokenizer)
        self._decode = decoder(loaded.tokenizer)
        self._eos = end_tokens(model, loaded.tokenizer)
        self._context = context_length(self._config)
        self._limit = slots
        self._pool_bytes = kv_bytes // 2
        self._rows: list[_Row | None] = []
        self._waiting: deque[_Row] = deque()
        self._asked: dict[Hashable, Score | Probe] = {}
        self._replies: list[tuple[Hashable, Reply]] = []
        self._laws: tuple[list[_Row], Laws] | None = None
        self.fingerprint: str = loaded.fingerprint
        self.adapters: Mapping[str, str] = loaded.adapters
        self.profile = Profile(max_context=self._context, concurrency=slots, shape=shape_of(model, self._config))
        self.counts = Work()
        self.seconds = self._run.seconds

    def encode(self, text: str) -> Prompt:
        """`text` as token ids, after the tokenizer's own leading token."""
        return self._encode(text)

    def submit(self, ticket: Hashable, request: Draw | Score | Probe) -> None:
        """Take on a request.

        Raises:
            ValueError: a probe's target is not a single token, or its adapter is not loaded.
        """
        if isinstance(request, Draw):
            self._enqueue(ticket, request)
            return
        if isinstance(request, Probe):
            self._check(request)
        self._asked[ticket] = request

    def cancel(self, ticket: Hashable) -> Reply | None:
        """Stop working on a ticket; returns what was read of it, or None if it was never started."""
        self._asked.pop(ticket, None)
        for at, row in enumerate(self._rows):
            if row is not None and row.ticket == ticket:
                self._leave(at)
                return row.drawn()
        for row in self._waiting:
            if row.ticket == ticket:
                self._waiting.remove(row)
                return row.drawn() if row.started else None
        return None

    def poll(self) -> Sequence[tuple[Hashable, Reply]]:
        """Work until there is a reply. Empty only if nothing is submitted."""
        with torch.inference_mode():
            while not self._replies and (self._asked or self._waiting or self._rows):
                self._answer()
                self._admit()
                self._step()
        self.counts = self._run.total.work()
        replies, self._replies = self._replies, []
        return replies

    def close(self) -> None:
        """Free buffers and prefixes."""
        self._rows.clear()
        self._waiting.clear()
        self._asked.clear()
        self._run.pool.free()
        self._run.store.clear()

    # Draws

    def _enqueue(self, ticket: Hashable, draw: Draw) -> None:
        prompt = self._ids(draw.prompt)
        have = draw.have or self._tokens(draw.have_text)
        if not prompt and not have:
            self._replies.append((ticket, Failure("the prompt has no tokens, and nothing comes after nothing")))
            return
        if len(prompt) >= self._context:
            self._replies.append((ticket, Failure(self._too_long(len(prompt)))))
            return
        text = Text(self._decode)
        for token in have:
            text.push(token)
        row = _Row(ticket, draw, [*prompt, *have], len(prompt) + len(have), len(have), text, len(text.value))
        if len(have) >= draw.max_tokens or len(row.ids) >= self._context:
            self._replies.append((ticket, row.drawn()))
        else:
            self._waiting.append(row)

    def _admit(self) -> None:
        """Let waiting draws take the free rows, and close the gaps that remain."""
        rows = self._rows
        free = self._room() - sum(row is not None for row in rows)
        come = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        if come:
            for row in come:
                row.started = True
            held, errors = self._run.hold([(row.context, row.tally) for row in come], len(rows))
            for row in come:
                if row.context in errors:
                    self._replies.append((row.ticket, Failure(errors[row.context], row.tally.work())))
                else:
                    with self._run.timed("prefill"):
                        self._run.enter(self._place(row), row.context, held[row.context])
        self._close_gaps()

    def _place(self, row: _Row) -> int:
        """Give a draw a free row, if possible one that still holds its context."""
        context, kept, rows = row.context, self._run.pool.kept, self._rows
        gaps = [i for i, taken in enumerate(rows) if taken is None]
        best = next((i for i in [*gaps, len(rows)] if i < len(kept) and kept[i][: len(context)] == context), None)
        at = best if best is not None else gaps[0] if gaps else len(rows)
        if at == len(rows):
            rows.append(row)
        else:
            rows[at] = row
        self._laws = None
        return at

    def _room(self) -> int:
        """How many rows there may be now."""
        live = [len(row.ids) for row in self._rows if row is not None]
        longest = max([*live, *(len(row.ids) for row in list(self._waiting)[: self._limit])], default=1)
        columns = max(longest + 64, self._run.pool.columns if live else 0)
        return max(1, min(self._limit, self._pool_bytes // (columns * self._token_bytes)))

    @property
    def _token_bytes(self) -> int:
        shape = self.profile.shape
        assert shape is not None
        return 2 * shape.layers * shape.kv_heads * shape.head_dim * shape.dtype_bytes

    def _close_gaps(self) -> None:
        rows = self._rows
        while None in rows:
            if (last := rows.pop()) is not None:
                at = rows.index(None)
                self._run.pool.move(len(rows), at, len(last.ids) - 1)
                rows[at] = last

    def _step(self) -> None:
        """Draw one token in every row."""
        rows = [row for row in self._rows if row is not None]
        if not rows:
            return
        try:
            with self._run.timed("decode"):
                drawn = self._draw(rows)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._retreat(error)
            return
        for at, (row, token, raw, tempered) in enumerate(zip(rows, *drawn, strict=True)):
            row.raw.append(raw)
            row.tempered.append(tempered)
            if self._takes(row, int(token)):
                self._leave(at)
                self._replies.append((row.ticket, row.drawn(eos=int(token) in self._eos)))

    def _draw(self, rows: list[_Row]) -> list[list[float]]:
        lengths = [len(row.ids) - 1 for row in rows]
        self._run.pool.reserve(len(rows), max(lengths) + 1)
        uniform = [uniforms(row.draw.seed, row.position, 1)[0] for row in rows]
        if self._laws is None or self._laws[0] != rows:
            self._laws = (rows, Laws.of([row.draw.sampling for row in rows], self._run.device))
        logits = self._run.step([row.ids[-1] for row in rows], lengths)
        for row, length in zip(rows, lengths, strict=True):
            row.tally.generated(1, length + 1)
        picked = pick(logits, self._laws[1], torch.tensor(uniform, device=self._run.device, dtype=torch.float64))
        columns: list[list[float]] = torch.stack([column.double() for column in picked]).tolist()
        return columns

    def _takes(self, row: _Row, token: int) -> bool:
        """Add a drawn token to a row; returns whether the row ends there."""
        if token in self._eos:
            row.ends.append(len(row.text.value) - row.base)
            return True
        old = len(row.text.value)
        row.ids.append(token)
        row.text.push(token)
        row.ends.append(len(row.text.value) - row.base)
        return (
            row.position >= row.draw.max_tokens
            or len(row.ids) >= self._context
            or row.text.ends_with_new(row.draw.until + row.draw.pause, old)
        )

    def _leave(self, at: int) -> None:
        """Free a row; what it holds stays available."""
        row = self._rows[at]
        assert row is not None
        held = tuple(row.ids[: len(row.ids) - 1])
        self._run.pool.kept[at] = held
        self._run.keep(at, held)
        self._rows[at] = None
        self._laws = None

    def _retreat(self, error: Exception) -> None:
        """After running out of memory: go on with half the rows, the others wait."""
        if len(self._rows) == 1:
            row = self._rows.pop()
            assert row is not None
            self._replies.append((row.ticket, Failure(no_memory(error, len(row.ids)), row.tally.work())))
            return
        self._limit = len(self._rows) // 2
        for row in reversed(self._rows[self._limit :]):
            assert row is not None
            self._waiting.appendleft(row)
        del self._rows[self._limit :]

    # Scores and probes

    def _answer(self) -> None:
        """Answer everything asked, in batches of one adapter each."""
        asked, self._asked = self._asked, {}
        groups: dict[str | None, list[Reads]] = {}
        for ticket, request in asked.items():
            adapter = request.adapter if isinstance(request, Probe) else None
            read = self._probe(request) if isinstance(request, Probe) else self._score(request)
            if isinstance(read, str):
                self._replies.append((ticket, Failure(read)))
            else:
                groups.setdefault(adapter, []).append((ticket, *read))
        for adapter, reads in groups.items():
            for begin in range(0, len(reads), 64):
                self._read(reads[begin : begin + 64], adapter)

    def _read(self, reads: list[Reads], adapter: str | None) -> None:
        self._run.read([chunk for _, chunk, _ in reads if chunk.ids], len(self._rows), adapter)
        for ticket, chunk, targets in reads:
            work = chunk.tally.work()
            if chunk.error:
                self._replies.append((ticket, Failure(chunk.error, work)))
            else:
                self._replies.append((ticket, Read(values_of(chunk, targets), work)))

    def _score(self, request: Score) -> tuple[Chunk, list[int]] | str:
        prompt, said = self._ids(request.prompt), list(self._tokens(request.continuation))
        if len(prompt) + len(said) > self._context:
            return self._too_long(len(prompt) + len(said))
        if not prompt:
            return "a continuation of an empty prompt has no first log-probability; give a prompt"
        if not said:
            return Chunk((), [], Tally()), []
        return Chunk(prompt[:-1], [prompt[-1], *said[:-1]], Tally(), tail=len(said)), said

    def _probe(self, request: Probe) -> tuple[Chunk, list[int]] | str:
        completion = request.completion
        path = self._ids(completion.prompt) + (completion.tokens or self._tokens(completion.text))
        question = list(self._tokens(request.question))
        if len(path) + len(question) > self._context:
            return self._too_long(len(path) + len(question))
        invocation = self._run.invocation(request.adapter) if request.adapter else None
        switch = 1 + last_place(question, invocation) if invocation else 0
        targets = [self._tokens(target)[0] for target in request.targets]
        return Chunk(path[:-1], [*path[-1:], *question], Tally(), switch=switch), [-1, *targets]

    def _check(self, request: Probe) -> None:
        for target in request.targets:
            if len(self._tokens(target)) != 1:
                raise ValueError(f"{target!r} is {len(self._tokens(target))} tokens; a probe's target must be one")
        if request.adapter is None:
            return
        if request.adapter not in self.adapters:
            raise ValueError(
                f"no adapter {request.adapter!r} is loaded; there are {', '.join(self.adapters) or 'none'}"
            )
        invocation = self._run.invocation(request.adapter)
        if invocation and last_place(list(self._tokens(request.question)), invocation) < 0:
            raise ValueError(
                f"the question {request.question!r} does not contain what switches {request.adapter!r} on"
            )

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        ids = prompt.ids if prompt.ids is not None else self.encode(prompt.text).ids
        assert ids is not None
        return ids

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids) if text else ()

    def _too_long(self, tokens: int) -> str:
        return f"prompt too long: {tokens} tokens, the model's context is {self._context}; shorten the prompt"


def values_of(chunk: Chunk, targets: list[int]) -> tuple[float, ...]:
    """A probe's probabilities (its targets are marked by a leading -1), or a score's log-probabilities."""
    if chunk.logits is None:
        return ()
    said = chunk.logits.log_softmax(-1)
    if targets[0] == -1:
        return tuple(said[-1, targets[1:]].exp().tolist())
    return tuple(said.gather(1, torch.tensor(targets, device=said.device)[:, None])[:, 0].tolist())


def last_place(ids: list[int], part: list[int]) -> int:
    """Index of the last occurrence of `part` in `ids`, or -1."""
    places = (i for i in range(len(ids) - len(part), -1, -1) if ids[i : i + len(part)] == part)
    return next(places, -1)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a response: those of the generation config, and the tokenizer's own."""
    told = model.generation_config.eos_token_id
    listed = told if isinstance(told, list) else [told]
    return frozenset(i for i in (*listed, tokenizer.eos_token_id) if i is not None)


def context_length(config: Any) -> int:
    """Tokens up to which the model sees everything before a token."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    return min(x for x in (config.max_position_embeddings, window) if x)


def refuse_unusual(config: Any) -> None:
    """Refuse layers whose state is not one key and one value a token.

    Raises:
        ValueError: the model has such layers.
    """
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds or not getattr(config, "num_attention_heads", None):
        named = ", ".join(sorted(kinds)) or "no attention heads"
        raise ValueError(
            f"the hf engine needs plain attention layers, {config.model_type} has {named}: "
            "serve it with vLLM and use the openai or vllm engine"
        )


def shape_of(model: Any, config: Any) -> Shape:
    """Sizes of a model for the ledger; adapters and a separate input embedding are left out."""
    counted = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    heads = config.num_attention_heads
    return Shape(
        parameters=counted - (0 if tied else model.get_input_embeddings().weight.numel()),
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype_bytes=model.dtype.itemsize,
    )
