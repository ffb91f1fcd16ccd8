"""Early exit: after some layers a controller says whether a token may leave, or the response is hopeless.

Stop & Exit Controller (SEC, arXiv 2401.09964) beside a frozen model. At exit point i, with h the state after it,

    s = norm(h + U_i·D_i·h),    next-token logits = head(s),    p = softmax(W·s) over (stop, exit, continue):

a stop, where it is the likeliest and p > τ_stop, ends the response; an exit, likewise, takes the token from these
logits and leaves the other layers out; else the token goes on. W is shared by all exit points.

Deliberate deviations. The paper gives each exit point a head of its own, of as many weights as the vocabulary is wide,
on the raw state. Here all share the model's own final norm and head behind a translator of low rank, which begins as
nothing, and the controller reads the same translated state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

STOP, EXIT, CONTINUE = range(3)
NAME = "model.safetensors"
Part: TypeAlias = Literal["translators", "classifier"]
_TAKEN_APART = ("llama", "mistral", "qwen2", "qwen3")
"""Kinds of models whose layers can be run one by one, and their keys and values made without them."""


@dataclass(frozen=True, slots=True)
class EarlyExit:
    """What a controller is, beside its weights, and when it acts.

    Attributes:
        exits: layers after which a token may leave, counted from 1, rising.
        rank: of the translators.
        exit: probability above which a token leaves; None, or 1 and more, turns that off.
        stop: probability above which the response is given up; None, or 1 and more, turns that off.
    """

    exits: tuple[int, ...] = (6, 12, 18, 24)
    rank: int = 64
    exit: float | None = 0.9
    stop: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "exits", tuple(self.exits))
        if not self.exits or self.exits[0] < 1 or list(self.exits) != sorted(set(self.exits)):
            raise ValueError(f"exits must be layers from 1 on, in rising order, not {list(self.exits)}")
        if self.rank < 1 or any(t is not None and t < 0 for t in (self.exit, self.stop)):
            raise ValueError(f"early exit needs rank ≥ 1 and thresholds ≥ 0: {self}")


class Controller(nn.Module):
    """Translators and the shared classifier; `EarlyExit` says which.

    Args:
        said: what it is.
        hidden: size of the model's states.
    """

    def __init__(self, said: EarlyExit, hidden: int) -> None:
        super().__init__()
        self.said = said
        self.down = nn.Parameter(torch.randn(len(said.exits), said.rank, hidden) * hidden**-0.5)
        self.up = nn.Parameter(torch.zeros(len(said.exits), hidden, said.rank))
        self.classifier = nn.Linear(hidden, 3, bias=False)
        nn.init.zeros_(self.classifier.weight)

    def forward(
        self, hidden: Tensor, norm: nn.Module, exit: int | slice = slice(None), learns: Part | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the model's head reads at an exit point, and the classifier's logits.

        Args:
            hidden: states [..., hidden] after one exit's layer, or [exits, N, hidden] after each.
            norm: the model's final norm.
            exit: which exit point, counted from 0; all of them by default.
            learns: the only part that the gradient reaches: through the states, or through the logits.

        Returns:
            Translated and normalised states, shaped and typed like `hidden`, and logits [..., 3], float32.
        """
        down, up = self.down[exit], self.up[exit]
        moved = torch.matmul(torch.matmul(hidden.to(down.dtype), down.mT), up.mT)
        state: Tensor = norm(hidden + moved.to(hidden.dtype))
        told = self.classifier(state.detach().to(down.dtype)).float()
        return state.detach() if learns == "classifier" else state, told.detach() if learns == "translators" else told


def labels(right: Tensor) -> Tensor:
    """What the controller should have said (label generation of SEC).

    Args:
        right: bool [exits + 1, N], whether the likeliest token at each exit point, and last at the model's own end, is
            the next one.

    Returns:
        [exits, N]: `STOP` where no layer is right, `EXIT` where this one or an earlier one is, else `CONTINUE`.
    """
    by_now = right.int().cummax(0).values.bool()
    yet = torch.where(by_now[:-1], EXIT, CONTINUE)
    return torch.where(by_now[-1], yet, STOP)


def loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of the classifier; the i-th of n exit points weighs i / (1 + … + n).

    Args:
        logits: [exits, N, 3].
        wanted: [exits, N], from `labels`.
    """
    each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted).mean(1)
    weights = torch.arange(1, len(each) + 1, device=each.device, dtype=each.dtype)
    return (weights * each).sum() / weights.sum()


def decide(logits: Tensor, said: EarlyExit) -> int:
    """What to do at an exit point: `STOP`, `EXIT` or `CONTINUE`; logits [3]."""
    chances: list[float] = logits.float().softmax(-1).tolist()
    best = max(range(3), key=chances.__getitem__)
    bar = {STOP: said.stop, EXIT: said.exit}.get(best)
    return best if bar is not None and chances[best] > bar else CONTINUE


def load(said: EarlyExit, folder: Path) -> Controller:
    """The controller in `folder`, ready to be asked.

    Raises:
        ValueError: the weights are not of this controller.
    """
    weights = load_file(folder / NAME)
    try:
        made = Controller(said, weights["down"].shape[2])
        made.load_state_dict(weights)
    except (KeyError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"{folder / NAME} does not hold the controller that its manifest describes: {error}"
        ) from error
    return made.eval()


def refuse_unfit(model: Any, exits: Sequence[int]) -> None:
    """Refuse a model that a controller with these exits cannot stand beside.

    Raises:
        ValueError: its layers cannot be taken apart, or are too few.
    """
    config = model.config
    if config.model_type not in _TAKEN_APART:
        raise ValueError(
            f"early exit runs a model layer by layer, which is done for {', '.join(_TAKEN_APART)} only, "
            f"not for {config.model_type}"
        )
    if exits[-1] >= config.num_hidden_layers:
        raise ValueError(
            f"exits {list(exits)} must lie before the last of the model's {config.num_hidden_layers} layers"
        )
