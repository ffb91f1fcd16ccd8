"""The ledger: tokens, FLOPs, KV-cache bytes and seconds, charged by the scheduler, never by a strategy.

Two accounts. *Computed* is what a run really did, by role, and equals the engines' own counts. *Read* is what one cell
would cost alone, under a stated cache model: an unlimited prefix cache (each prompt token goes through the model once
per cell), or none (every request reads its whole prefix again).

FLOPs and bytes follow Kinetics (arXiv 2506.05333) in exact form: 2·P per token plus 4·H·d per query-key pair, where
d = head size × layers; decoding reads 2·Hk·d cached numbers per pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import NamedTuple

from extratime.models.request import Path, Shape, Work
from extratime.models.unmasking import Unmasking


class Cost(NamedTuple):
    """What a cell reads; costs add up count by count.

    Attributes:
        generated: policy tokens generated.
        judged: tokens that other roles generated, such as a judge's reasoning.
        sequential: forward passes on the longest chain of dependent draws: one a token, or one a step of unmasking.
        prefill: other tokens read with an unlimited prefix cache: prompts once, questions, continuations.
        prefill_uncached: the same with no cache at all.
        pairs: query-key pairs over generated, judged and prefill tokens.
        decode_pairs: those of generated and judged tokens.
        pairs_uncached: query-key pairs with no cache at all.
        requests: replies received.
        skipped: layers that generated tokens left out, summed over tokens (`extratime.models.request.Work`).
        skipped_pairs: query-key pairs of those layers.
    """

    generated: int = 0
    sequential: int = 0
    prefill: int = 0
    prefill_uncached: int = 0
    pairs: int = 0
    decode_pairs: int = 0
    pairs_uncached: int = 0
    requests: int = 0
    judged: int = 0
    skipped: int = 0
    skipped_pairs: int = 0

    @property
    def decoded(self) -> int:
        """Tokens generated, whoever generated them."""
        return self.generated + self.judged

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost._make(map(add, self, other))


def span_pairs(context: int, tokens: int) -> int:
    """Query-key pairs of `tokens` consecutive tokens of which the first sees `context` tokens and itself."""
    return tokens * context + tokens * (tokens + 1) // 2


def flops(shape: Shape, tokens: int, pairs: int, skipped: int = 0, skipped_pairs: int = 0) -> float:
    """Floating-point operations of `tokens` forward passes with `pairs` query-key pairs in all.

    Of `skipped` layers in all, with `skipped_pairs`, only keys and values are made.
    """
    weights = shape.parameters * tokens - shape.skippable * skipped
    return 2.0 * weights + 4.0 * shape.heads * shape.head_dim * (shape.layers * pairs - skipped_pairs)


def kv_bytes(shape: Shape, decode_pairs: int, skipped_pairs: int = 0) -> float:
    """Bytes of KV cache read while decoding, no sharing between rows; `skipped_pairs` of layers left out are not."""
    read = shape.layers * decode_pairs - skipped_pairs
    return 2.0 * shape.dtype_bytes * shape.kv_heads * shape.head_dim * read


def eflops(shape: Shape, prompt: int, generated: int, n: int, intensity: float) -> float:
    """EFLOPs of `n` parallel samples of one prompt whose KV cache they share (Kinetics, cost model).

    Args:
        shape: of the model.
        prompt: prompt tokens.
        generated: tokens of each sample.
        n: samples.
        intensity: FLOP/s divided by byte/s of the machine (562.5 for a B200 at sparse peak).
    """
    width = shape.head_dim * shape.layers
    compute = n * (2.0 * shape.parameters * generated + 2 * (2 * prompt + generated) * generated * shape.heads * width)
    memory = shape.dtype_bytes * (2 * prompt + n * generated) * generated * shape.kv_heads * width
    return compute + intensity * memory


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds per token of an engine, calibrated on a run; cells' seconds modelled from them are labelled so."""

    prefill: float
    decode: float

    def seconds(self, prefill: int, decode: int) -> float:
        """Modelled seconds of a cell's share."""
        return self.prefill * prefill + self.decode * decode


def rates(counts: Work, seconds: Mapping[str, float]) -> Rates:
    """Calibrate from what an engine did and how long it took; 0 for a kind of work that it did not do."""
    return Rates(
        seconds.get("prefill", 0.0) / counts.prefill if counts.prefill else 0.0,
        seconds.get("decode", 0.0) / counts.decode if counts.decode else 0.0,
    )


@dataclass(slots=True)
class Meter:
    """Adds up what one cell reads.

    Attributes:
        cap: policy tokens that the cell may generate.
        extents: how far each path was read.
        seen: streams and questions whose prompts the cell has read.
    """

    cap: int
    cost: Cost = field(default_factory=Cost)
    extents: dict[Path, int] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def fork(self, n: int) -> Meter:
        """A meter for one of `n` programs that run side by side: an equal share of what is left."""
        return Meter(self.left // n, seen=self.seen)

    def join(self, forks: Sequence[Meter]) -> None:
        """Take over what side-by-side programs read; the longest chain among them counts as sequential."""
        chain = max((fork.cost.sequential for fork in forks), default=0)
        for fork in forks:
            self.cost += fork.cost._replace(sequential=0)
        self.cost += Cost(sequential=chain)

    @property
    def left(self) -> int:
        """Policy tokens that may still be generated."""
        return max(0, self.cap - self.cost.generated)

    def draw(
        self, path: Path, prompt: int, stem: int, tokens: int, policy: bool = True, skipped: Sequence[int] = ()
    ) -> int:
        """Charge reading `path` up to `tokens`; returns how many of them are new to the cell.

        Args:
            path: the path.
            prompt: tokens of the problem's prompt.
            stem: tokens of the response that the path branched off from; the cell has read them already.
            tokens: length read, from the path's beginning.
            policy: whether the policy drew it; other roles' tokens are no part of the budget.
            skipped: layers that each of its tokens left out, if any did; one more for a pass that gave it up.
        """
        have = self.extents.get(path, 0)
        passes = max(tokens, len(skipped))
        new, ran = max(0, tokens - have), max(0, passes - have)
        context = prompt + stem
        fresh = 0 if stem or path.stream in self.seen else prompt
        self.seen.add(path.stream)
        self.extents[path] = max(have, passes)
        reread = context + have
        pairs = span_pairs(reread, ran)
        self.cost += Cost(
            generated=new if policy else 0,
            judged=0 if policy else new,
            prefill=fresh + ran - new,
            prefill_uncached=reread + ran - new,
            pairs=pairs + span_pairs(0, fresh),
            decode_pairs=pairs,
            pairs_uncached=pairs + span_pairs(0, reread),
            requests=1,
        )
        if skipped:
            self.cost += _left_out(skipped[have:], reread)
        return new

    def unmask(self, path: Path, law: Unmasking, context: int, tokens: int) -> int:
        """Charge reading a path of a masked-diffusion model; returns how many steps are new to the cell.

        Each step sends the context and all masks through the model, every token sees every other, and no cache helps.

        Args:
            path: the path.
            law: how it is unmasked.
            context: tokens before the path.
            tokens: length read, from the path's beginning.
        """
        have = self.extents.get(path, 0)
        self.extents[path] = max(have, tokens)
        new = max(0, tokens - have)
        steps, width = max(0, law.passes(tokens) - law.passes(have)), context + law.length
        others, pairs = steps * width - new, steps * width**2
        self.cost += Cost(
            generated=new, prefill=others, prefill_uncached=others, pairs=pairs, pairs_uncached=pairs, requests=1
        )
        return steps

    def question(self, key: str, context: int, tokens: int) -> None:
        """Charge reading `tokens` after a context that the model has already read; asking again is in the cache."""
        fresh = 0 if key in self.seen else tokens
        self.seen.add(key)
        pairs = span_pairs(context, fresh)
        self.cost += Cost(
            prefill=fresh,
            prefill_uncached=context + tokens,
            pairs=pairs,
            pairs_uncached=span_pairs(0, context + tokens),
            requests=1,
        )


def _left_out(skipped: Sequence[int], context: int) -> Cost:
    """What tokens did not go through: layers of each, of which the first sees `context` tokens and itself."""
    pairs = sum(layers * seen for seen, layers in enumerate(skipped, context + 1))
    return Cost(skipped=sum(skipped), skipped_pairs=pairs)


@dataclass(slots=True)
class Ledger:
    """What a run computed, by role."""

    computed: dict[str, Work] = field(default_factory=dict)

    def charge(self, role: str, work: Work) -> None:
        """Add one reply's work."""
        self.computed[role] = self.computed.get(role, Work()) + work

    def total(self, roles: Iterable[str] | None = None) -> Work:
        """Work of some roles, or of all."""
        return sum((self.computed.get(r, Work()) for r in (roles or self.computed)), Work())
