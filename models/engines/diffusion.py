"""The `diffusion` engine: semi-autoregressive decoding of a masked-diffusion language model (LLaDA, arXiv 2502.09992).

The model is a plain transformers architecture that is read without a causal mask: every token sees every other. A
draw begins as masks and is written block by block; a block that is complete is never changed, so a path that was read
in part is extended from there, and one whose block holds an end token goes no further. A step's randomness is
`uniforms(seed, step in its block · length + place)`, so a draw hangs neither on batch mates nor on how often it was
interrupted, beyond floating-point noise. The mask itself is never drawn.

Counting: each step sends the whole text through the model. `Work.decode` is the number of tokens written, those of a
block that stand after its end included; `prefill` is all else that went through, and `pairs` counts both ways. There
is no KV cache, and none is charged. The log-probability of a token is that under which it was written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from extratime.models.engines.law import Laws, pick
from extratime.models.engines.memory import attempt, no_memory
from extratime.models.engines.sizes import context_length, end_tokens, refuse_unusual, shape_of
from extratime.models.engines.text import Text, decoder, encoder
from extratime.models.load import Loaded
from extratime.models.paths import uniforms
from extratime.models.request import Draw, Drawn, Failure, Probe, Profile, Prompt, Reply, Score, Work
from extratime.models.unmasking import Unmasking


class Proposal(NamedTuple):
    """A token for one mask: its log-probability under the model and under the law, and how sure the model is of it."""

    token: int
    raw: float
    tempered: float
    sure: float


@dataclass(slots=True, eq=False)
class Canvas:
    """A draw in progress.

    Attributes:
        law: its schedule.
        ids: prompt and path, masks where nothing is written.
        begin: where the path begins in `ids`.
        read: tokens of the path whose blocks are complete.
        text: what those say.
        base: length of the text that was given.
        step: steps done in the present block.
        written: what was kept, by its place in the path.
    """

    ticket: Hashable
    draw: Draw
    law: Unmasking
    ids: list[int]
    begin: int
    read: int
    text: Text
    base: int
    step: int = 0
    ends: list[int] = field(default_factory=list)
    eos: bool = False
    written: dict[int, Proposal] = field(default_factory=dict)
    work: Work = field(default_factory=Work)

    def masked(self) -> list[int]:
        """Places in the path that the present block has still to write."""
        return [place for place in range(self.read, self.read + self.law.block) if place not in self.written]

    def write(self, proposals: Sequence[Proposal]) -> Work:
        """Do one step: of one proposal a masked place, keep those that are surest, the earlier of equal ones."""
        count, width = self.law.counts[self.step], len(self.ids)
        ranked = sorted(zip(self.masked(), proposals, strict=True), key=lambda one: (-one[1].sure, one[0]))
        for place, proposal in ranked[:count]:
            self.ids[self.begin + place] = proposal.token
            self.written[place] = proposal
        self.step += 1
        done = Work(prefill=width - count, decode=count, pairs=width * width)
        self.work += done
        return done

    def settle(self, ends: frozenset[int]) -> bool:
        """Read the present block if it is complete; returns whether the draw stops there."""
        if self.step < len(self.law.counts):
            return False
        old = len(self.text.value)
        for token in self.ids[self.begin + self.read :][: self.law.block]:
            self.eos = token in ends
            if not self.eos:
                self.text.push(token)
            self.ends.append(len(self.text.value) - self.base)
            if self.eos:
                return True
        self.read, self.step = self.read + self.law.block, 0
        stopped = self.text.ends_with_new(self.draw.until + self.draw.pause, old)
        return stopped or self.read >= min(self.draw.max_tokens, self.law.length)

    def drawn(self) -> Drawn:
        """What was read so far."""
        have = len(self.draw.have)
        kept = [self.written[place] for place in range(have, have + len(self.ends))]
        return Drawn(
            self.text.value[self.base :],
            tuple(self.ends),
            tuple(one.token for one in kept[: len(kept) - self.eos]),
            tuple(one.raw for one in kept),
            tuple(one.tempered for one in kept),
            self.eos,
            self.work,
        )


class DiffusionEngine:
    """Answers draws with a masked-diffusion model; see `extratime.models.request.Engine`.

    Args:
        loaded: model and tokenizer. The configuration's `mask_token_id`, else the tokenizer's mask token, is the mask;
            its `shift_logits` says whether logits are about the next place, as where a model once was autoregressive.
        slots: draws that share a forward pass, if they are of one width.

    Raises:
        ValueError: the model names no mask that can be one, its layers are not plain attention, or something stands
            beside it.
    """

    def __init__(self, loaded: Loaded, slots: int = 16) -> None:
        self._model = loaded.model.eval()
        config = self._model.config.get_text_config(decoder=True)
        refuse_unusual(self._model, config)
        if loaded.adapters or loaded.tempnet or loaded.controller:
            raise ValueError(
                "the diffusion engine runs plain models: merge adapters, and leave temperatures to the law"
            )
        self._context, self._bound = context_length(config)
        self._ends = end_tokens(self._model, loaded.tokenizer)
        self._mask = _mask(config, loaded, self._ends)
        self._shift = int(bool(getattr(config, "shift_logits", False)))
        self._encode, self._decode = encoder(loaded.tokenizer), decoder(loaded.tokenizer)
        self._slots = slots
        self._canvases: dict[Hashable, Canvas] = {}
        self._replies: dict[Hashable, Reply] = {}
        self.fingerprint: str = loaded.fingerprint
        self.adapters: Mapping[str, str] = {}
        shape = shape_of(self._model, config)
        self.profile = Profile(scores=False, probes=False, max_context=self._context, concurrency=slots, shape=shape)
        self.counts = Work()
        self.seconds = {"decode": 0.0}

    def encode(self, text: str) -> Prompt:
        """`text` as token ids, after the tokenizer's own leading token."""
        return self._encode(text)

    def submit(self, ticket: Hashable, request: Draw | Score | Probe) -> None:
        """Take on a draw.

        Raises:
            ValueError: it is no draw, or its law has no blocks.
        """
        if not isinstance(request, Draw):
            raise ValueError(f"the diffusion engine only draws; it cannot answer a {type(request).__name__}")
        law = request.sampling
        if not isinstance(law, Unmasking):
            raise ValueError("a masked-diffusion model draws as the policy only, under `engine: {kind: diffusion}`")
        ids = request.prompt.ids if request.prompt.ids is not None else self.encode(request.prompt.text).ids or ()
        if len(ids) + law.length > self._context:
            beyond = f"{len(ids)} tokens of prompt and {law.length} masks are more than the model's {self._bound}"
            self._replies[ticket] = Failure(f"{beyond} of {self._context}; shorten the prompt or sampling.length")
        elif len(request.have) % law.block:
            self._replies[ticket] = Failure(f"{len(request.have)} tokens are no whole blocks of {law.block}")
        else:
            self._begin(ticket, request, law, ids)

    def cancel(self, ticket: Hashable) -> Reply | None:
        """Stop working on a ticket; returns what was read of it, or None if it was never started."""
        if ticket in self._replies:
            return self._replies.pop(ticket)
        canvas = self._canvases.pop(ticket, None)
        return canvas.drawn() if canvas and canvas.work.decode else None

    def poll(self) -> Sequence[tuple[Hashable, Reply]]:
        """Work until there is a reply. Empty only if nothing is submitted."""
        began = time.perf_counter()
        with torch.inference_mode():
            while not self._replies and self._canvases:
                self._advance()
        self.seconds["decode"] += time.perf_counter() - began
        replies, self._replies = self._replies, {}
        return list(replies.items())

    def close(self) -> None:
        """Forget what was submitted."""
        self._canvases.clear()
        self._replies.clear()

    def _begin(self, ticket: Hashable, draw: Draw, law: Unmasking, prompt: tuple[int, ...]) -> None:
        have, text = draw.have, Text(self._decode, prompt, draw.have)
        ids = [*prompt, *have, *[self._mask] * (law.length - len(have))]
        canvas = Canvas(ticket, draw, law, ids, len(prompt), len(have), text, len(text.value))
        if len(have) >= law.length:
            self._replies[ticket] = canvas.drawn()
        else:
            self._canvases[ticket] = canvas

    def _advance(self) -> None:
        """One step of the oldest draw and of those as wide as it."""
        width = len(next(iter(self._canvases.values())).ids)
        batch = [canvas for canvas in self._canvases.values() if len(canvas.ids) == width][: self._slots]
        steps: list[list[Proposal]] = []
        why = attempt(lambda: steps.extend(self._proposals(batch)))
        if why is not None and len(batch) > 1:
            self._slots = len(batch) // 2
        elif why is not None:
            self._reply(batch[0], Failure(no_memory(why, width), batch[0].work))
        for canvas, proposals in zip(batch, steps, strict=False):
            self.counts += canvas.write(proposals)
            if canvas.settle(self._ends):
                self._reply(canvas, canvas.drawn())

    def _reply(self, canvas: Canvas, reply: Reply) -> None:
        del self._canvases[canvas.ticket]
        self._replies[canvas.ticket] = reply

    def _proposals(self, batch: Sequence[Canvas]) -> list[list[Proposal]]:
        """For each draw one proposal for each place that its block has still to write."""
        wanted = [[canvas.begin + place for place in canvas.masked()] for canvas in batch]
        kept = sorted({at for places in wanted for at in places})
        logits = self._logits([canvas.ids for canvas in batch], kept)
        index = {at: i for i, at in enumerate(kept)}
        return [
            propose(logits[row, [index[at] for at in places]].float(), canvas)
            for row, (canvas, places) in enumerate(zip(batch, wanted, strict=True))
        ]

    def _logits(self, rows: Sequence[Sequence[int]], kept: Sequence[int]) -> Tensor:
        """Logits [rows, kept, vocabulary] at some places, the mask's own at -inf; every token sees every other."""
        device, width = self._model.device, len(rows[0])
        every = torch.zeros((1, 1, width, width), dtype=self._model.dtype, device=device)
        logits: Tensor = self._model(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=every.expand(len(rows), 1, width, width),
            logits_to_keep=torch.tensor([max(0, at - self._shift) for at in kept], device=device),
            use_cache=False,
        ).logits
        logits[..., self._mask] = -math.inf
        return logits


def propose(logits: Tensor, canvas: Canvas) -> list[Proposal]:
    """Draw a token for each place that the present block has still to write.

    Args:
        logits: [places, vocabulary], float32.
        canvas: the draw.
    """
    law, places, seed = canvas.law, canvas.masked(), canvas.draw.seed
    first = canvas.step * law.length
    chance = [uniforms(seed, first + place, 1)[0] for place in places]
    laws = Laws.of([law.proposal] * len(places), logits.device)
    tokens, raw, tempered = pick(logits, laws, torch.tensor(chance, dtype=torch.float64, device=logits.device))
    if law.confidence == "random":
        sure = [uniforms(seed, law.total * law.length + first + place, 1)[0] for place in places]
    elif law.confidence == "topk_margin":
        best = logits.softmax(-1).topk(2).values
        sure = (best[:, 0] - best[:, 1]).tolist()
    else:
        sure = raw.exp().tolist()
    return list(map(Proposal, tokens.tolist(), raw.tolist(), tempered.tolist(), sure))


def _mask(config: Any, loaded: Loaded, ends: frozenset[int]) -> int:
    found = getattr(config, "mask_token_id", None)
    found = loaded.tokenizer.mask_token_id if found is None else found
    if found is None:
        raise ValueError(
            f"{loaded.where} names no mask token, so it is no masked-diffusion model: set mask_token_id in its "
            "config.json, or take `engine: {kind: hf}`"
        )
    if found in ends or not 0 <= found < config.vocab_size:
        wrong = "ends responses" if found in ends else f"is none of its {config.vocab_size} tokens"
        raise ValueError(f"the mask token {found} of {loaded.where} {wrong}: correct mask_token_id in its config.json")
    return int(found)
