"""A learning-rate schedule refined by the gradient norms of a first run (Defazio et al., arXiv 2310.07831).

For convex losses the last iterate after T steps is near-optimal with

    η_t = w_t · Σ_{p>t} w_p,      w_t ∝ ‖g_t‖₂⁻² (SGD)  or  ‖g_t‖₁⁻¹ (Adam),

over smoothed norms. Constant norms give linear decay; large early norms give a warm-up. The peak stays a setting.

    extratime train sft --config … --output_dir runs/first
    extratime train sft --config … --output_dir runs/second --refine_from runs/first

Every run in which gradients stand whole keeps its norms, once per optimiser step, accumulated and before clipping: on
one process or several with a copy of the model each. DeepSpeed and FSDP keep gradients to themselves; a run under
either can be given a refined schedule but refines none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import median_filter
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from extratime.models.manifest import write_json

NAME = "gradient_norms.json"
Array = NDArray[np.float64]


def multipliers(norms: ArrayLike, power: int, window: float = 0.1) -> Array:
    """The refined schedule: a multiplier [T] of the peak learning rate for each step, its largest 1 and its last 0.

    Args:
        norms: gradient norms [T] of a run, > 0; those that are not finite are left out.
        power: −1 for L1 norms and Adam, −2 for L2 norms and SGD.
        window: width of the median filter as a share of the run; 0 smooths nothing.

    Raises:
        ValueError: fewer than two norms are finite, or most are zero.
    """
    known = np.asarray(norms, dtype=np.float64)
    known = known[np.isfinite(known)]
    middle = float(np.median(known)) if len(known) > 1 else 0.0
    if middle <= 0:
        raise ValueError(f"no schedule follows from these gradient norms: {len(known)} finite, median {middle:g}")
    w = np.maximum(smooth(known, window), 1e-3 * middle) ** float(power)
    after = np.append(np.cumsum(w[:0:-1])[::-1], 0.0)
    eta: Array = w * after
    return eta / eta.max()


def smooth(norms: Array, window: float) -> Array:
    """The running median over `window` of the run; left of it the first norm goes on, right of it the run's mirror."""
    width = 2 * int(window * len(norms) / 2) + 1
    mirrored = np.pad(norms, (0, 2 * width), mode="symmetric")
    return np.asarray(median_filter(mirrored, width, mode="nearest"))[: len(norms)]


def at(schedule: Array, step: int, steps: int) -> float:
    """The multiplier of `step` (from 0) in a run of another number of `steps`, interpolated by progress."""
    place = (step + 0.5) / steps * len(schedule) - 0.5
    return float(np.interp(place, np.arange(len(schedule)), schedule))


def kept(folder: str) -> Path:
    """Where a run keeps its norms.

    Raises:
        ValueError: it has none; the message says why.
    """
    file = Path(folder) / NAME
    if not file.is_file():
        raise ValueError(
            f"refine_from: {file} does not exist. A finished run, or a checkpoint of one, has it unless it ran under "
            "DeepSpeed or FSDP, which keep gradients to themselves: make the first run without them"
        )
    return file


def refined(folder: str, optimiser: str) -> Array:
    """The schedule that follows from the run in `folder` for an optimiser by transformers' name.

    Raises:
        ValueError: the folder holds no norms, or none that a schedule follows from.
    """
    file = kept(folder)
    kind, power = ("l2", -2) if optimiser.startswith("sgd") else ("l1", -1)
    try:
        return multipliers(json.loads(file.read_text(encoding="utf-8"))[kind], power)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"refine_from: {file}: {error}") from error


def norms_of(parameters: Iterable[torch.Tensor]) -> tuple[float, float]:
    """L1 and L2 norm of all gradients together."""
    grads = [each.grad for each in parameters if each.grad is not None]
    each = [torch.linalg.vector_norm(grad, order, dtype=torch.float32) for order in (1, 2) for grad in grads]
    l1, l2 = torch.stack(each).view(2, -1)
    return l1.sum().item(), l2.norm().item()


class Refining(Trainer):
    """Mixed in before a trainer: keeps its gradient norms, and follows the schedule that `args.refine_from` names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        whole = self.accelerator.distributed_type not in (DistributedType.DEEPSPEED, DistributedType.FSDP)
        self.norms: dict[str, list[float]] | None = {"l1": [], "l2": []} if whole else None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The refined schedule, or the one that the settings name."""
        if self.lr_scheduler is None and self.args.refine_from:
            schedule = refined(self.args.refine_from, self.args.optim)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda k: at(schedule, k, num_training_steps))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _clip_grad_norm(self, model: Any) -> Any:
        self._note(model)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            self._note(model)
        return super()._get_grad_norm(model, grad_norm)

    def _note(self, model: Any) -> None:
        if self.norms is None:
            return
        scaler = self.accelerator.scaler
        scale = scaler.get_scale() if scaler else 1.0
        for name, norm in zip(self.norms, norms_of(model.parameters()), strict=True):
            self.norms[name].append(norm / scale)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.norms is not None and self.is_world_process_zero():
            write_json(Path(output_dir or self.args.output_dir) / NAME, self.norms)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """With them, the norms so far; a run that began without keeping them keeps none."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and self.norms is not None:
            file = Path(checkpoint) / NAME
            self.norms = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def refining(trainer: type[Trainer]) -> type[Refining]:
    """`trainer` with its norms kept; its own hooks stay as they are."""
    return type(f"Refining{trainer.__name__}", (Refining, trainer), {})
