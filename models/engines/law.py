"""Sampling laws, row by row: a token and its log-probabilities from logits and one uniform.

The law is the softmax of logits / temperature, cut first to the `top_k` likeliest tokens, then to the smallest set of
likeliest tokens whose mass reaches `top_p`, then to the tokens at least `min_p` times as likely as the likeliest. A
token is drawn by inverting the cumulative distribution in vocabulary order, so that a row's draw depends on its own
logits and uniform alone. Tokens that tie with the last one kept are kept too: with bfloat16 logits ties are common,
and which of them a sort would drop is an accident.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from extratime.models.request import Sampling

Heat: TypeAlias = Callable[[Tensor], Tensor]
"""From logits [rows, vocabulary] to a temperature a row."""

_HEAD = 1024
"""Likeliest tokens that are sorted before the whole vocabulary is; they nearly always hold the nucleus."""


@dataclass(frozen=True, slots=True)
class Laws:
    """The laws of the rows of a batch, as columns of shape [rows, 1].

    Attributes:
        scale: 1 / temperature; 1 for greedy rows.
        greedy, plain: rows with a single outcome; rows whose law is the model itself.
        top_k, top_p, log_min_p: None where no row uses them.
    """

    scale: Tensor
    greedy: Tensor
    plain: Tensor
    top_k: Tensor | None
    top_p: Tensor | None
    log_min_p: Tensor | None
    all_greedy: bool
    all_plain: bool

    @classmethod
    def of(cls, samplings: Sequence[Sampling], device: torch.device) -> Laws:
        """Columns for `samplings`, one row each."""

        def column(values: Sequence[float | int | bool]) -> Tensor:
            return torch.tensor(values, device=device)[:, None]

        greedy = [s.greedy for s in samplings]
        plain = [s == Sampling() for s in samplings]
        free = [s for s in samplings if not s.greedy]
        return cls(
            scale=column([1.0 if s.greedy else 1.0 / s.temperature for s in samplings]),
            greedy=column(greedy),
            plain=column(plain),
            top_k=column([s.top_k for s in samplings]) if any(s.top_k for s in free) else None,
            top_p=column([s.top_p for s in samplings]) if any(s.top_p < 1 for s in free) else None,
            log_min_p=column([math.log(s.min_p) if s.min_p else -math.inf for s in samplings])
            if any(s.min_p for s in free)
            else None,
            all_greedy=all(greedy),
            all_plain=all(plain),
        )


def pick(logits: Tensor, laws: Laws, uniform: Tensor, heat: Heat | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: [rows, vocabulary], float32.
        laws: the law of each row.
        uniform: [rows], in [0, 1).
        heat: gives each row a temperature of its own, by which the law's is multiplied.

    Returns:
        Token ids, their log-probability under the model itself, and under the law (0 for greedy rows), each [rows].
    """
    if laws.all_greedy:
        tokens = logits.argmax(-1, keepdim=True)
        raw = _log_prob(logits, tokens)
        return tokens[:, 0], raw, torch.zeros_like(raw)
    warm = logits / heat(logits)[:, None] if heat else logits
    scaled = warm if laws.all_plain else cut(warm * laws.scale, laws)
    probabilities = scaled.softmax(-1)
    tokens = _invert(probabilities, uniform)
    tempered = probabilities.gather(1, tokens).log()[:, 0]
    if laws.all_plain and not heat:
        return tokens[:, 0], tempered, tempered
    if laws.greedy.any():
        tokens = torch.where(laws.greedy, logits.argmax(-1, keepdim=True), tokens)
        tempered = tempered.masked_fill(laws.greedy[:, 0], 0.0)
    raw = _log_prob(logits, tokens)
    return tokens[:, 0], raw, tempered if heat else torch.where(laws.plain[:, 0], raw, tempered)


def cut(scaled: Tensor, laws: Laws) -> Tensor:
    """`scaled` logits [rows, vocabulary] with -inf where a law drops the token."""
    if laws.top_k is not None:
        scaled = scaled.masked_fill(scaled < _kth(scaled, laws.top_k), -math.inf)
    if laws.top_p is not None:
        scaled = scaled.masked_fill(scaled < _nucleus(scaled, laws.top_p), -math.inf)
    if laws.log_min_p is not None:
        scaled = scaled.masked_fill(scaled < scaled.amax(-1, keepdim=True) + laws.log_min_p, -math.inf)
    return scaled


def _kth(scaled: Tensor, top_k: Tensor) -> Tensor:
    widest = min(int(top_k.max()), scaled.shape[-1])
    best = scaled.topk(widest).values.gather(1, (top_k - 1).clamp(0, widest - 1))
    return best.masked_fill(top_k == 0, -math.inf)


def _nucleus(scaled: Tensor, top_p: Tensor) -> Tensor:
    """The smallest logit inside each row's nucleus."""
    size = scaled.shape[-1]
    whole = scaled.logsumexp(-1, keepdim=True)
    for width in (min(_HEAD, size), size):
        best = scaled.topk(width).values
        mass = (best - whole).exp().cumsum(-1)
        if width == size or bool(((mass[:, -1:] >= top_p) | (top_p >= 1)).all()):
            break
    last = (mass < top_p).sum(-1, keepdim=True).clamp(max=width - 1)
    return best.gather(1, last).masked_fill(top_p >= 1, -math.inf)


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    heap = probabilities.cumsum(-1)
    total = heap[:, -1:]
    # A product rounded up to the total would fall behind the last token that has any mass.
    below = torch.nextafter(total, torch.zeros_like(total))
    return torch.searchsorted(heap, torch.minimum(uniform[:, None].to(total.dtype) * total, below), right=True)


def _log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    return (logits.gather(1, tokens) - logits.logsumexp(-1, keepdim=True))[:, 0]
