"""A server that answers like vLLM, SGLang, llama.cpp or transformers serve, fast, and with faults on demand.

In a test: `with Stub("vllm", faults={"a prompt": ["500", "html"]}) as stub: … stub.url … stub.arrivals`. The n-th
request for a prompt meets the n-th fault of its list; when the list is used up, requests are answered. With
`spoilt=("html", 20)` every 20th draw meets that fault as often as it is sent. As a process of its own:
`python tests/stub_server.py --delay 0.045 --port 0` prints the port it got.

The model behind it is a table: a path's tokens follow from (prompt, seed). Ids below 128 are ASCII characters, those
from 200 on the `PIECES`, 0 is the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

END = 0
PIECES = {200: " step", 201: ".\n\nThen", 202: "\ufffd", 203: "\ufffd", 204: " is", 205: "\n\n", 206: " 42"}
WORDS = (200, 201, 202, 204, 205, 206, 97, 98, 99)
LOGPROB = -0.5
FIXED = (
    b'{"choices": [{"index": 0, "text": " It is 42.", "finish_reason": "stop"}], '
    b'"usage": {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16}}'
)
FIELDS = {"model", "prompt", "max_tokens", "seed", "generation_config", "stop"}


@dataclass
class Arrival:
    at: float
    body: dict[str, Any]
    key: str = ""


@dataclass
class Stub:
    kind: str = "vllm"
    delay: float = 0.0
    faults: dict[Any, list[str]] = field(default_factory=dict)
    spoilt: tuple[str, int] | None = None
    models: tuple[str, ...] = ("toy", "adapter")
    tops: dict[str, float] = field(default_factory=lambda: {" Yes": -0.25, " No": -1.5, "x": -9.0})
    host: str = "127.0.0.1"
    bos: int | None = None
    cached: int = 0
    labels: int = 1
    fixed: bool = False
    arrivals: list[Arrival] = field(default_factory=list)
    draws: dict[Any, int] = field(default_factory=dict)
    peak: int = 0
    flying: int = 0

    def __enter__(self) -> Stub:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self.start(0), self._loop).result()
        self.arrivals.clear()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def asked(self, prompt: Any) -> list[Arrival]:
        """The requests for a prompt, in the order in which they came."""
        return [arrival for arrival in self.arrivals if _name(arrival.body) == prompt]

    async def start(self, port: int) -> int:
        app = web.Application()
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/pooling", self.pool)
        app.router.add_get("/v1/models", self.list_models)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, port, backlog=4096)
        await site.start()
        return int(site._server.sockets[0].getsockname()[1])

    async def list_models(self, request: web.Request) -> web.Response:
        data = [{"id": name, "root": f"/models/{name}", "max_model_len": 4096} for name in self.models]
        return web.json_response({"object": "list", "data": data})

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        text = body["content"] if self.kind == "llama_cpp" else body["prompt"]
        special = body.get("add_special") or body.get("add_special_tokens")
        lead = [self.bos] if special and self.bos is not None else []
        return web.json_response({"tokens": lead + [ord(char) for char in text]})

    async def chat(self, request: web.Request) -> web.Response:
        """Enough of the chat API for other clients in benchmarks."""
        await request.read()
        await self._wait()
        message = {"role": "assistant", "content": "It is 42."}
        usage = {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16}
        return web.json_response(
            {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        )

    async def pool(self, request: web.Request) -> web.StreamResponse:
        """Logits that hang on each token and its place, or on the whole text."""
        body = await request.json()
        self.arrivals.append(Arrival(time.monotonic(), body, request.headers.get("Authorization", "")))
        await self._wait()
        ids = body["input"]
        rows = [[logit(ids[: i + 1]), -logit(ids[: i + 1])][: self.labels] for i in range(len(ids))]
        data = rows if body["task"] == "token_classify" else [logit(ids)]
        usage = {"prompt_tokens": len(ids), "total_tokens": len(ids), "completion_tokens": 0}
        reply = {"data": [{"index": 0, "object": "pooling", "data": data}], "usage": usage, "model": body["model"]}
        planned = self.faults.get(tuple(ids))
        fault = planned.pop(0) if planned else None
        return await FAULTS[fault](request, reply) if fault else web.json_response(reply)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        if self.fixed:
            await asyncio.sleep(self.delay)
            return web.Response(body=FIXED, content_type="application/json")
        body = json.loads(content)
        self.arrivals.append(Arrival(time.monotonic(), body, request.headers.get("Authorization", "")))
        if body["model"] not in self.models:
            return web.json_response({"error": f"no model {body['model']}"}, status=404)
        if self.kind == "transformers" and (strange := set(body) - FIELDS):
            return web.json_response({"detail": f"Unexpected fields in the request: {strange}"}, status=422)
        await self._wait()
        fault, reply = self._fault(body), self.answer(body)
        return await FAULTS[fault](request, reply) if fault else web.json_response(reply)

    def _fault(self, body: dict[str, Any]) -> str | None:
        if self.spoilt and body["max_tokens"] > 1:
            fault, every = self.spoilt
            number = self.draws.setdefault((_name(body), body["seed"]), len(self.draws))
            return fault if number % every == every // 2 else None
        planned = self.faults.get(_name(body))
        return planned.pop(0) if planned else None

    async def _wait(self) -> None:
        self.flying += 1
        self.peak = max(self.peak, self.flying)
        await asyncio.sleep(self.delay)
        self.flying -= 1

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, finish = self.read(body)
        text = spell([i for i in ids if i != END])
        if finish == "stop" and ids[-1] != END:
            text = text[: max(text.find(stop) + len(stop) for stop in body["stop"] if stop in text)]
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        prompt = len(body["prompt"]) + (self.kind == "transformers" and self.bos is not None)
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": len(ids)}
        usage["prompt_tokens_details"] = {"cached_tokens": min(self.cached, prompt)} if self.cached else None
        return {"choices": [choice | self.details(body, ids)], "usage": usage, "model": body["model"]}

    def details(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        if self.kind == "transformers":
            return {}
        if self.kind == "llama_cpp":
            tops = [{"id": 1, "token": token, "logprob": value} for token, value in self.tops.items()]
            rows = [{"id": i, "token": piece(i), "logprob": LOGPROB, "top_logprobs": tops} for i in ids]
            return {"logprobs": {"content": rows}}
        echoed = list(body["prompt"]) if body.get("echo") else []
        told = [None, *(-i / 100 for i in echoed[1:])] if echoed else []
        logprobs = {
            "tokens": [piece(i) for i in echoed + ids],
            "token_logprobs": told + [LOGPROB] * len(ids),
            "top_logprobs": [self.tops for _ in ids],
        }
        return {"token_ids": ids, "logprobs": logprobs}

    def read(self, body: dict[str, Any]) -> tuple[list[int], str]:
        rng = random.Random(f"{body['prompt']} {body.get('seed')}")
        keeps = body.get("include_stop_str_in_output") or body.get("no_stop_trim")
        ids: list[int] = []
        while len(ids) < body["max_tokens"]:
            ids.append(END if rng.random() < 0.1 else rng.choice(WORDS))
            if ids[-1] == 202:
                ids.append(203)
            if ids[-1] == END or (keeps and any(stop in spell(ids) for stop in body.get("stop") or [])):
                return ids[: body["max_tokens"]], "stop" if len(ids) <= body["max_tokens"] else "length"
        return ids[: body["max_tokens"]], "length"


def logit(ids: list[int]) -> float:
    return (sum(ids) * len(ids)) % 41 / 10 - 2


def piece(token: int) -> str:
    return "<end>" if token == END else PIECES.get(token) or chr(token)


def spell(ids: list[int]) -> str:
    return "".join(map(piece, ids)).replace("\ufffd\ufffd", "é")


def _name(body: dict[str, Any]) -> Any:
    return tuple(body["prompt"]) if isinstance(body["prompt"], list) else body["prompt"]


async def reset(request: web.Request, _: Any) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def silence(request: web.Request, reply: Any) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.json_response(reply)


async def truncated(request: web.Request, reply: Any) -> web.StreamResponse:
    return web.Response(text=json.dumps(reply)[:-20], content_type="application/json")


def _status(status: int, **headers: str) -> Any:
    async def fault(request: web.Request, reply: Any) -> web.StreamResponse:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text="try later", headers=names)

    return fault


def _spoilt(**change: Any) -> Any:
    async def fault(request: web.Request, reply: Any) -> web.StreamResponse:
        reply["choices"][0] |= change
        return web.json_response(reply)

    return fault


def _pooled(change: Any) -> Any:
    async def fault(request: web.Request, reply: Any) -> web.StreamResponse:
        reply["data"][0]["data"] = change(reply["data"][0]["data"])
        return web.json_response(reply)

    return fault


async def html(request: web.Request, reply: Any) -> web.StreamResponse:
    return web.Response(text="<html>busy</html>", content_type="text/html")


async def empty(request: web.Request, reply: Any) -> web.StreamResponse:
    return web.json_response(reply | {"choices": []})


async def denied(request: web.Request, reply: Any) -> web.StreamResponse:
    return web.Response(status=401, text=f"wrong key: {request.headers.get('Authorization')}")


async def error_object(request: web.Request, reply: Any) -> web.StreamResponse:
    return web.json_response({"error": {"message": "engine is dead"}})


FAULTS = {
    "500": _status(500),
    "400": _status(400),
    "401": denied,
    "429": _status(429, Retry_After="0.3"),
    "429 later": _status(429, Retry_After="1000"),
    "reset": reset,
    "silence": silence,
    "truncated": truncated,
    "html": html,
    "empty": empty,
    "error": error_object,
    "null": _spoilt(text=None),
    "abort": _spoilt(finish_reason="abort"),
    "one token less": _pooled(lambda data: data[1:]),
    "no data": _pooled(lambda data: None),
    "words": _pooled(lambda data: ["right"] * len(data)),
    "nan": _pooled(lambda data: [[float("nan")] for _ in data]),
    "too many labels": _pooled(lambda data: [[0.0] * 5 for _ in data]),
    "no ids": _spoilt(token_ids=[]),
    "no form": _spoilt(logprobs={"tokens": 5}),
    "no numbers": _spoilt(logprobs={"tokens": ["a"], "token_logprobs": [None]}, token_ids=[97]),
}


async def _serve(arguments: argparse.Namespace) -> None:
    stub = Stub(arguments.kind, arguments.delay, host=arguments.host, fixed=arguments.fixed)
    sys.stdout.write(f"{await stub.start(arguments.port)}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--kind", default="transformers")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds a request takes")
    parser.add_argument("--fixed", action="store_true", help="always the same reply, as fast as can be")
    asyncio.run(_serve(parser.parse_args()))
