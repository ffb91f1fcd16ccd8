"""Engine for a reward model behind a server: vLLM's pooling API, `vllm serve MODEL --runner pooling`.

The server is sent token ids, put together as the same model in this process would read them, and asked for the logits
of every token (`POST /pooling`, task "token_classify") or of the text ("classify"), with no activation; what they say
is worked out here. So a served model gives the rewards of a loaded one, up to its numeric type. Patience, time-outs
and named faults are those of `extratime.models.engines.openai`; a reply that lacks a token is asked for again, and
never read as fewer steps.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from yarl import URL

from extratime.models.engines import servers
from extratime.models.engines.courier import Busy, Courier
from extratime.models.engines.openai import Endpoint, at_first, listed
from extratime.models.engines.reward import legible, rewarded
from extratime.models.engines.servers import BrokenReply, Json
from extratime.models.engines.wire import NOTHING, Patience, Refused, fetch, insist, open_session
from extratime.models.paths import digest
from extratime.models.request import Draw, Failure, Probe, Profile, Prompt, Read, Reply, Score, Work
from extratime.models.reward import Manner
from extratime.models.steps import Reading

_HELLO = "17 + 25 = 42"


class PoolingEngine:
    """Answers `Score` with a reward a step, or one for the whole text; see `extratime.models.request.Engine`.

    Args:
        endpoint: the server.
        how: the model is asked.
        context: longest text in tokens, unless the server tells less.

    Raises:
        RuntimeError: nothing answers there, the model is not served, or it answers in another form.
    """

    def __init__(self, endpoint: Endpoint, how: Manner, context: int | None) -> None:
        self._at, self._how = endpoint, how
        self._limit = endpoint.concurrency or servers.SERVERS[endpoint.server].concurrency
        self._patience = Patience(endpoint.timeout, endpoint.attempts, endpoint.pause)
        self._url = URL(f"{endpoint.root}/pooling")
        self._replies: list[tuple[Hashable, Reply]] = []
        self.adapters: Mapping[str, str] = {}
        self.counts = Work()
        self.seconds = {"prefill": 0.0}
        self._busy = Busy(self.seconds, "prefill")
        self._courier: Courier[Reading, Reply] = Courier(self._answer, self._limit)
        try:
            entry = self._courier.call(self._connect())
        except BaseException:
            self._courier.close()
            raise
        told = [n for n in (context, entry.get("max_model_len")) if n]
        self.profile = Profile(False, False, False, False, True, False, min(told, default=None), self._limit)
        name = (endpoint.model, entry.get("root"), endpoint.revision)
        self.fingerprint = digest("pooling", *name, how.separator, how.convention)

    def encode(self, text: str) -> Prompt:
        """`text` as it is: prompt and continuation are turned into tokens together."""
        return Prompt(text)

    def submit(self, ticket: Hashable, request: Draw | Score | Probe) -> None:
        """Take on a `Score`.

        Raises:
            ValueError: it is another request, or the ticket is already in use.
        """
        said = legible(self._how, self.profile.max_context, request)
        if isinstance(said, Read | Failure):
            self._replies.append((ticket, said))
        else:
            self._courier.submit(ticket, said)

    def cancel(self, ticket: Hashable) -> Reply | None:
        """Stop working on a ticket; returns the reply if there is one already."""
        reply = dict(self._replies).get(ticket)
        self._replies = [(other, said) for other, said in self._replies if other != ticket]
        return reply if reply is not None else self._courier.cancel(ticket)[1]

    def poll(self) -> Sequence[tuple[Hashable, Reply]]:
        """Wait for replies. Empty only if nothing is submitted."""
        replies, self._replies = self._replies, []
        return replies or self._courier.poll()

    def close(self) -> None:
        """Give up what is in flight, close the connections and end the thread."""
        if not self._session.closed:
            self._courier.call(self._session.close())
        self._courier.close()

    # What follows runs in the background thread.

    async def _connect(self) -> Json:
        key = os.environ.get(self._at.key_env, "").strip()
        self._session = open_session(self._limit, self._at.timeout, key)
        try:
            entry = (await listed(self._session, self._at))[self._at.model]
            reading = self._how.read("", _HELLO)
            await at_first(self._at, lambda: self._ask(reading))
        except BaseException:
            await self._session.close()
            raise
        return entry

    async def _answer(self, reading: Reading) -> Reply:
        with self._busy:
            try:
                reply, spent = await insist(lambda: self._ask(reading), self._patience, 0)
                reply = replace(reply, work=reply.work + spent) if spent is not NOTHING else reply
            except Refused as fault:
                reply = Failure(f"{self._url}: {fault}", fault.work)
        self.counts += reply.work
        return reply

    async def _ask(self, reading: Reading) -> Reply:
        ids, ends = reading
        task = "token_classify" if self._how.steps else "classify"
        body = {"model": self._at.model, "input": list(ids), "task": task, "use_activation": False}
        said = await fetch(self._session, "POST", self._url, body)
        work = servers.work(said)
        logits = _logits(said, len(ids) if self._how.steps else None, work)
        row = self._how.tell(logits[None])[0].tolist()
        return rewarded(tuple(row[end] for end in ends or (0,)), work)


def _logits(said: Json, tokens: int | None, work: Work) -> torch.Tensor:
    """Logits [tokens, labels] of a reply, or [labels] where `tokens` is None.

    Raises:
        BrokenReply: they are not there, or not those of every token.
    """
    try:
        found: Any = said["data"][0]["data"]
        logits = torch.tensor(found, dtype=torch.float32)
    except (TypeError, LookupError, ValueError) as fault:
        raise BrokenReply(f"the reply holds no pooled data ({fault!r})", work) from fault
    if tokens is not None and logits.ndim == 1:
        logits = logits[:, None]
    labels = 2 if tokens is not None else 1
    if logits.ndim != 1 + (tokens is not None) or not 1 <= logits.shape[-1] <= labels:
        raise BrokenReply(f"the reply's data has the shape {list(logits.shape)}", work)
    if tokens is not None and len(logits) != tokens:
        raise BrokenReply(
            f"the reply tells of {len(logits)} tokens where {tokens} were sent: serve it with the pooling type ALL",
            work,
        )
    return logits
