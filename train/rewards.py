"""Pure functions from rewards to what is learned."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def win_or_tie(rewards: Sequence[float], tolerance: float = 0.0) -> list[float]:
    """How often each response would win or tie against another draw of the same prompt.

    ŵ_i = (1/(n−1)) Σ_{j≠i} 1[R_i ≥ R_j − ε]: the soft label of the self-evaluation token (arXiv 2410.02725). For 0/1
    rewards it is 1 for a right response and, for a wrong one, the share of the others that are wrong too.

    Args:
        rewards: of all draws of one prompt, n ≥ 2.
        tolerance: ε ≥ 0, the largest gap that still is a tie.

    Returns:
        n labels in [0, 1].
    """
    if len(rewards) < 2:
        raise ValueError(f"win-or-tie labels need at least 2 draws of a prompt, not {len(rewards)}")
    if tolerance < 0:
        raise ValueError(f"tolerance must be ≥ 0, not {tolerance}")
    others = len(rewards) - 1
    return [(sum(mine >= theirs - tolerance for theirs in rewards) - 1) / others for mine in rewards]


def consistency(
    right: Sequence[bool], pair: Sequence[Hashable], order: Sequence[int], mean: bool = False
) -> list[float]:
    """Whether a judgement is right and so is its fellow, which saw the same pair in the other order.

    All or nothing (J1, arXiv 2505.10320). How the judgements of one order meet those of the other is not published:
    the i-th meets the i-th; or each meets all of them, and gets the share that is right, which has the same mean and
    less variance.

    Args:
        right: whether each judgement names the better response.
        pair: which pair it is about.
        order: 0 or 1.
        mean: whether each meets all.

    Raises:
        ValueError: a pair has more judgements in one order than in the other.
    """
    places: dict[Hashable, tuple[list[int], list[int]]] = {}
    for i, (which, side) in enumerate(zip(pair, order, strict=True)):
        places.setdefault(which, ([], []))[side].append(i)
    found = [0.0] * len(right)
    for which, sides in places.items():
        if len(sides[0]) != len(sides[1]):
            one, other = map(len, sides)
            raise ValueError(f"pair {which!r} has {one} judgements in one order and {other} in the other")
        for here, there in (sides, sides[::-1]):
            share = sum(right[j] for j in there) / len(there)
            for i, j in zip(here, there, strict=True):
                found[i] = float(right[i]) * (share if mean else float(right[j]))
    return found
