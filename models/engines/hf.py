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

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

import torch

from extratime.models.engines.decode import Chunk, Context, Runner, Tally
from extratime.models.engines.kv import Pool, PrefixStore
from extratime.models.engines.memory import spare_bytes
from extratime.models.engines.packed import Packed
from extratime.models.engines.rows import Batch, Row
from extratime.models.engines.sizes import NOTHING, context_length, end_tokens, refuse_unusual, shape_of, too_long
from extratime.models.engines.text import decoder, encoder
from extratime.models.load import Loaded
from extratime.models.request import Draw, Failure, Probe, Profile, Prompt, Read, Reply, Score, Work

Reads: TypeAlias = "tuple[Hashable, Score | Probe, Chunk]"
_READS = 64
"""Questions answered between two looks at the draws."""


class HFEngine:
    """Answers draws, scores and probes with a transformers model; see `extratime.models.request.Engine`.

    Args:
        loaded: model and tokenizer; further adapters by name, and a network of temperatures, where it has any.
        slots: draws decoded at a time.
        kv_bytes: bytes of keys and values, about half for rows being decoded, half for prefixes kept; by default a
            share of what the device has.
        device: where to run; where the model is, if None.

    Raises:
        ValueError: the model's layers keep another state than keys and values.
    """

    def __init__(
        self,
        loaded: Loaded,
        slots: int = 64,
        kv_bytes: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        model = (loaded.model if device is None else loaded.model.to(device)).eval()
        config = model.config.get_text_config(decoder=True)
        refuse_unusual(model, config)
        self._context, self._bound = context_length(config)
        shape = shape_of(model, config, loaded.tempnet)
        half = (kv_bytes or spare_bytes(model.device)) // 2
        self._packed = Packed(model)
        self._run = Runner(model, model.device, Pool(shape.layers), PrefixStore(half))
        token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * shape.dtype_bytes
        ends = end_tokens(model, loaded.tokenizer)
        self._batch = Batch(self._run, ends, self._context, slots, half // token_bytes, loaded.tempnet)
        self._tokenizer = loaded.tokenizer
        self._encode, self._decode = encoder(loaded.tokenizer), decoder(loaded.tokenizer)
        self._asked: dict[Hashable, Score | Probe] = {}
        self._replies: list[tuple[Hashable, Reply]] = []
        self.fingerprint: str = loaded.fingerprint
        self.adapters: Mapping[str, str] = loaded.adapters
        self.profile = Profile(max_context=self._context, concurrency=slots, shape=shape)
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
            self._draw(ticket, request)
            return
        if isinstance(request, Probe):
            self._check(request)
        self._asked[ticket] = request

    def cancel(self, ticket: Hashable) -> Reply | None:
        """Stop working on a ticket; returns what was read of it, or None if it was never started."""
        self._collect()
        for at, (name, reply) in enumerate(self._replies):
            if name == ticket:
                del self._replies[at]
                return reply
        if self._asked.pop(ticket, None) is not None:
            return None
        return self._batch.cancel(ticket)

    def poll(self) -> Sequence[tuple[Hashable, Reply]]:
        """Work until there is a reply. Empty only if nothing is submitted."""
        self._collect()
        try:
            with torch.inference_mode(), self._packed.used():
                while not self._replies and (self._asked or self._batch.busy):
                    self._answer()
                    self._batch.advance()
                    self._collect()
        finally:
            self.counts = self._run.total.work()
        replies, self._replies = self._replies, []
        return replies

    def close(self) -> None:
        """Free buffers and prefixes; what was submitted is forgotten."""
        self._batch.clear()
        self._asked.clear()
        self._replies.clear()
        self._packed.free()
        self._run.pool.free()
        self._run.store.clear()

    def _collect(self) -> None:
        self._replies += self._batch.replies
        self._batch.replies.clear()

    def _draw(self, ticket: Hashable, draw: Draw) -> None:
        prompt = self._ids(draw.prompt)
        have = draw.have or self._tokens(draw.have_text)
        if not prompt and not have:
            self._replies.append((ticket, Failure(NOTHING)))
        elif len(prompt) >= self._context:
            self._replies.append((ticket, Failure(self._too_long(len(prompt)))))
        else:
            self._batch.add(Row.of(ticket, draw, prompt, have, self._decode))

    def _answer(self) -> None:
        """Answer what was asked, in batches of one adapter each."""
        groups: dict[str | None, list[Reads]] = {}
        for ticket in list(self._asked)[:_READS]:
            request = self._asked.pop(ticket)
            chunk = self._probe(request) if isinstance(request, Probe) else self._score(request)
            adapter = request.adapter if isinstance(request, Probe) else None
            groups.setdefault(adapter, []).append((ticket, request, chunk))
        for adapter, reads in groups.items():
            self._run.read([c for _, _, c in reads if c.ids and not c.error], len(self._batch), adapter)
            self._replies += [(ticket, _reply(request, chunk)) for ticket, request, chunk in reads]

    def _score(self, request: Score) -> Chunk:
        prompt, said = self._ids(request.prompt), self._tokens(request.continuation)
        if not said:
            return Chunk((), [], [], Tally())
        chunk = Chunk(prompt[:-1], [*prompt[-1:], *said[:-1]], list(enumerate(said)), Tally())
        if len(prompt) + len(said) > self._context:
            chunk.error = self._too_long(len(prompt) + len(said))
        elif not prompt:
            chunk.error = "a continuation of an empty prompt has no first log-probability; give a prompt"
        return chunk

    def _probe(self, request: Probe) -> Chunk:
        completion, question = request.completion, self._tokens(request.question)
        path = self._ids(completion.prompt) + (completion.tokens or self._tokens(completion.text))
        # The last token drawn did not go through the model, unless the path was read on.
        read = len(path) if question and self._stored(path, request.adapter) else max(0, len(path) - 1)
        ids = [*path[read:], *question]
        invocation = self._run.invocation(request.adapter) if request.adapter else None
        switch = len(path) - read + last_place(question, tuple(invocation)) if invocation else 0
        asked = [(len(ids) - 1, self._tokens(target)[0]) for target in request.targets]
        chunk = Chunk(path[:read], ids, asked, Tally(), switch)
        if len(path) + len(question) > self._context:
            chunk.error = self._too_long(len(path) + len(question))
        elif not ids:
            chunk.error = "a probe of nothing with no question; give a prompt, a response or a question"
        return chunk

    def _stored(self, path: Context, adapter: str | None) -> bool:
        under = adapter if adapter and not self._run.invocation(adapter) else None
        return sum(n for _, n in self._run.store.match(path, under)) == len(path)

    def _check(self, request: Probe) -> None:
        for target in request.targets:
            if len(self._tokens(target)) != 1:
                raise ValueError(f"{target!r} is {len(self._tokens(target))} tokens; a probe's target must be one")
        if request.adapter is None:
            return
        if request.adapter not in self.adapters:
            have = ", ".join(self.adapters) or "none"
            raise ValueError(f"no adapter {request.adapter!r} is loaded; there are: {have}")
        invocation = self._run.invocation(request.adapter)
        if invocation and last_place(self._tokens(request.question), tuple(invocation)) < 0:
            raise ValueError(f"question {request.question!r} does not contain what switches {request.adapter!r} on")

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        ids = prompt.ids if prompt.ids is not None else self.encode(prompt.text).ids
        assert ids is not None
        return ids

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids) if text else ()

    def _too_long(self, tokens: int) -> str:
        return too_long(tokens, self._context, self._bound)


def _reply(request: Score | Probe, chunk: Chunk) -> Reply:
    if chunk.error:
        return Failure(chunk.error, chunk.tally.work())
    probe = isinstance(request, Probe)
    return Read(tuple(math.exp(v) if probe else v for v in chunk.values), chunk.tally.work())


def last_place(ids: Context, part: Context) -> int:
    """Index of the last occurrence of `part` in `ids`, or -1."""
    places = (i for i in range(len(ids) - len(part), -1, -1) if ids[i : i + len(part)] == part)
    return next(places, -1)
