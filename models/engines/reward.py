"""The engine of reward models: weighs texts in batches of like length, on CPU or GPU.

A batch that does not fit into memory is halved. Every text is read whole: nothing is kept between requests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

import torch

from extratime.models.engines.memory import attempt, no_memory
from extratime.models.request import Draw, Failure, Probe, Profile, Prompt, Read, Reply, Score, Work
from extratime.models.reward import Manner, RewardModel
from extratime.models.steps import Reading, Unreadable

Asked: TypeAlias = "tuple[Hashable, Reading]"
_ROWS, _TOKENS = 64, 16_384
"""The largest batch: texts, and tokens of its rectangle."""


class RewardEngine:
    """Answers `Score` with a reward a step, or one for the whole text; see `extratime.models.request.Engine`.

    Args:
        reward: the model.
    """

    def __init__(self, reward: RewardModel) -> None:
        self._reward = reward
        pad = reward.model.config.get_text_config().pad_token_id
        # A sequence classifier finds the end of a text by its padding, so without any it reads one text at a time.
        self._rows = 1 if pad is None and not reward.how.steps else _ROWS
        self._pad = pad or 0
        self._waiting: dict[Hashable, Reading] = {}
        self._replies: list[tuple[Hashable, Reply]] = []
        self.fingerprint = reward.fingerprint
        self.profile = Profile(False, False, False, False, True, False, reward.context, self._rows)
        self.adapters: Mapping[str, str] = {}
        self.counts = Work()
        self.seconds = {"prefill": 0.0}

    def encode(self, text: str) -> Prompt:
        """`text` as it is: prompt and continuation are turned into tokens together."""
        return Prompt(text)

    def submit(self, ticket: Hashable, request: Draw | Score | Probe) -> None:
        """Take on a `Score`.

        Raises:
            ValueError: it is another request.
        """
        said = legible(self._reward.how, self._reward.context, request)
        if isinstance(said, Read | Failure):
            self._replies.append((ticket, said))
        else:
            self._waiting[ticket] = said

    def cancel(self, ticket: Hashable) -> Reply | None:
        """Forget a ticket; returns the reply if there is one already."""
        self._waiting.pop(ticket, None)
        reply = dict(self._replies).get(ticket)
        self._replies = [(other, said) for other, said in self._replies if other != ticket]
        return reply

    def poll(self) -> Sequence[tuple[Hashable, Reply]]:
        """Weigh the longest texts that wait, as many as make one batch. Empty only if nothing is submitted."""
        if not self._replies and self._waiting:
            self._answer(self._batch())
        replies, self._replies = self._replies, []
        return replies

    def close(self) -> None:
        """Forget what was submitted."""
        self._waiting.clear()
        self._replies.clear()

    def _batch(self) -> list[Asked]:
        longest = sorted(self._waiting, key=lambda ticket: -len(self._waiting[ticket][0]))
        rows = max(1, min(self._rows, _TOKENS // len(self._waiting[longest[0]][0])))
        return [(ticket, self._waiting.pop(ticket)) for ticket in longest[:rows]]

    def _answer(self, batch: list[Asked]) -> None:
        began = time.perf_counter()
        why = attempt(lambda: self._weigh(batch))
        self.seconds["prefill"] += time.perf_counter() - began
        if why is None:
            return
        if len(batch) > 1:
            self._answer(batch[: len(batch) // 2])
            self._answer(batch[len(batch) // 2 :])
        else:
            ((ticket, (ids, _)),) = batch
            self._replies.append((ticket, Failure(no_memory(why, len(ids)))))

    def _weigh(self, batch: list[Asked]) -> None:
        rewards = self._rewards([ids for _, (ids, _) in batch])
        for (ticket, (ids, ends)), row in zip(batch, rewards, strict=True):
            work = Work(prefill=len(ids), pairs=len(ids) * (len(ids) + 1) // 2)
            self.counts += work
            self._replies.append((ticket, rewarded(tuple(row[end] for end in ends or (0,)), work)))

    @torch.inference_mode()
    def _rewards(self, rows: list[tuple[int, ...]]) -> list[list[float]]:
        """The reward at each token of each text, or one of the whole text."""
        width, device = max(map(len, rows)), self._reward.model.device
        ids = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in rows], device=device)
        mask = torch.tensor([[i < len(row) for i in range(width)] for row in rows], device=device).long()
        logits = self._reward.model(input_ids=ids, attention_mask=mask).logits
        rewards: list[list[float]] = self._reward.how.tell(logits.float()).tolist()
        return rewards


def legible(how: Manner, context: int | None, request: Draw | Score | Probe) -> Reading | Read | Failure:
    """What goes through a reward model for a request, or the reply where nothing need or can.

    Raises:
        ValueError: it is no `Score`.
    """
    if not isinstance(request, Score):
        raise ValueError(f"a reward model only scores; it cannot answer a {type(request).__name__}")
    asked = request.question if how.convention and request.question else request.prompt.text
    try:
        ids, ends = how.read(asked, request.continuation)
    except Unreadable as fault:
        return Failure(str(fault))
    if context is not None and len(ids) > context:
        return Failure(
            f"text too long for the reward model: {len(ids)} tokens, its context is {context}; shorten the response"
        )
    return (ids, ends) if ids and (ends or not how.steps) else Read(())


def rewarded(rewards: tuple[float, ...], work: Work) -> Read | Failure:
    """The reply that holds rewards, if they are numbers."""
    if all(map(math.isfinite, rewards)):
        return Read(rewards, work)
    return Failure("the reward model answers NaN or infinity: try another verifier.dtype, or check its weights", work)
