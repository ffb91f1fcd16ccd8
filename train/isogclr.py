"""A temperature of its own for every position that was seen (iSogCLR, arXiv 2305.11965), without a network.

The robust loss of a position with logits h over K tokens has the dual τ·ln E_k[exp(h_k/τ)] + τ·ρ, whose slope in τ is
ρ − KL(softmax(h/τ) ‖ uniform). Each position keeps τ, a running estimate s of E_k[exp(h_k/τ)], and the slope's
momentum u. What was never seen has no temperature: that is what a network is for (`extratime.train.tempnet`).

Deliberate deviations: a step reads all K logits, where the paper reads the pairs of a batch; where one token has
nearly all the mass, a share of the tokens makes the slope noise. Logits are measured from their maximum, which takes
the place of the paper's running maximum: s lags while τ moves, and its error is multiplied by the logits' size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from extratime.models.tempnet import Temperatures


@torch.no_grad()
def individual(
    logits: Tensor,
    said: Temperatures,
    passes: int,
    rate: float = 0.03,
    average: float = 0.8,
    momentum: float = 0.5,
    clip: float = 5.0,
) -> Tensor:
    """Temperatures [N] of positions with logits [N, K], after stochastic descent on the dual.

    Args:
        logits: of the positions.
        said: T_H = ln K − ρ and the bounds.
        passes: steps of every position.
        rate: η, of τ.
        average: γ, weight of a step's own estimate of s.
        momentum: β, weight of a step's own slope in u.
        clip: bound of a slope.
    """
    count, vocabulary = logits.shape
    rho = math.log(vocabulary) - said.entropy
    tau = torch.full((count,), min(max(1.0, said.low), said.high))
    h = logits - logits.amax(1, keepdim=True)
    s, u = torch.zeros(count), torch.zeros(count)
    for step in range(passes):
        d = h / tau[:, None]
        e = d.exp()
        s = (1 - average) * s + average * e.mean(1) if step else e.mean(1)
        slope = s.log() + rho - (e * d).mean(1) / s
        u = (1 - momentum) * u + momentum * slope.clamp(-clip, clip)
        tau = (tau - rate * u).clamp(said.low, said.high)
    return tau
