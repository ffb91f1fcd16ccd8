"""The law of a masked-diffusion language model that writes block by block (LLaDA, arXiv 2502.09992).

A response begins as `length` masks and is written in blocks from left to right. Within a block the model reads the
whole text in each step, proposes a token for each mask, and the proposals it is surest of stay: `steps` steps over all
blocks, the same number in each. Blocks of one token write left to right, a single block in any order. So the block is
part of the law, and with it part of the name of a stream.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from extratime.models.request import Sampling

Confidence: TypeAlias = Literal["low_confidence", "topk_margin", "random"]


@dataclass(frozen=True, slots=True)
class Unmasking(Sampling):
    """A schedule of unmasking, and the law of each proposal.

    Attributes:
        length: masks that a response begins with.
        block: tokens of a block; divides `length`.
        steps: in all; published: half of `length`, two tokens a step. None takes that, or one step a block.
        confidence: which proposals stay. `low_confidence`: the most probable (those of low confidence are masked
            again); `topk_margin`: where the likeliest token is furthest ahead of the second; `random`: any.

    Raises:
        ValueError: the block does not divide the length, or its steps are no whole number between 1 and its tokens.
    """

    length: int = 256
    block: int = 32
    steps: int | None = None
    confidence: Confidence = "low_confidence"

    def __post_init__(self) -> None:
        # slots=True makes a new class, which super() without arguments would not find
        super(Unmasking, self).__post_init__()
        if self.confidence not in ("low_confidence", "topk_margin", "random"):
            raise ValueError(f"confidence must be low_confidence, topk_margin or random, not {self.confidence!r}")
        if self.length < 1 or self.block < 1 or self.length % self.block:
            raise ValueError(f"blocks of {self.block} tokens do not fill a length of {self.length}")
        each, left_over = divmod(self.total, self.blocks)
        if left_over or not 1 <= each <= self.block:
            raise ValueError(
                f"{self.total} steps cannot be shared by {self.blocks} blocks of {self.block} tokens: "
                f"each block needs a whole number of steps between 1 and {self.block}; set sampling.steps"
            )

    @property
    def blocks(self) -> int:
        """Blocks of a full response."""
        return self.length // self.block

    @property
    def total(self) -> int:
        """Steps of a full response, one forward pass each."""
        return max(self.length // 2, self.blocks) if self.steps is None else self.steps

    @property
    def counts(self) -> list[int]:
        """Tokens that stay in each step of a block; the first steps take what is left over."""
        n = self.total // self.blocks
        return [self.block // n + (i < self.block % n) for i in range(n)]

    def passes(self, tokens: int) -> int:
        """Steps until so many tokens can be read: all those of each block that they reach into."""
        return -(-tokens // self.block) * len(self.counts)

    @property
    def proposal(self) -> Sampling:
        """The law of one proposal, whichever of them stay."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.min_p)

    def at(self, temperature: float) -> Sampling:
        """The same law at another temperature; at 0 the cuts do not matter, the schedule does."""
        whole = self if temperature else replace(self, top_p=1.0, top_k=0, min_p=0.0)
        return replace(whole, temperature=temperature)

    def in_blocks(self, block: int) -> Sampling:
        """The same law with blocks of so many tokens."""
        return replace(self, block=block)

    @property
    def greedy(self) -> bool:
        """Whether the law has a single outcome."""
        return (self.temperature == 0 or self.top_k == 1) and self.confidence != "random"
