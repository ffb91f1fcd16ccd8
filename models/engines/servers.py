"""What OpenAI-compatible servers can do, and how each one says it.

A `Server` is a profile: which fields a request may carry, what a reply tells, how a sampling law is spelt. Every law
is spelt out in full, because a server fills what is left out from the model's own generation defaults, and then draws
from another law than the one that names the stream.

Each draw is a request of its own (`n` is never sent): every path has its own seed, and servers share the prompt's
prefix between requests anyway.

Deviations that a server forces on us:

- transformers takes text and tells text: a path is drawn in one piece, since to go on after a text would be to go on
  after other tokens. It adds its tokenizer's special tokens to a prompt, and calls an end that falls on the last token
  allowed a cut. It seeds one global generator for all requests: a seed holds only while requests come one at a time,
  so that is its concurrency.
- SGLang honours seeds only with `--enable-deterministic-inference`, and its log-probabilities are those after the
  temperature: at another temperature than 1 they are not reported as the model's.
- llama.cpp drops a matched stop string and transformers may stop in the middle of a token: these get no stop strings,
  draws run to the end and the reader cuts them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from math import exp
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from extratime.models.request import Draw, Drawn, Sampling, Work

T = TypeVar("T")
Json: TypeAlias = dict[str, Any]


class Told(NamedTuple):
    """What a reply tells token by token, the end token included where it was drawn."""

    ids: list[int]
    pieces: list[str]
    logprobs: list[float]


class BrokenReply(ValueError):
    """A reply that is not what the protocol promises; `work` is what it cost all the same."""

    def __init__(self, error: str, work: Work | None = None) -> None:
        super().__init__(error)
        self.work = work or Work()


class Unanswerable(LookupError):
    """A reply in order that does not hold what was wanted, and never will; `work` is what it cost all the same."""

    def __init__(self, error: str, work: Work) -> None:
        super().__init__(error)
        self.work = work


@dataclass(frozen=True, slots=True)
class Server:
    """One kind of server.

    Attributes:
        name: how recipes call it.
        law: spells a sampling law in the server's fields.
        told: reads ids, texts and log-probabilities of the drawn tokens off a choice; None if the server tells none.
        tops: reads the most likely tokens at the first drawn position off a choice.
        top: how many of them it tells; 0 answers no `Probe`.
        top_field: the field that asks for them, and for the log-probabilities of drawn tokens.
        logprobs: whether they are the model's own ("raw") or those after the temperature ("tempered").
        keep_stop: the field that keeps a matched stop string in the text; None sends no stop strings.
        text_field: the field of `POST /tokenize` that holds the text; None sends prompts as text, and then a path is
            not continued.
        scores: answers with the log-probabilities of a given continuation.
        seeds: draws of one seed are repeatable.
        serial_seeds: only while requests come one at a time.
        seed_bits: size of a seed.
        concurrency: requests it is sent at a time unless the user says otherwise.
        lists: `/v1/models` names what is served.
        fields: sent with every draw.
    """

    name: str
    law: Callable[[Sampling], Json]
    told: Callable[[Json], Told] | None = None
    tops: Callable[[Json], Mapping[str, float]] | None = None
    top: int = 0
    top_field: str = "logprobs"
    logprobs: Literal["raw", "tempered", "none"] = "none"
    keep_stop: str | None = None
    text_field: str | None = None
    scores: bool = False
    seeds: bool = True
    serial_seeds: bool = False
    seed_bits: int = 31
    concurrency: int = 64
    lists: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)


@lru_cache
def _law(sampling: Sampling) -> Json:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
    }


@lru_cache
def _llama_cpp_law(sampling: Sampling) -> Json:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": 1.0,
        "samplers": ["temperature", "top_k", "top_p", "min_p"],
    }


@lru_cache
def _transformers_law(sampling: Sampling) -> Json:
    config: Json = {"do_sample": not sampling.greedy, "repetition_penalty": 1.0}
    if not sampling.greedy:
        config |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        config |= {"min_p": sampling.min_p} if sampling.min_p else {}
    return {"generation_config": json.dumps(config)}


def _listed(choice: Json) -> Told:
    logprobs = choice.get("logprobs") or {}
    return Told(
        list(map(int, choice.get("token_ids") or ())),
        list(map(str, logprobs.get("tokens") or ())),
        list(map(float, logprobs.get("token_logprobs") or ())),
    )


def _listed_tops(choice: Json) -> Mapping[str, float]:
    tops = (choice.get("logprobs") or {}).get("top_logprobs") or [{}]
    return {token: float(value) for token, value in tops[0].items()}


def _content(choice: Json) -> Told:
    rows = (choice.get("logprobs") or {}).get("content") or []
    return Told([int(r["id"]) for r in rows], [str(r["token"]) for r in rows], [float(r["logprob"]) for r in rows])


def _content_tops(choice: Json) -> Mapping[str, float]:
    rows = (choice.get("logprobs") or {}).get("content") or [{"top_logprobs": []}]
    return {top["token"]: float(top["logprob"]) for top in rows[0]["top_logprobs"]}


SERVERS: Mapping[str, Server] = {
    server.name: server
    for server in (
        Server(
            "vllm",
            _law,
            told=_listed,
            tops=_listed_tops,
            top=20,
            logprobs="raw",
            keep_stop="include_stop_str_in_output",
            text_field="prompt",
            scores=True,
            seed_bits=63,
            fields={"logprobs": 1, "return_token_ids": True, "add_special_tokens": False},
        ),
        Server(
            "sglang",
            _law,
            told=_listed,
            tops=_listed_tops,
            top=20,
            logprobs="tempered",
            keep_stop="no_stop_trim",
            text_field="prompt",
            seeds=False,
            fields={"logprobs": 1, "return_token_ids": True},
        ),
        Server(
            "llama_cpp",
            _llama_cpp_law,
            told=_content,
            tops=_content_tops,
            top=64,
            top_field="n_probs",
            logprobs="raw",
            text_field="content",
            concurrency=8,
            fields={"n_probs": 1},
        ),
        Server("transformers", _transformers_law, serial_seeds=True, concurrency=1, lists=False),
    )
}


def tokenize_body(server: Server, model: str, text: str, special: bool) -> Json:
    """What to send to `POST /tokenize`; `special` asks for what the tokenizer puts before any text."""
    name = "add_special" if server.text_field == "content" else "add_special_tokens"
    return {"model": model, str(server.text_field): text, name: special}


def echo_body(model: str, ids: Sequence[int]) -> Json:
    """A completion request that is answered with the log-probabilities of its own prompt (and one token more)."""
    return {"model": model, "prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}


def work(reply: Json) -> Work:
    """What a reply says it cost.

    Raises:
        BrokenReply: it does not say.
    """
    usage: Any = reply.get("usage")
    try:
        prompt, drawn = int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    except (TypeError, AttributeError, LookupError, ValueError) as fault:
        raise BrokenReply(f"the reply tells no usage in tokens but {usage!r:.100}") from fault
    decode_pairs = _pairs(prompt, drawn)
    return Work(prompt - cached, drawn, cached, _pairs(cached, prompt - cached) + decode_pairs, decode_pairs)


def _pairs(context: int, tokens: int) -> int:
    return tokens * context + tokens * (tokens + 1) // 2


def first_choice(reply: Json) -> tuple[Json, str, Work]:
    """The only choice of a reply, its text and what it cost.

    Raises:
        BrokenReply: there is no choice, no text or no regular end.
    """
    cost = work(reply)
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BrokenReply("the reply has no choices", cost)
    choice = choices[0]
    text = choice.get("text")
    if not isinstance(text, str):
        raise BrokenReply("the reply's text is null", cost)
    if choice.get("finish_reason") not in ("stop", "length"):
        raise BrokenReply(f"the reply's finish_reason is {choice.get('finish_reason')!r}", cost)
    return choice, text, cost


def drawn(server: Server, draw: Draw, stops: Sequence[str], reply: Json) -> Drawn:
    """What a reply read along a path.

    Args:
        server: the kind of server that answered.
        draw: what was asked.
        stops: the stop strings that were sent; a matched one is in the text.
        reply: the parsed body.

    Raises:
        BrokenReply: the reply does not hold what the server's profile promises.
    """
    choice, text, cost = first_choice(reply)
    eos = choice["finish_reason"] == "stop" and not any(stop in text for stop in stops)
    if server.told is None:
        return Drawn(text, _even_ends(text, cost.decode, eos), eos=eos, work=cost)
    ids, pieces, logprobs = _parsed(server.told, choice, cost)
    if not len(ids) == len(pieces) == len(logprobs) or (text and not ids):
        raise BrokenReply(
            f"the reply tells {len(ids)} token ids, {len(pieces)} texts, {len(logprobs)} log-probabilities", cost
        )
    if eos:
        ids, pieces = ids[:-1], pieces[:-1]
    text, ends = align(text, pieces, cut=choice["finish_reason"] == "stop" and not eos)
    raw, tempered = _laws(server, draw.sampling, tuple(logprobs))
    return Drawn(text, (*ends, len(text)) if eos else ends, tuple(ids), raw, tempered, eos, cost)


def _parsed(parse: Callable[[Json], T], choice: Json, cost: Work) -> T:
    try:
        return parse(choice)
    except (TypeError, AttributeError, LookupError, ValueError) as fault:
        raise BrokenReply(f"the reply's log-probabilities are out of form ({fault!r})", cost) from fault


def _laws(server: Server, law: Sampling, told: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`told` as log-probabilities under the model and under the law; empty where it is neither."""
    whole = law.top_p == 1 and law.top_k == 0 and law.min_p == 0
    if server.logprobs == "raw":
        return told, told if whole and law.temperature == 1 else ()
    return told if law.temperature in (0, 1) else (), told if whole and law.temperature else ()


def _even_ends(text: str, tokens: int, eos: bool) -> tuple[int, ...]:
    n = max(tokens - eos, 1 if text else 0)
    ends = tuple([len(text) * i // n for i in range(1, n + 1)])
    return (*ends, len(text)) if eos else ends


def align(text: str, pieces: Sequence[str], cut: bool) -> tuple[str, tuple[int, ...]]:
    """The whole text of tokens, and how far it reaches after each of them.

    Args:
        text: what the server says.
        pieces: the text of each token alone; halves of characters and special tokens are not found in `text`.
        cut: `text` ends at a stop string, perhaps in the middle of the last token.

    Returns:
        The text up to the end of the last token, and one length a token.
    """
    joined = "".join(pieces)
    if joined.startswith(text):
        whole = joined if cut else text
        return whole, tuple(min(end, len(whole)) for end in accumulate(map(len, pieces)))
    ends, at, slack = [], 0, 0
    for piece in pieces:
        found = text.find(piece, at, at + slack + len(piece)) if piece else -1
        at, slack = (found + len(piece), 0) if found >= 0 else (at, slack + len(piece))
        ends.append(at)
    if cut and (tail := next((t for t in range(at, len(text)) if pieces[-1].startswith(text[t:])), None)) is not None:
        text = text[:tail] + pieces[-1]
    return text, (*ends[:-1], len(text))


def probabilities(server: Server, targets: Sequence[str], reply: Json) -> tuple[tuple[float, ...], Work]:
    """The probability of each target at the first drawn position.

    A sure judge leaves one verdict no place among the most likely tokens that the server tells. Where another target
    is told, one that is not has the most that it can have: what those told leave, and no more than the least of them.

    Raises:
        Unanswerable: no target is among the most likely tokens that the server tells.
        BrokenReply: the reply tells none.
    """
    choice, _, cost = first_choice(reply)
    tops = _parsed(server.tops, choice, cost) if server.tops else {}
    if not tops:
        raise BrokenReply("the reply tells no most likely tokens", cost)
    if not any(target in tops for target in targets):
        raise Unanswerable(
            f"{list(targets)} not among the {len(tops)} most likely tokens that {server.name} tells", cost
        )
    chances = {token: exp(value) for token, value in tops.items()}
    most = min(max(0.0, 1 - sum(chances.values())), *chances.values())
    return tuple(chances.get(target, most) for target in targets), cost


def echoed(prompt: int, tokens: int, reply: Json) -> tuple[tuple[float, ...], Work]:
    """Log-probabilities of `tokens` tokens after the first `prompt` ones of an echoed prompt.

    Raises:
        BrokenReply: the reply does not hold them.
    """
    choice, _, cost = first_choice(reply)

    def values(choice: Json) -> tuple[float, ...]:
        return tuple(map(float, choice["logprobs"]["token_logprobs"][prompt : prompt + tokens]))

    told = _parsed(values, choice, cost)
    if len(told) != tokens:
        raise BrokenReply(f"the reply tells {len(told)} of {tokens} log-probabilities of the prompt", cost)
    return told, cost
