"""Engine for OpenAI-compatible servers, through /v1/completions: vLLM, SGLang, llama.cpp, transformers serve.

Requests run in one background thread, over one session whose pool holds as many connections as requests may be in
flight. What a server can do is declared in `extratime.models.engines.servers` and checked by one small request at the
start (which `counts` leaves out).

A request that fails is sent again, with the same seed, after an exponential pause with jitter or the pause that the
server asks for; after the last attempt it becomes a `Failure` of its ticket and of no other. A reply that does not
come within the time-out is treated in the same way, never as a shorter answer: otherwise long answers would be
missing more often than short ones.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import aiohttp
from yarl import URL

from extratime.models.engines import servers
from extratime.models.engines.courier import Busy, Courier
from extratime.models.engines.servers import SERVERS, BrokenReply, Json, Server
from extratime.models.engines.text import encoder
from extratime.models.engines.wire import NOTHING, Patience, Refused, fetch, insist, open_session
from extratime.models.paths import digest, uniforms
from extratime.models.request import (
    Draw,
    Drawn,
    Failure,
    Probe,
    Profile,
    Prompt,
    Read,
    Reply,
    Sampling,
    Score,
    Shape,
    Work,
)

T = TypeVar("T")
Question: TypeAlias = Draw | Score | Probe

_HELLO = "What is 17 + 25?"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is and how to talk to it.

    Attributes:
        model: name under which the server serves the model.
        server: what kind of server it is: "vllm", "sglang", "llama_cpp" or "transformers".
        url: its address, with or without "/v1".
        revision: anything that tells apart weights served under one name; part of the fingerprint.
        concurrency: requests in flight; None takes the server's usual number.
        timeout: seconds for one attempt.
        attempts: how often a request is sent at most.
        pause: seconds before the second attempt; doubles from there.
        key_env: environment variable that holds the API key, if the server wants one.
        shape: sizes of the model, for costs.
    """

    model: str
    server: str
    url: str = "http://127.0.0.1:8000"
    revision: str = ""
    concurrency: int | None = None
    timeout: float = 600.0
    attempts: int = 6
    pause: float = 0.25
    key_env: str = "OPENAI_API_KEY"
    shape: Shape | None = None

    def __post_init__(self) -> None:
        if self.server not in SERVERS:
            raise ValueError(f"server {self.server!r} is none of {sorted(SERVERS)}")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url {self.url!r} must begin with http:// or https://")
        if URL(self.url).user or URL(self.url).password:
            raise ValueError(f"url must hold no password: put the key into the environment, as ${self.key_env}")
        if self.attempts < 1 or self.timeout <= 0 or (self.concurrency is not None and self.concurrency < 1):
            raise ValueError(f"attempts, timeout and concurrency must be positive: {self}")

    @property
    def root(self) -> str:
        """The address without "/v1"."""
        return self.url.rstrip("/").removesuffix("/v1")


async def listed(session: aiohttp.ClientSession, at: Endpoint) -> dict[str, Json]:
    """What a server serves, by name.

    Raises:
        RuntimeError: nothing answers there, or the model is not served.
    """
    told = await at_first(at, lambda: fetch(session, "GET", URL(f"{at.root}/v1/models")))
    data = told.get("data")
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    served = {str(entry.get("id")): entry for entry in entries}
    if at.model not in served:
        raise RuntimeError(f"{at.root} does not serve {at.model!r} but {sorted(served)}: set `model` to one of them")
    return served


async def at_first(at: Endpoint, ask: Callable[[], Awaitable[T]]) -> T:
    """Like `insist`, but soon at an end: nothing was begun yet, and whoever starts it is still there.

    Raises:
        RuntimeError: there is no answer.
    """
    patience = Patience(at.timeout, min(3, at.attempts), at.pause)
    try:
        return (await insist(ask, patience, 0))[0]
    except Refused as fault:
        raise RuntimeError(
            f"the {at.server} server at {at.root} does not answer for model {at.model!r}: "
            f"{fault}. Start it, or set `url`, `model` and the key in ${at.key_env}"
        ) from fault


class OpenAIEngine:
    """See `extratime.models.request.Engine`.

    A kind of work takes the `seconds` during which at least one request of it was in flight: draws are "decode", other
    requests "prefill". There are no `adapters`: servers apply one to the whole text, not from a question on; a model
    with an adapter is a model of its own, under the name it is served by.

    Args:
        endpoint: the server.
        tokenizer: of the model: reads prompts; None leaves it to the server. A server of texts is sent texts all the
            same, without what its own tokenizer puts before them.

    Raises:
        RuntimeError: nothing answers there, the model is not served, the server is not of the declared kind or reads
            texts otherwise than `tokenizer`.
    """

    def __init__(self, endpoint: Endpoint, tokenizer: Any = None) -> None:
        self._at = endpoint
        self._encode = encoder(tokenizer) if tokenizer is not None else None
        self._lead = str(tokenizer.decode(tokenizer("").input_ids)) if tokenizer is not None else ""
        self._server: Server = SERVERS[endpoint.server]
        self._limit = endpoint.concurrency or self._server.concurrency
        self._patience = Patience(endpoint.timeout, endpoint.attempts, endpoint.pause)
        self._root = endpoint.root
        self._completions = URL(f"{self._root}/v1/completions")
        self._tokens: dict[str, list[int]] = {}
        self._served: dict[str, Json] = {}
        self.adapters: Mapping[str, str] = {}
        self.counts = Work()
        self.seconds = {"prefill": 0.0, "decode": 0.0}
        self._busy = {kind: Busy(self.seconds, kind) for kind in self.seconds}
        self._courier: Courier[Question, Reply] = Courier(self._answer, self._limit)
        try:
            self._courier.call(self._connect())
        except BaseException:
            self._courier.close()
            raise
        model = self._served.get(endpoint.model, {})
        self.profile = self._profile(model.get("max_model_len"))
        self.fingerprint = digest("openai", self._server.name, endpoint.model, model.get("root"), endpoint.revision)

    def encode(self, text: str) -> Prompt:
        """`text` as this engine reads it: with token ids where they can be told.

        Raises:
            RuntimeError: the server does not tell them.
        """
        if self._encode is not None:
            return self._encode(text)
        if self._server.text_field is None:
            return Prompt(text)
        try:
            ids, _ = self._courier.call(insist(lambda: self._tokenize(text, special=True), self._patience, 0))
        except Refused as fault:
            raise RuntimeError(f"{self._root}/tokenize: {fault}. Name a `tokenizer` to do without it") from fault
        return Prompt(text, tuple(ids))

    def submit(self, ticket: Hashable, request: Question) -> None:
        """Take on a request; its reply will carry `ticket`.

        Raises:
            ValueError: the server cannot answer such a request, or the ticket is already in use.
        """
        if reason := self._cannot(request):
            raise ValueError(f"{self._server.name} server at {self._root}: {reason}")
        self._courier.submit(ticket, request)

    def cancel(self, ticket: Hashable) -> Reply | None:
        """Stop working on a ticket.

        A completion comes in one piece: of a draw that is in flight nothing has been read yet, and what the server
        spent on it is not known.
        """
        begun, reply = self._courier.cancel(ticket)
        return reply if reply is not None or not begun else Drawn("", ())

    def poll(self) -> Sequence[tuple[Hashable, Reply]]:
        """Wait for replies. Empty only if nothing is submitted."""
        replies: Sequence[tuple[Hashable, Reply]] = self._courier.poll()
        return replies

    def close(self) -> None:
        """Give up what is in flight, close the connections and end the thread."""
        if not self._session.closed:
            self._courier.call(self._session.close())
        self._courier.close()

    def _profile(self, context: int | None) -> Profile:
        server = self._server
        return Profile(
            token_ids=server.text_field is not None,
            logprobs=server.logprobs != "none",
            seeds=server.seeds and (not server.serial_seeds or self._limit == 1),
            resumes=server.text_field is not None,
            scores=server.scores,
            probes=server.top > 0,
            max_context=context,
            concurrency=self._limit,
            shape=self._at.shape,
        )

    def _cannot(self, request: Question) -> str:
        server = self._server
        if isinstance(request, Score):
            return "" if server.scores else "it cannot score a given continuation"
        if isinstance(request, Probe):
            if len(request.targets) > server.top:
                return f"it tells the {server.top} most likely tokens, {len(request.targets)} targets cannot be probed"
            return f"it cannot switch to the adapter {request.adapter!r} for a question" if request.adapter else ""
        if server.text_field is None and (request.have or request.have_text):
            return "it cannot continue a path"
        return "" if request.max_tokens > len(request.have) else f"nothing to read within {request.max_tokens} tokens"

    # What follows runs in the background thread.

    async def _connect(self) -> None:
        key = os.environ.get(self._at.key_env, "").strip()
        self._session = open_session(self._limit, self._at.timeout, key)
        try:
            if self._server.lists:
                self._served = await listed(self._session, self._at)
            await self._try_out()
        except BaseException:
            await self._session.close()
            raise

    async def _try_out(self) -> None:
        """Draw one token after a text, and see that the server reads it as we do."""
        said = self._encode(_HELLO) if self._encode else Prompt(_HELLO)
        draw = Draw(said, 0, Sampling(), 1)
        reply = await at_first(self._at, lambda: self._complete(self._draw_body(draw, ())))
        try:
            work = servers.drawn(self._server, draw, (), reply).work
        except BrokenReply as fault:
            raise RuntimeError(
                f"{self._root} does not answer like a {self._server.name} server: {fault}. "
                "Set `server` to what runs there, or run a newer version of it"
            ) from fault
        if said.ids is not None:
            await self._compare(said.ids, work.prefill + work.cached)

    async def _compare(self, ids: tuple[int, ...], read: int) -> None:
        """Refuse a tokenizer that reads texts otherwise than the server."""
        same = len(ids) == read
        if self._server.text_field is not None:
            heard = await at_first(self._at, lambda: self._tokenize(_HELLO))
            same = same and tuple(heard) == ids[len(ids) - len(heard) :]
        if not same:
            raise RuntimeError(
                f"{self._root} reads {_HELLO!r} with other tokens than {list(ids)}: "
                f"set `tokenizer` to the one of {self._at.model!r}"
            )

    async def _answer(self, request: Question) -> Reply:
        with self._busy["decode" if isinstance(request, Draw) else "prefill"]:
            try:
                reply, spent = await insist(lambda: self._ask(request), self._patience, _key(request))
                reply = replace(reply, work=reply.work + spent) if spent is not NOTHING else reply
            except Refused as fault:
                reply = Failure(f"{self._completions}: {fault}", fault.work)
        self.counts += reply.work
        return reply

    async def _ask(self, request: Question) -> Reply:
        if isinstance(request, Draw):
            return await self._ask_draw(request)
        if isinstance(request, Probe):
            reply = await self._complete(await self._probe_body(request))
            return Read(*servers.probabilities(self._server, request.targets, reply))
        prompt = await self._ids(request.prompt)
        tokens = await self._tokenize(request.continuation)
        reply = await self._complete(servers.echo_body(self._at.model, prompt + tokens))
        return Read(*servers.echoed(len(prompt), len(tokens), reply))

    async def _ask_draw(self, draw: Draw) -> Drawn:
        stops = tuple(dict.fromkeys(draw.until + draw.pause)) if self._server.keep_stop else ()
        return servers.drawn(self._server, draw, stops, await self._complete(self._draw_body(draw, stops)))

    async def _complete(self, body: Json) -> Json:
        return await fetch(self._session, "POST", self._completions, body)

    def _draw_body(self, draw: Draw, stops: tuple[str, ...]) -> Json:
        prompt: str | tuple[int, ...] = draw.prompt.text.removeprefix(self._lead) + draw.have_text
        if draw.prompt.ids is not None and self._server.text_field and (draw.have or not draw.have_text):
            prompt = draw.prompt.ids + draw.have
        body: Json = {
            "model": self._at.model,
            "prompt": prompt,
            "max_tokens": draw.max_tokens - len(draw.have),
            "seed": _key(draw) >> (64 - self._server.seed_bits),
            **self._server.law(draw.sampling),
            **self._server.fields,
        }
        return body | ({"stop": stops, self._server.keep_stop: True} if stops and self._server.keep_stop else {})

    async def _probe_body(self, probe: Probe) -> Json:
        asked = probe.completion
        prompt: str | list[int] = asked.prompt.text + asked.text + probe.question
        if asked.prompt.ids is not None and (asked.tokens or not asked.text):
            if probe.question not in self._tokens:
                self._tokens[probe.question] = await self._tokenize(probe.question)
            prompt = [*asked.prompt.ids, *asked.tokens, *self._tokens[probe.question]]
        return {
            "model": self._at.model,
            "prompt": prompt,
            "max_tokens": 1,
            **self._server.law(Sampling()),
            **self._server.fields,
            self._server.top_field: self._server.top,
        }

    async def _ids(self, prompt: Prompt) -> list[int]:
        return list(prompt.ids) if prompt.ids is not None else await self._tokenize(prompt.text)

    async def _tokenize(self, text: str, special: bool = False) -> list[int]:
        body = servers.tokenize_body(self._server, self._at.model, text, special)
        reply = await fetch(self._session, "POST", URL(f"{self._root}/tokenize"), body)
        if not isinstance(reply.get("tokens"), list):
            raise BrokenReply("/tokenize tells no tokens")
        return list(reply["tokens"])


def _key(request: Question) -> int:
    """64 bits for what is left to read of a path; other requests need no more than a constant."""
    if not isinstance(request, Draw):
        return 0
    read = len(request.have) or len(request.have_text)
    return int(uniforms(request.seed, read, 1)[0] * 2.0**53) << 11
