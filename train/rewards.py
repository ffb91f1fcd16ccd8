"""Pure functions from rewards to what is learned."""

from __future__ import annotations

from collections.abc import Sequence


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
