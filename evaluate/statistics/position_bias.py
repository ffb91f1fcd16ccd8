"""How much a pairwise judge hangs on the order of what it compares (arXiv 2505.10320).

Accuracy in one order lies: a judge that always prefers the first response is right every time in that order. So each
pair is judged in both orders, and counts as consistent only if the better response is named in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Verdict = int | None
"""0 prefers the first response, 1 the second, None neither."""


@dataclass(frozen=True, slots=True)
class PositionBias:
    """Shares of pairs, or of verdicts; a missing verdict is not right.

    Attributes:
        accuracy: right verdicts, over both orders.
        accuracy_first: right verdicts where the better response comes first.
        accuracy_second: right verdicts where it comes second.
        consistent: pairs whose better response is named in both orders.
        flips: pairs with two verdicts that name different responses in the two orders.
        parsed: judgements that have a verdict.
    """

    accuracy: float
    accuracy_first: float
    accuracy_second: float
    consistent: float
    flips: float
    parsed: float


def position_bias(first: Sequence[Verdict], second: Sequence[Verdict]) -> PositionBias:
    """Sum up the verdicts on pairs in both orders.

    Args:
        first: verdict on each pair where the better response comes first.
        second: verdict on the same pairs where it comes second.

    Raises:
        ValueError: there is no pair, or not as many of one as of the other.
    """
    pairs = list(zip(first, second, strict=True))
    if not pairs:
        raise ValueError("no pairs to measure a position bias on")
    n = len(pairs)
    right_first, right_second = sum(a == 0 for a, _ in pairs), sum(b == 1 for _, b in pairs)
    return PositionBias(
        accuracy=(right_first + right_second) / (2 * n),
        accuracy_first=right_first / n,
        accuracy_second=right_second / n,
        consistent=sum(a == 0 and b == 1 for a, b in pairs) / n,
        flips=sum(a is not None and a == b for a, b in pairs) / n,
        parsed=sum((a is not None) + (b is not None) for a, b in pairs) / (2 * n),
    )
