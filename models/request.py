"""The vocabulary between strategies and engines: what can be asked of a model, and what it answers.

Three requests exist. `Sample` draws continuations of a prompt, `Score` reads the log-probabilities of a given
continuation, `Probe` appends a question to a response and reads the probabilities of a few target tokens. A strategy
yields them (`extratime.evaluate.program`); the scheduler turns `Sample` into one `Draw` per element of a named stream
and hands `Draw`, `Score` and `Probe` to an `Engine`.

Units: log-probabilities are natural logarithms; counts are tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol, TypeAlias

Finish: TypeAlias = Literal["eos", "until", "pause", "length", "cut", "stopped", "failed"]
"""Why a completion ends where it does.

eos: the model ended it. until: a terminal stop string of the task (dropped from the text). pause: a separator at which
the reader wanted to look (kept in the text). length: the reader's `max_tokens`. cut: the cell's budget. stopped: a
controller found the path hopeless, and nothing more of it can be read. failed: the engine gave up on this draw;
`Completion.error` says why.
"""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model reads.

    Attributes:
        text: the rendered prompt.
        ids: its token ids where they are known, else None.
    """

    text: str
    ids: tuple[int, ...] | None = None

    def then(self, completion: Completion) -> Prompt:
        """This prompt followed by what `completion` says, so that others can continue from there."""
        told = bool(completion.tokens or not completion.text)
        ids = self.ids + completion.tokens if self.ids is not None and told else None
        return Prompt(self.text + completion.text, ids)


@dataclass(frozen=True, slots=True)
class Sampling:
    """A sampling law: together with an engine and a prompt it names one stream of i.i.d. token paths.

    Attributes:
        temperature: 0 means greedy.
        top_p: nucleus mass in (0, 1]; 1 is off.
        top_k: 0 is off.
        min_p: smallest probability relative to the largest; 0 is off.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and ≥ 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if self.top_k < 0 or not 0 <= self.min_p < 1:
            raise ValueError(f"top_k must be ≥ 0 and min_p in [0, 1), not {self.top_k} and {self.min_p}")

    def at(self, temperature: float) -> Sampling:
        """The same law at another temperature; at 0 nothing else matters."""
        return replace(self, temperature=temperature) if temperature else Sampling(0)

    def in_blocks(self, block: int) -> Sampling:
        """The same law with blocks of so many tokens; a model that writes left to right knows none."""
        return self

    @property
    def greedy(self) -> bool:
        """Whether the law has a single outcome."""
        return self.temperature == 0 or self.top_k == 1


class Path(NamedTuple):
    """The name of one token path: a stream, the lane in it, and the place in the lane."""

    stream: str
    lane: tuple[int, ...]
    place: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A path as far as it was read.

    Attributes:
        prompt: what it continues.
        text: everything read so far (a terminal stop string is left out, a pause is kept).
        n_tokens: tokens read so far, the end token included.
        tokens: their ids without the end token; empty where the engine does not tell ids.
        logprobs: log-probability of each token read under the model itself (temperature 1, nothing cut off).
        tempered: the same under the sampling law; equal to `logprobs` where the law is the model itself.
        finish: why it ends here.
        sampling: the law it was drawn under.
        path: where its last part comes from; needed to read on.
        stem: how many tokens and characters at the beginning come from elsewhere: a path that branched off another
            response begins after its stem.
        error: what went wrong, if `finish` is "failed".
    """

    prompt: Prompt
    text: str
    n_tokens: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    tempered: tuple[float, ...] = ()
    finish: Finish = "eos"
    sampling: Sampling | None = None
    path: Path | None = None
    stem: tuple[int, int] = (0, 0)
    error: str = ""

    @property
    def finished(self) -> bool:
        """Whether the response is complete: the model or the task ended it."""
        return self.finish in ("eos", "until")

    @property
    def readable(self) -> bool:
        """Whether there may be more of this path to read."""
        return self.finish in ("pause", "length")


@dataclass(frozen=True, slots=True)
class Sample:
    """Ask for `n` continuations of `prompt`, or to read further along given ones.

    What is None is the cell's own setting (the task's stops, the recipe's sampling law and length).

    Attributes:
        prompt: what to continue.
        n: how many fresh paths; ignored where `along` is given.
        temperature: in place of the law's own; its other settings stay.
        pause: stop reading right after the first of these strings that is new.
        max_tokens: read at most so many tokens of each path, counted from the path's beginning.
        along: completions to read on, in place of fresh paths; finished ones come back as they are. A completion that
            stands here a second time, or comes from a sibling program, gets a fresh continuation.
        role: which engine draws. All but the policy have a law of their own (the model itself, at `temperature`), heed
            no stops of the task, and are no part of the budget.
        block: tokens of a block, in place of the law's own, where a masked-diffusion model draws.
    """

    prompt: Prompt
    n: int = 1
    temperature: float | None = None
    pause: tuple[str, ...] = ()
    max_tokens: int | None = None
    along: tuple[Completion, ...] = ()
    role: str = "policy"
    block: int | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Ask the engine of a role to weigh `continuation` after `prompt`.

    A language model answers with the log-probability of each token, a reward model with one reward per step (one
    number in all for an outcome reward model).

    Attributes:
        role: which engine answers: "policy", "verifier", "judge" or another name of the recipe.
        question: what the user asked, for a reward model that renders it in its own way; "" where the prompt is it.
    """

    prompt: Prompt
    continuation: str
    role: str = "verifier"
    question: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask for P(target | prompt, response, question) of each of a few single-token targets.

    Attributes:
        completion: the response asked about, whole or partial; its tokens are read from the cache where possible.
        question: appended after the response.
        targets: strings of one token each. The reply holds their probabilities under the full softmax.
        adapter: the adapter that is active from the question on, or None for the plain model.
    """

    completion: Completion
    question: str
    targets: tuple[str, ...]
    adapter: str | None = None
    role: str = "verifier"


Request: TypeAlias = Sample | Score | Probe


@dataclass(frozen=True, slots=True)
class Draw:
    """One path to read: what an engine gets for one element of a `Sample`.

    Attributes:
        prompt: what the path continues.
        seed: 64-bit key of the path's randomness; token t of the path uses (seed, t) and nothing else.
        sampling: the law.
        have: token ids of the path that are already known (the engine continues after them).
        have_text: their text (for engines that take no ids).
        until: terminal stop strings.
        pause: separators to stop after; only an occurrence that ends after `have_text` counts.
        max_tokens: length of the path at which to stop, `have` included.
    """

    prompt: Prompt
    seed: int
    sampling: Sampling
    max_tokens: int
    have: tuple[int, ...] = ()
    have_text: str = ""
    until: tuple[str, ...] = ()
    pause: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine really did for one ticket, or in all.

    Attributes:
        prefill: prompt tokens that went through the model.
        decode: tokens generated, one forward pass each.
        cached: prompt tokens that were found in the KV cache and did not go through the model again.
        pairs: query-key pairs of attention over prefill and decode: Σ over processed tokens of their context length.
        decode_pairs: the share of `pairs` in decoding; proportional to KV-cache bytes read.
        skipped: layers that tokens left out by early exit, summed over tokens; keys and values were made all the same.
        skipped_pairs: query-key pairs of those layers, each counted once a layer.
    """

    prefill: int = 0
    decode: int = 0
    cached: int = 0
    pairs: int = 0
    decode_pairs: int = 0
    skipped: int = 0
    skipped_pairs: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.prefill + other.prefill,
            self.decode + other.decode,
            self.cached + other.cached,
            self.pairs + other.pairs,
            self.decode_pairs + other.decode_pairs,
            self.skipped + other.skipped,
            self.skipped_pairs + other.skipped_pairs,
        )


@dataclass(frozen=True, slots=True)
class Drawn:
    """What an engine read along one path: only what is new after `Draw.have`.

    Attributes:
        tokens: new token ids, the end token left out; empty where the engine tells none.
        text: new text. It may run past a stop string: the reader cuts it.
        ends: for each new token the length of the stable text after it, counted from the beginning of `text`; one
            entry more than `tokens` if the end token was drawn. Where ids are unknown: one entry a token, estimated.
        logprobs: raw log-probability of each entry of `ends`, or empty.
        tempered: the same under the law, or empty.
        eos: whether the model ended the path here.
        work: what it cost.
        skipped: for each entry of `ends` the layers that its forward pass left out, or empty; one more where a further
            pass found the path hopeless and ended it.
    """

    text: str
    ends: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    tempered: tuple[float, ...] = ()
    eos: bool = False
    work: Work = field(default_factory=Work)
    skipped: tuple[int, ...] = ()

    @property
    def stopped(self) -> bool:
        """Whether a controller ended the path here."""
        return len(self.skipped) > len(self.ends)


@dataclass(frozen=True, slots=True)
class Read:
    """Reply to `Score` (a number per token or step) or `Probe` (the probability of each target)."""

    values: tuple[float, ...]
    work: Work = field(default_factory=Work)


@dataclass(frozen=True, slots=True)
class Failure:
    """The engine could not serve a ticket, after its own retries; `error` names the cause."""

    error: str
    work: Work = field(default_factory=Work)


Reply: TypeAlias = Drawn | Read | Failure


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that decide what a token costs (Kinetics, arXiv 2506.05333).

    Attributes:
        parameters: parameters that every token goes through.
        layers, heads, kv_heads, head_dim: of attention.
        dtype_bytes: bytes of one cached number.
        skippable: parameters of a layer that a token does not go through where it leaves the layer out.
    """

    parameters: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype_bytes: int = 2
    skippable: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """What an engine can do. A recipe that needs what is missing is refused before any work.

    Attributes:
        token_ids: takes prompts as token ids and tells the ids of drawn tokens.
        logprobs: tells log-probabilities of drawn tokens.
        seeds: draws of one seed are repeatable.
        resumes: continues a path after `Draw.have`.
        scores: answers `Score`.
        probes: answers `Probe`.
        max_context: longest prompt plus response in tokens, or None if not known.
        concurrency: draws it works on at a time; submitting more is fine.
        shape: sizes of the model, or None if not known.
    """

    token_ids: bool = True
    logprobs: bool = True
    seeds: bool = True
    resumes: bool = True
    scores: bool = True
    probes: bool = True
    max_context: int | None = None
    concurrency: int = 64
    shape: Shape | None = None


class Engine(Protocol):
    """Something that answers requests. `submit` never blocks; `poll` blocks until at least one reply is there."""

    fingerprint: str
    """Names the weights, adapter and numeric type: equal fingerprints draw from equal streams."""
    profile: Profile
    adapters: Mapping[str, str]
    """Adapters that a `Probe` may name, each with its own fingerprint."""
    counts: Work
    """Everything this engine has done, counted where it happens."""
    seconds: dict[str, float]
    """Measured seconds by kind of work: "prefill", "decode"."""

    def encode(self, text: str) -> Prompt:
        """`text` as this engine reads it."""
        ...

    def submit(self, ticket: Hashable, request: Draw | Score | Probe) -> None:
        """Take on a request; its reply will carry `ticket`."""
        ...

    def cancel(self, ticket: Hashable) -> Reply | None:
        """Stop working on a ticket.

        Returns:
            What was already read of it and what it cost, or None if it was never started. No other reply follows.
        """
        ...

    def poll(self) -> Sequence[tuple[Hashable, Reply]]:
        """Wait for replies. Empty only if nothing is submitted."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


def fail(completion: Completion, error: str) -> Completion:
    """`completion` marked as failed, with what it had kept."""
    return replace(completion, finish="failed", error=error)
