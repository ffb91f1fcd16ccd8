"""The `early_exit` engine: decodes one draw at a time, layer by layer, and lets tokens leave early (arXiv 2401.09964).

The prompt, its last token included, goes through all layers, so that the first token is the model's own. Every later
token asks the controller (`extratime.models.early_exit`) after each of its exits. A token that leaves is drawn from
that exit's logits under the request's law, so greedy is the published case; for the layers it leaves out, keys and
values are made from the state it left with. A stop ends the path for good: no end token is written, and the response
counts as one that never finished.

A path hangs on its prompt and its own tokens alone. What is read on is brought up token by token with the same
decisions, or stands in the cache already, so that a path read in parts is bit by bit the path read at once. The cache
holds the last prompt with its last path; draws of one prompt share it. Scores and questions are refused: they would
have to say whose states they read.

Counting: as in the `hf` engine, and `Work.skipped` counts the layers left out. Bringing a path up again is prefill, as
is the pass that ends in a stop.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from extratime.models.early_exit import EXIT, STOP, EarlyExit, decide, refuse_unfit
from extratime.models.engines.decode import Tally
from extratime.models.engines.kv import common
from extratime.models.engines.law import Laws, pick
from extratime.models.engines.memory import attempt, no_memory
from extratime.models.engines.packed import Packed
from extratime.models.engines.rows import Row
from extratime.models.engines.sizes import NOTHING, context_length, end_tokens, refuse_unusual, shape_of, too_long
from extratime.models.engines.text import decoder, encoder
from extratime.models.load import Loaded
from extratime.models.paths import uniforms
from extratime.models.request import Draw, Failure, Probe, Profile, Prompt, Reply, Score, Work

_PIECE = 1024
"""Tokens of a prompt that go through the model at once."""


class EarlyExitEngine:
    """Answers draws with a model and its controller; see `extratime.models.request.Engine`.

    Args:
        loaded: model, tokenizer and controller.
        slots: draws decoded at a time; a batch is as deep as its deepest row, so there is one.

    Raises:
        ValueError: the model's layers cannot be taken apart, the controller's exits are not its own, something else
            stands beside it, or there is to be more than one slot.
    """

    def __init__(self, loaded: Loaded, slots: int = 1) -> None:
        self._model = loaded.model.eval()
        self._controller, self._said = loaded.controller, loaded.controller.said
        if loaded.adapters or loaded.tempnet or slots != 1:
            raise ValueError("early exit runs plain models, one draw at a time: merge adapters, leave out slots")
        config = self._model.config.get_text_config(decoder=True)
        refuse_unusual(self._model, config)
        refuse_unfit(self._model, self._said.exits)
        self._context, self._bound = context_length(config)
        self._ends = end_tokens(self._model, loaded.tokenizer)
        self._encode, self._decode = encoder(loaded.tokenizer), decoder(loaded.tokenizer)
        self._packed = Packed(self._model)
        self._prompt: tuple[int, ...] = ()
        self._read: list[int] = []
        self._cache = DynamicCache()
        self._rows: dict[Hashable, Row] = {}
        self._replies: dict[Hashable, Reply] = {}
        self._total = Tally()
        self.fingerprint: str = loaded.fingerprint
        self.adapters: Mapping[str, str] = {}
        shape = shape_of(self._model, config, self._controller)
        shape = replace(shape, skippable=skippable(self._model.model.layers[0]))
        self.profile = Profile(scores=False, probes=False, max_context=self._context, concurrency=1, shape=shape)
        self.counts = Work()
        self.seconds = {"prefill": 0.0, "decode": 0.0}

    def encode(self, text: str) -> Prompt:
        """`text` as token ids, after the tokenizer's own leading token."""
        return self._encode(text)

    def submit(self, ticket: Hashable, request: Draw | Score | Probe) -> None:
        """Take on a draw.

        Raises:
            ValueError: it is no draw.
        """
        if not isinstance(request, Draw):
            raise ValueError(f"the early_exit engine only draws; it cannot answer a {type(request).__name__}")
        prompt = request.prompt.ids if request.prompt.ids is not None else self.encode(request.prompt.text).ids or ()
        row = Row.of(ticket, request, prompt, request.have, self._decode)
        if not prompt:
            self._replies[ticket] = Failure(NOTHING)
        elif len(prompt) >= self._context:
            self._replies[ticket] = Failure(too_long(len(prompt), self._context, self._bound))
        elif row.position >= request.max_tokens or len(row.ids) >= self._context:
            self._replies[ticket] = row.drawn()
        else:
            self._rows[ticket] = row

    def cancel(self, ticket: Hashable) -> Reply | None:
        """Stop working on a ticket; returns what was read of it, or None if it was never started."""
        if ticket in self._replies:
            return self._replies.pop(ticket)
        row = self._rows.pop(ticket, None)
        return row.drawn() if row and row.started else None

    def poll(self) -> Sequence[tuple[Hashable, Reply]]:
        """Work until there is a reply. Empty only if nothing is submitted."""
        try:
            with torch.inference_mode(), self._packed.used():
                while not self._replies and self._rows:
                    self._advance(next(iter(self._rows.values())))
        finally:
            self.counts = self._total.work()
        replies, self._replies = self._replies, {}
        return list(replies.items())

    def close(self) -> None:
        """Free what is held; what was submitted is forgotten."""
        self._rows.clear()
        self._replies.clear()
        self._packed.free()
        self._forget()

    def _forget(self) -> None:
        self._prompt, self._read, self._cache = (), [], DynamicCache()

    def _advance(self, row: Row) -> None:
        """Draw one token of a row, or find that it is to stop."""
        done: list[bool] = []
        why = attempt(lambda: done.append(self._draw(row)))
        if why is not None:
            self._forget()
            self._replies[row.ticket] = Failure(no_memory(why, len(row.ids)), row.tally.work())
        elif done[0] or len(row.ids) >= self._context:
            self._replies[row.ticket] = row.drawn()
        if row.ticket in self._replies:
            del self._rows[row.ticket]

    def _draw(self, row: Row) -> bool:
        """One forward pass; returns whether the row is done."""
        began = self._clock()
        self._bring_up(row)
        begun = self._clock()
        self.seconds["prefill"] += begun - began
        logits, left_out = self._pass(row.ids[-1], self._said if row.position else None)
        row.skipped.append(left_out)
        self._charge(row, len(row.ids) - 1, 1, left_out, drawn=logits is not None)
        stays = logits is not None and not row.take(*self._pick(logits, row), self._ends)
        self.seconds["decode"] += self._clock() - begun
        return not stays

    def _pick(self, logits: Tensor, row: Row) -> tuple[int, float, float]:
        """A token, its log-probability at its exit, and under the law."""
        uniform = torch.tensor(uniforms(row.draw.seed, row.position, 1), dtype=torch.float64, device=logits.device)
        token, raw, tempered = pick(logits, Laws.of([row.draw.sampling], logits.device), uniform)
        return int(token), float(raw), float(tempered)

    def _bring_up(self, row: Row) -> None:
        """Have the cache hold everything but the token that goes through the model next."""
        prompt, context = tuple(row.ids[: row.have - row.given]), row.context
        if self._prompt != prompt:
            self._forget()
            self._prompt = prompt
        known = common(self._read, context)
        self._roll_back(known)
        if not row.started:
            row.tally.cached += known
            self._total.cached += known
        row.started = True
        for begin in range(known, len(prompt) - 1, _PIECE):
            piece = prompt[begin : min(begin + _PIECE, len(prompt) - 1)]
            self._model(self._ids(piece), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._read += piece
            self._charge(row, begin, len(piece))
        going_on = replace(self._said, stop=None)  # nothing was stopped where the path went on
        for at in range(len(self._read), len(context)):
            _, left_out = self._pass(context[at], going_on if at >= len(prompt) else None)
            self._charge(row, at, 1, left_out)

    def _pass(self, token: int, said: EarlyExit | None) -> tuple[Tensor | None, int]:
        """Send one token through the layers, all of them where `said` is None.

        Returns:
            Logits [1, vocabulary], float32, or None for a stop; and how many layers were left out.
        """
        core, cache = self._model.model, self._cache
        places = self._ids([len(self._read)])
        hidden = core.embed_tokens(self._ids([token]))
        rotary = core.rotary_emb(hidden, position_ids=places)
        for number, layer in enumerate(core.layers, 1):
            hidden = layer(
                hidden, position_ids=places, past_key_values=cache, use_cache=True, position_embeddings=rotary
            )
            if said is None or number not in said.exits:
                continue
            state, told = self._controller(hidden, core.norm, said.exits.index(number))
            action = decide(told[0, 0], said)
            if action == STOP:
                return None, len(core.layers) - number
            if action == EXIT:
                for left_out in core.layers[number:]:
                    copy_state(left_out, hidden, rotary, cache)
                break
        else:
            state = core.norm(hidden)
        self._read.append(token)
        logits: Tensor = self._model.lm_head(state)
        return logits[0].float(), len(core.layers) - number

    def _roll_back(self, tokens: int) -> None:
        """Have the cache hold the first `tokens` only, in every layer: a stop ends amid the layers."""
        del self._read[tokens:]
        layers: list[Any] = self._cache.layers
        for layer in layers:
            layer.crop(min(0, tokens - layer.get_seq_length()))

    def _charge(self, row: Row, before: int, tokens: int, left_out: int = 0, drawn: bool = False) -> None:
        for tally in (row.tally, self._total):
            tally.generated(1, before + 1) if drawn else tally.read(before, tokens)
            tally.left_out(left_out, before + 1)

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([tokens], device=self._model.device)

    def _clock(self) -> float:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return time.perf_counter()


def copy_state(layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], cache: DynamicCache) -> None:
    """Put the keys and values that a layer makes of a state into the cache, and leave the rest of the layer out.

    Args:
        layer: a decoder layer.
        hidden: [1, 1, hidden], the state a token left with.
        rotary: cosines and sines of its place.
        cache: grows by one token at this layer.
    """
    attention = layer.self_attn
    seen = layer.input_layernorm(hidden)
    heads = (*seen.shape[:-1], -1, attention.head_dim)
    key, value = (project(seen).view(heads) for project in (attention.k_proj, attention.v_proj))
    key = (attention.k_norm(key) if hasattr(attention, "k_norm") else key).transpose(1, 2)
    turn: Any = apply_rotary_pos_emb
    cache.update(turn(key, key, *rotary)[1], value.transpose(1, 2), attention.layer_idx)


def skippable(layer: Any) -> int:
    """Parameters of a decoder layer that `copy_state` does not read."""
    attention = layer.self_attn
    read = [layer.input_layernorm, attention.k_proj, attention.v_proj, getattr(attention, "k_norm", None)]
    count: list[int] = [
        sum(p.numel() for p in part.parameters()) for part in (layer, *(part for part in read if part))
    ]
    return count[0] - sum(count[1:])
