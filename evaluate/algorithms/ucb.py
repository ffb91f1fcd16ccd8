"""Which algorithm to run next: PlanGEN's upper confidence bound (arXiv 2502.16111), pure functions.

    UCB(a) = R(a)/N(a) + √(2 ln(T+1)/N(a)) + λ₀/(1+T)·Prior(a) + α_div/(N(a)+1) + α_rec·S_rec(a)

R is the sum of rewards in [0, 1], N how often a was run, T how often any was. S_rec is the share of a's runs after a
failed run that improved on it. The published note prints λ = 1 + T and calls it a decaying weight: read as λ₀/(1+T).
The weights, the start at N = 1 and R = ½, and the rule of S_rec are not published; these are our choices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arm:
    """What is known of one algorithm.

    Attributes:
        reward: sum of its rewards.
        runs: how often it was run.
        retries: runs that followed a failed run, of whichever algorithm.
        recoveries: those of them that improved on it.
    """

    reward: float = 0.5
    runs: int = 1
    retries: int = 0
    recoveries: int = 0

    def after(self, reward: float, improved: bool | None = None) -> Arm:
        """The arm after one more run; `improved` is None unless the run before had failed."""
        retried, recovered = int(improved is not None), int(bool(improved))
        return Arm(self.reward + reward, self.runs + 1, self.retries + retried, self.recoveries + recovered)


def ucb(
    arm: Arm, trials: int, prior: float, lambda_prior: float = 1.0, alpha_div: float = 0.2, alpha_rec: float = 0.5
) -> float:
    """The bound of one arm after `trials` runs of all; see the module for the terms."""
    explore = math.sqrt(2 * math.log(trials + 1) / arm.runs)
    recovery = arm.recoveries / arm.retries if arm.retries else 0.0
    advice = lambda_prior / (1 + trials) * prior
    return arm.reward / arm.runs + explore + advice + alpha_div / (arm.runs + 1) + alpha_rec * recovery


def choose(arms: Sequence[Arm], trials: int, priors: Sequence[float], **weights: float) -> int:
    """The arm of the greatest bound; ties go to the higher prior, then to the earlier arm."""
    bounds = [ucb(arm, trials, prior, **weights) for arm, prior in zip(arms, priors, strict=True)]
    return max(range(len(arms)), key=lambda i: (bounds[i], priors[i], -i))
