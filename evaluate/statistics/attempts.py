"""Drawing until a verifier accepts, where the verifier errs (arXiv 2411.17501): pure functions.

A draw is right with probability r. The verifier accepts a right one with probability c (completeness) and rejects a
wrong one with probability s (soundness), so that of every draw

    A = c·r is accepted and right,   F = (1 − s)·(1 − r) accepted and wrong,   β = 1 − A − F rejected.

Of what is accepted A/(A + F) is right, however many attempts there are: resampling buys acceptances, not precision.
Over kinds of problems it even falls, since late acceptances come from the kinds that are accepted rarely. With value 1
for a right answer, `wrong` < 0 for a wrong one that was accepted, 0 for none, and `cost` for each attempt made,

    EV(K) = Σ_i p_i · (1 − β_i^K)/(1 − β_i) · (A_i + wrong·F_i − cost),

whose best K is often small, and 0 where silence is better. A strategy that must answer gives one of the rejected
draws where none was accepted (`accuracy`): so does best-of-K with a verifier that says only yes and no.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from extratime.evaluate.statistics.arrays import Array
from extratime.evaluate.statistics.at_k import pass_at_k

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Kind:
    """Problems of one difficulty, and what a verifier makes of their draws; all are probabilities.

    Attributes:
        prior: share of the problems.
        right: of a draw, r.
        completeness: of accepting a right draw, c.
        soundness: of rejecting a wrong draw, s.
    """

    prior: float
    right: float
    completeness: float = 1.0
    soundness: float = 1.0

    @property
    def accepted(self) -> float:
        """A draw is accepted and right, A."""
        return self.completeness * self.right

    @property
    def fooled(self) -> float:
        """A draw is accepted and wrong, F."""
        return (1 - self.soundness) * (1 - self.right)

    @property
    def rejected(self) -> float:
        """A draw is rejected, β."""
        return 1 - self.accepted - self.fooled

    def made(self, attempts: float) -> float:
        """Expected attempts of at most so many: Σ_{k<K} β^k."""
        if self.rejected >= 1:
            return attempts
        return float((1 - self.rejected**attempts) / (1 - self.rejected))


def right_by(kinds: Sequence[Kind], attempts: float) -> float:
    """P(a right draw is accepted within so many attempts, before a wrong one); `math.inf` attempts give the limit."""
    return sum(kind.prior * kind.accepted * kind.made(attempts) for kind in kinds if kind.accepted)


def fooled_by(kinds: Sequence[Kind], attempts: float) -> float:
    """P(a wrong draw is accepted within so many attempts, before a right one)."""
    return sum(kind.prior * kind.fooled * kind.made(attempts) for kind in kinds if kind.fooled)


def precision_at(kinds: Sequence[Kind], attempt: int) -> float:
    """P(right | accepted at just this attempt, from 1); NaN where nothing is ever accepted."""
    reach = [kind.prior * kind.rejected ** (attempt - 1) for kind in kinds]
    right = sum(p * kind.accepted for p, kind in zip(reach, kinds, strict=True))
    either = right + sum(p * kind.fooled for p, kind in zip(reach, kinds, strict=True))
    return right / either if either > 0 else math.nan


def accuracy(kinds: Sequence[Kind], attempts: int) -> float:
    """P(the answer is right) where one of the rejected draws answers if none of so many was accepted."""
    left = sum(kind.prior * kind.rejected ** (attempts - 1) * (1 - kind.completeness) * kind.right for kind in kinds)
    return right_by(kinds, attempts) + left


def value(kinds: Sequence[Kind], attempts: float, wrong: float = 0.0, cost: float = 0.0) -> float:
    """EV(K): expected value of at most so many attempts.

    Args:
        kinds: of problems, priors adding up to 1.
        attempts: K; `math.inf` gives the limit.
        wrong: value of accepting a wrong draw, at most 0.
        cost: of each attempt made.
    """
    return sum(net * kind.made(attempts) for net, kind in zip(_net(kinds, wrong, cost), kinds, strict=True) if net)


def best_attempts(kinds: Sequence[Kind], wrong: float = 0.0, cost: float = 0.0, most: int = 10_000) -> float:
    """K* = argmax EV(K), the least of equals: 0 says nothing at all, `math.inf` never gives up.

    Args:
        kinds: of problems.
        wrong: value of accepting a wrong draw.
        cost: of each attempt made.
        most: attempts looked at, beside the limit.
    """
    rejected, net = np.array([kind.rejected for kind in kinds]), np.array(_net(kinds, wrong, cost))
    gains = net @ rejected[:, None] ** np.arange(most)
    values = np.concatenate(([0.0], np.cumsum(gains)))
    lasting = [worth for _, worth in sorted(zip(rejected, net, strict=True)) if worth]
    climbs = bool(lasting) and lasting[-1] > 0
    if climbs and value(kinds, math.inf, wrong, cost) >= values.max() * (1 - 1e-12):
        return math.inf
    return int(values.argmax())


def _net(kinds: Sequence[Kind], wrong: float, cost: float) -> list[float]:
    """What an attempt is worth, weighed by the prior."""
    return [kind.prior * (kind.accepted + wrong * kind.fooled - cost) for kind in kinds]


def attempted(accepted: Sequence[bool], right: Sequence[bool], attempts: int) -> tuple[float, float, float]:
    """What at most so many attempts come to on one stored pool, as a mean over every order of its draws.

    The authors shuffle thousands of times; the mean is known.

    Args:
        accepted: whether the verifier accepts each draw.
        right: whether each draw is right, by a stronger check than the verifier: what judges itself never errs.
        attempts: K, 1 to the size of the pool.

    Returns:
        P(accepted and right), P(accepted and wrong), and attempts made.

    Raises:
        ValueError: lengths differ, or K is outside the pool.
    """
    good, yes = _flags(accepted, right)
    n, passed = yes.size, int(yes.sum())
    reached = pass_at_k(n, passed, attempts)
    made = 1.0 + sum(1 - pass_at_k(n, passed, k) for k in range(1, attempts))
    share = float((good & yes).sum()) / passed if passed else 0.0
    return reached * share, reached * (1 - share) if passed else 0.0, made


def value_of_pools(
    pools: Sequence[tuple[Sequence[bool], Sequence[bool]]], attempts: int, wrong: float = 0.0, cost: float = 0.0
) -> Array:
    """The value of at most so many attempts on each pool (accepted, right), shape (Q,); see `attempted`."""
    told = np.array([attempted(*pool, attempts) for pool in pools])
    return np.asarray(told @ np.array([1.0, wrong, -cost]))


def _flags(accepted: Sequence[bool], right: Sequence[bool]) -> tuple[Flags, Flags]:
    if len(accepted) != len(right):
        raise ValueError(f"{len(accepted)} verdicts for {len(right)} draws: give one of each a draw")
    return np.asarray(right, dtype=bool), np.asarray(accepted, dtype=bool)
