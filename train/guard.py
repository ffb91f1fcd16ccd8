"""What every run is guarded against: numbers that are not finite, and being told to stop.

`Guarded` goes over any trainer. It stops before the optimiser moves when a loss or a gradient is NaN or infinite
(DeepSpeed steps inside `backward` and passes over a step whose gradients are not finite; then the run stops, too),
never saves weights that are not finite, writes checkpoints through `extratime.train.checkpoints`, and on SIGTERM,
SIGUSR1 or Ctrl-C saves a checkpoint after the current step on all processes together, so that a scheduler can start
the run again.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from extratime.models.manifest import write_json
from extratime.train import checkpoints

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class NotFinite(ArithmeticError):
    """Training met NaN or infinity and stopped; the last checkpoint is from before."""


def agreed(value: int, device: torch.device) -> int:
    """The largest `value` of any process, known to all of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    told = torch.tensor(value, device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


class StopOnSignal(TrainerCallback):
    """Save and stop after the step in which a signal came; a scheduler may repeat its own, a second Ctrl-C is final.

    Attributes:
        signal: the number of the signal that stopped the run, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Listen."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        if number == signal.SIGINT:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave together if any process was told to."""
        self.signal = agreed(self.signal, args.device)
        if self.signal:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop listening."""
        self._restore()


class Guarded(Trainer):
    """Mixed in before a trainer by `guarded`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop = StopOnSignal()
        self.add_callback(self.stop)
        self.told: dict[str, Mapping[str, Any]] = {"settings": {}, "inputs": {}}
        self._writing = False

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The trainer's loss, if it is finite on every process."""
        given = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        loss = given[0] if return_outputs else given
        if self.model.training:
            self._refuse(not bool(torch.isfinite(loss.detach()).all()), f"loss is {loss.detach().mean().item()}")
        return given

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not self.args.fp16:
            bad = not bool(torch.isfinite(torch.as_tensor(float(norm))))
            self._refuse(bad, f"gradient norm is {float(norm)}")
        return norm

    def _refuse(self, bad: bool, what: str, ahead: int = 1) -> None:
        if agreed(int(bad), self.args.device):
            told = what if bad else "another process met NaN or infinity"
            raise NotFinite(
                f"step {self.state.global_step + ahead}: {told}; stopped before saving anything of it. "
                f"{self.args.output_dir} holds the checkpoints from before; look at the data of this step or lower "
                "the learning rate"
            )

    def _weights_finite(self) -> bool:
        held = (getattr(p, "ds_tensor", p) for p in self.model.parameters() if p.requires_grad)
        return all(bool(torch.isfinite(weights).all()) for weights in held)

    def _get_output_dir(self, trial: Any) -> str:
        """Where the trainer writes: into `.partial` while a checkpoint is being written."""
        folder = Path(super()._get_output_dir(trial))
        return str(folder / checkpoints.PARTIAL if self._writing else folder)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch, unless every step is taken: a run that was stopped between its last step and its end."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        """With it, what was counted since the last log: else the next log would average over fewer steps."""
        super()._save_rng_state(output_dir)
        counted = {
            "loss": self._tr_loss.item(),
            "logged": self._globalstep_last_logged,
            "metrics": getattr(self, "_metrics", {}).get("train", {}),
            "tokens": getattr(self, "_total_train_tokens", 0),
        }
        write_json(Path(output_dir) / f"counted_{self.args.process_index}.json", counted)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        path = Path(checkpoint or "") / f"counted_{self.args.process_index}.json"
        if not (checkpoint and path.is_file()):
            return
        counted = json.loads(path.read_text(encoding="utf-8"))
        self._tr_loss += counted["loss"]
        self._globalstep_last_logged = counted["logged"]
        self._total_train_tokens = counted["tokens"]
        for name, values in counted["metrics"].items():
            self._metrics["train"][name] += values

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._refuse(not self._weights_finite(), "a weight is NaN or infinite", 0)
        output = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            shutil.rmtree(output / checkpoints.PARTIAL, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._writing = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writing = False
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            marker = checkpoints.Marker(self.state.global_step, self.args.world_size, files={}, **self.told)
            checkpoints.publish(output / checkpoints.PARTIAL / name, output / name, marker)
            checkpoints.forget_old(output, self.state.global_step, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()


def guarded(trainer: type[Trainer]) -> type[Guarded]:
    """`trainer` under guard; its own hooks stay as they are."""
    return type(f"Guarded{trainer.__name__}", (Guarded, trainer), {})
