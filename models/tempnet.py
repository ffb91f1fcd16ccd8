"""TempNet: a temperature for every token, predicted from the model's own logits (arXiv 2404.04575).

A KL ball of radius ρ around the uniform law makes the softmax loss of a position robust; its dual variable is the
temperature τ. With logits h of K tokens, label y and T_H = ln K − ρ,

    ℓ(h, y, τ) = τ·CE(h/τ, y) − T_H·τ,      dℓ/dτ = H(softmax(h/τ)) − T_H:

the label cancels, and the best τ is the one at which the next-token entropy is T_H, clipped to [low, high]. The
network predicts it, from detached logits:

    x = h − max h,  x̂ = x/‖x‖,  z = P·σ(T·x̂),  p = softmax(z/eˢ),
    q = w·[(p − 1/M) ⊙ z] + b,  τ = low + (high − low)·σ(q).

Deliberate deviation: b begins where τ is the best constant of a batch (`settle`); from b = 0 the network stays
a constant for thousands of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LogitsProcessor

NAME = "model.safetensors"
BESIDE = "tempnet.safetensors"
"""The network's file in a folder that holds a policy as well."""


@dataclass(frozen=True, slots=True)
class Temperatures:
    """What a temperature network is, beside its weights.

    Attributes:
        entropy: T_H in nats, the next-token entropy it was taught to aim at.
        low: lowest temperature, > 0.
        high: highest temperature; above 1 it adds noise where the model is sure.
        width: M, size of the hidden layers.
        normalise: whether logits are scaled to length 1 (as published) or divided by √K, which keeps their scale.
    """

    entropy: float = 1.0
    low: float = 0.01
    high: float = 2.0
    width: int = 256
    normalise: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.low < self.high and self.entropy > 0 and self.width > 1):
            raise ValueError(f"temperatures need 0 < low < high, entropy > 0 and width > 1: {self}")


class TempNet(nn.Module):
    """The network; `Temperatures` says which."""

    def __init__(self, said: Temperatures, vocabulary: int) -> None:
        super().__init__()
        self.said = said
        self.transformation = nn.Linear(vocabulary, said.width)
        self.projection = nn.Linear(said.width, said.width)
        self.dropout = nn.Dropout(0.5)
        self.sharpness = nn.Parameter(torch.zeros(1))
        self.pooling = nn.Linear(said.width, 1)
        nn.init.ones_(self.pooling.weight)
        nn.init.zeros_(self.pooling.bias)

    def forward(self, logits: Tensor) -> Tensor:
        """Temperatures [...] of positions with logits [..., K]."""
        z = self.projection(self.dropout(torch.sigmoid(self.transformation(self.features(logits)))))
        p = (z / self.sharpness.exp()).softmax(-1)
        q = self.pooling((p - 1 / self.said.width) * z).squeeze(-1)
        tau: Tensor = self.said.low + (self.said.high - self.said.low) * torch.sigmoid(q.float())
        return tau

    def features(self, logits: Tensor) -> Tensor:
        """What the first layer reads [..., K]."""
        h = logits.detach().to(self.pooling.weight.dtype)
        x = h - h.amax(-1, keepdim=True)
        return F.normalize(x, dim=-1) if self.said.normalise else x / math.sqrt(x.shape[-1])

    @torch.no_grad()
    def settle(self, logits: Tensor) -> None:
        """Have the network begin as the best constant temperature for positions with logits [N, K]."""
        share = (best_constant(logits, self.said) - self.said.low) / (self.said.high - self.said.low)
        self.pooling.bias.fill_(torch.logit(torch.tensor(share), eps=0.01))


def entropy(logits: Tensor, tau: Tensor | float) -> Tensor:
    """Entropy in nats [...] of softmax(logits / tau), logits [..., K] and tau [...]."""
    told = torch.as_tensor(tau, device=logits.device)[..., None]
    logs = (logits / told).log_softmax(-1)
    each: Tensor = torch.special.entr(logs.exp())
    return each.sum(-1)


def loss(logits: Tensor, labels: Tensor, tau: Tensor, target: float) -> Tensor:
    """ℓ [...] of positions with logits [..., K], labels [...] and temperatures tau [...], in float32.

    The network's gradient comes through `tau`; where `logits` carry a gradient, theirs is softmax(h/τ) − onehot(y).
    """
    h = logits.float() / tau[..., None]
    error = F.cross_entropy(h.flatten(0, -2), labels.flatten(), reduction="none").view_as(tau)
    return tau * error - target * tau


def solve(logits: Tensor, said: Temperatures) -> Tensor:
    """The best temperature [N] of each position with logits [N, K], to 1e-6: what the network should learn."""
    return _bisect(lambda tau: entropy(logits.double(), tau), said, logits.shape[:-1])


def best_constant(logits: Tensor, said: Temperatures) -> float:
    """The one temperature that is best on the average of positions with logits [N, K]."""
    return float(_bisect(lambda tau: entropy(logits.double(), tau.expand(len(logits))).mean(), said, ()))


def _bisect(rising: Callable[[Tensor], Tensor], said: Temperatures, shape: tuple[int, ...]) -> Tensor:
    """Where a rising function of the temperature reaches the target, within [low, high]."""
    low = torch.full(shape, said.low, dtype=torch.float64)
    high = torch.full(shape, said.high, dtype=torch.float64)
    for _ in range(40):
        middle = (low + high) / 2
        above = rising(middle) > said.entropy
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def load(said: Temperatures, folder: Path) -> TempNet:
    """The network in `folder`, alone or beside a policy, ready to be asked.

    Raises:
        ValueError: the weights are not of this network.
    """
    file = folder / (BESIDE if (folder / BESIDE).is_file() else NAME)
    weights = load_file(file)
    net = TempNet(said, weights["transformation.weight"].shape[1])
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{file} does not hold the network that its manifest describes: {error}") from error
    return net.eval()


class Cooler(LogitsProcessor):
    """The network inside another library's decoding loop, which must itself sample at temperature 1."""

    def __init__(self, net: TempNet) -> None:
        self.net = net

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [rows, K], each row divided by its own temperature."""
        tau: Tensor = self.net(scores)
        return scores / tau[:, None]
