"""What every recipe shares: read its file, go on where it was, train under guard, say what came out.

    args, settings = parse(Config, argv)          # YAML file + overrides; an unknown key is an error
    run = begin("sft", args, settings, inputs)    # None if this very run is finished already
    fit(Trainer, args, run, model=…, …)           # resume exactly, train, save weights and manifest

A run is its output folder: started again it goes on from its last whole checkpoint, bitwise as if it had never stopped
(on one CPU process), and a finished run returns at once.
"""

from __future__ import annotations

import difflib
import json
import netrc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
import yaml
from accelerate.utils import broadcast_object_list
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from trl import GRPOConfig, SFTConfig, TrlParser

from extratime.models import manifest
from extratime.models.load import load
from extratime.models.manifest import Manifest
from extratime.train import checkpoints, refinement, temperature
from extratime.train.guard import guarded
from extratime.train.refinement import refining

_FREE = {"output_dir", "resume", "fresh_optimizer", "report_to", "run_name", "logging_steps", "disable_tqdm"}
"""Settings that change nothing about what is learned."""


@dataclass
class RunConfig:
    """What every recipe can be told; stands before its trainer's own settings (`SFTRunConfig`, `GRPORunConfig`).

    Attributes:
        model: hub id, folder of a model or checkpoint, or "embedded".
        revision: commit or tag on the hub.
        dtype: numeric type the weights are held in.
        resume: "auto" goes on from the last whole checkpoint of output_dir if there is one; "never" refuses a folder
            that holds any; else a checkpoint folder.
        fresh_optimizer: go on from a checkpoint whose optimiser or scheduler state is missing.
        use_cpu: train on the CPU; by default where there is no accelerator.
        bf16: compute in bfloat16, weights as `dtype` says; by default where there is an accelerator.
        save_steps: optimiser steps between checkpoints.
        save_total_limit: how many checkpoints are kept.
        refine_from: folder of an earlier run whose gradient norms shape the learning rate, in place of
            `lr_scheduler_type` and its warm-up (`extratime.train.refinement`).
        activation_checkpointing: trade compute for memory.
        dataloader_pin_memory: by default where there is an accelerator.
        report_to: where numbers are logged to; W&B works without an account, offline.
    """

    model: str = "embedded"
    revision: str | None = None
    dtype: str = field(default="float32", metadata={"choices": ["float32", "bfloat16", "float16"]})
    resume: str = "auto"
    fresh_optimizer: bool = False
    use_cpu: bool | None = None
    bf16: bool | None = None
    save_steps: float = 50
    save_total_limit: int | None = 2
    refine_from: str | None = None
    activation_checkpointing: bool = False
    dataloader_pin_memory: bool | None = None
    report_to: str | None = "wandb"

    def __post_init__(self) -> None:
        """TRL computes in bfloat16 wherever it is not told otherwise; a CPU is less exact in it, and often slower."""
        if self.use_cpu is None:
            self.use_cpu = not torch.accelerator.is_available()
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = not self.use_cpu
        if self.bf16 is None:
            self.bf16 = not (self.use_cpu or self.fp16)
        super().__post_init__()


@dataclass
class SFTRunConfig(RunConfig, SFTConfig):
    """A run of TRL's SFT trainer."""


@dataclass
class GRPORunConfig(RunConfig, GRPOConfig):
    """A run of TRL's GRPO trainer.

    Attributes:
        entropy: next-token entropy in nats that rollouts should have; their temperature is chosen for it before the
            first step (`extratime.train.temperature`). None leaves `temperature` as it is.
    """

    entropy: float | None = None


Config = TypeVar("Config", bound=RunConfig)


def parse(config: type[Config], argv: Sequence[str] | None = None) -> tuple[Config, dict[str, Any]]:
    """Read `--config FILE` and overrides.

    Returns:
        The settings, and those that the file and the overrides named, resolved: they repeat the run.

    Raises:
        ValueError: the file has a key that the recipe does not know.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    named = {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    if "--config" in words:
        named |= _file_keys(Path(words[words.index("--config") + 1]), config)
    (args,) = TrlParser(dataclass_types=[config]).parse_args_and_config(words)
    if args.save_strategy == "best" or args.load_best_model_at_end:
        raise ValueError("save_strategy: best and load_best_model_at_end are not supported: pick by evaluation")
    plain = args.to_dict()
    return args, {key: plain[key] for key in sorted(named & {f.name for f in fields(config)})}


def _file_keys(path: Path, config: type[Any]) -> set[str]:
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"recipe {path} cannot be read: {error}") from error
    if not isinstance(told, dict):
        raise ValueError(f"recipe {path} must be a mapping of settings, not {type(told).__name__}")
    known = {f.name for f in fields(config)} | {"env"}
    for key in told:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"recipe {path}: unknown key {key!r}{hint}")
    return set(told)


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is not finished yet: where it goes on, and what it will say of itself."""

    checkpoint: Path | None
    manifest: Manifest


def begin(recipe: str, args: RunConfig, settings: Mapping[str, Any], inputs: Sequence[str]) -> Run | None:
    """Look at the output folder before anything is loaded.

    Args:
        recipe: its name.
        args: the settings.
        settings: those the recipe file and overrides named.
        inputs: data files.

    Returns:
        What to run, or None if this run is finished.

    Raises:
        ValueError: the folder holds another run, or no whole checkpoint.
    """
    learned = {key: value for key, value in settings.items() if key not in _FREE}

    def look() -> Run | None:
        norms = [str(refinement.kept(args.refine_from))] if args.refine_from else []
        hashes = {name: manifest.hash_file(_existing(name)) for name in [*inputs, *norms]}
        base = manifest.hash_weights(Path(args.model)) if Path(args.model).is_dir() else None
        if base:
            hashes[args.model] = base
        run = Manifest(
            recipe, "full", args.model, base_sha256=base, settings=learned, seeds={"seed": args.seed}, inputs=hashes
        )
        return None if _finished(args, run) else Run(_resume_point(args, run), run)

    return _on_main(args, look)


def _existing(name: str) -> Path:
    if not name or not Path(name).is_file():
        raise ValueError(f"data file {name!r} does not exist")
    return Path(name)


def _finished(args: RunConfig, run: Manifest) -> bool:
    folder = Path(args.output_dir)
    if not (folder / manifest.NAME).is_file():
        return False
    done = manifest.verify(folder)
    other = differences({"recipe": done.recipe, **done.settings}, {"recipe": run.recipe, **run.settings})
    other += differences(done.inputs, run.inputs)
    if other:
        raise ValueError(
            f"{folder} holds a finished run of something else ({'; '.join(other)}); choose another --output_dir "
            "or remove the folder"
        )
    sys.stderr.write(f"{folder}: finished already\n")
    return True


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each setting that changed, in words."""
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key)} → {now.get(key)}" for key in keys]


def _resume_point(args: RunConfig, run: Manifest) -> Path | None:
    folder = Path(args.output_dir)
    if args.resume == "never":
        if checkpoints.numbered(folder):
            raise ValueError(f"{folder} holds checkpoints; remove them or choose another --output_dir")
        return None
    under = _sharded_by(args)
    if under and args.fresh_optimizer:
        raise ValueError(f"{under} cannot go on without optimiser states: start a new run from the weights, --model")
    if args.resume == "auto":
        place = checkpoints.last_good(folder, under, args.fresh_optimizer)
        return place and _compatible(place, args, run)
    place = Path(args.resume)
    reason = checkpoints.damage(place, under, args.fresh_optimizer)
    if reason:
        raise ValueError(f"cannot go on from {reason}")
    return _compatible(place, args, run)


def _sharded_by(args: RunConfig) -> str | None:
    if args.deepspeed_plugin is not None:
        return "DeepSpeed"
    return "FSDP" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else None


def _compatible(place: Path, args: RunConfig, run: Manifest) -> Path:
    marker = checkpoints.read_marker(place)
    data = differences(marker.inputs, run.inputs)
    if data:
        raise ValueError(f"{place} was trained on something else ({'; '.join(data)}); choose another --output_dir")
    changed = differences(marker.settings, run.settings)
    changed += differences({"processes": marker.world}, {"processes": args.world_size})
    sys.stderr.write(f"going on from {place}" + (f", changed: {'; '.join(changed)}" if changed else "") + "\n")
    return place


Value = TypeVar("Value")


def _on_main(args: TrainingArguments, look: Callable[[], Value]) -> Value:
    """What `look` returns or raises on the main process, on all of them."""
    told: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            told[0] = look()
        except (OSError, ValueError) as error:
            told[1] = error
    broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]


def load_policy(args: RunConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that the settings name.

    Raises:
        ValueError: they name an activated adapter, which has no weights of its own to train from.
    """
    loaded = load(args.model, args.revision, getattr(torch, args.dtype))
    if loaded.adapters:
        raise ValueError(f"model {args.model} is an activated adapter; name the model that it was trained on")
    return loaded.model, loaded.tokenizer


def fit(trainer: type[Trainer], args: RunConfig, run: Run, **parts: Any) -> None:
    """Train and save; exits with 128 + signal if the run was told to stop.

    Args:
        trainer: the recipe's trainer class.
        args: the settings.
        run: what `begin` found, with the recipe's own words in its manifest.
        parts: what the trainer is made of: model, processing_class, train_dataset, …
    """
    choose_wandb(args)
    if isinstance(args, GRPORunConfig) and args.entropy is not None:
        prompts = parts["train_dataset"]["prompt"]
        args.temperature = _on_main(
            args, lambda: temperature.settle(args, parts["model"], parts["processing_class"], prompts)
        )
    session = guarded(refining(trainer))(args=args, **parts)
    if _sharded_by(args) == "FSDP" and not session.is_fsdp_enabled:
        raise ValueError("accelerate shards by FSDP on accelerators only: take zero3.yaml or cpu.yaml on a CPU")
    session.told = {"settings": run.manifest.settings, "inputs": run.manifest.inputs}
    session.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    if session.stop.signal and session.state.global_step < session.state.max_steps:
        name = signal.Signals(session.stop.signal).name
        if session.is_world_process_zero():
            sys.stderr.write(f"{name}: saved step {session.state.global_step}; the same command goes on from there\n")
        sys.exit(128 + session.stop.signal)
    _save(session, args, run.manifest)


def choose_wandb(args: RunConfig) -> None:
    """Have W&B write into the run's folder, and offline where there is no account; the environment goes first."""
    if "wandb" not in args.report_to:
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        account = os.environ.get("WANDB_API_KEY") or netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        account = None
    if not (account or os.environ.get("WANDB_MODE")):
        os.environ["WANDB_MODE"] = "offline"
    os.environ.setdefault("WANDB_DIR", args.output_dir)
    Path(os.environ["WANDB_DIR"]).mkdir(parents=True, exist_ok=True)


def _save(session: Any, args: RunConfig, told: Manifest) -> None:
    folder = Path(args.output_dir)
    partial = folder / checkpoints.PARTIAL / "final"
    session.save_model(str(partial), _internal_call=True)
    session.accelerator.wait_for_everyone()
    if session.is_world_process_zero():
        commit = _commit(args)
        _name_base(partial, args.model, commit)
        checkpoints.flush(partial)
        for file in sorted(partial.iterdir()):
            file.replace(folder / file.name)
        shutil.rmtree(partial.parent)
        full = replace(
            told,
            revision=commit,
            template_sha256=manifest.hash_template(session.processing_class),
            versions=manifest.library_versions(),
        )
        manifest.write(folder, full)
    session.accelerator.wait_for_everyone()


def _commit(args: RunConfig) -> str | None:
    """The commit of a model that came from the hub."""
    if Path(args.model).is_dir():
        return None
    found = try_to_load_from_cache(args.model, "config.json", revision=args.revision)
    return Path(found).parent.name if isinstance(found, str) else args.revision


def _name_base(folder: Path, model: str, commit: str | None) -> None:
    """Have an adapter name its base as the recipe does: PEFT names the folder where this machine holds it."""
    path = folder / "adapter_config.json"
    if path.is_file():
        said = json.loads(path.read_text(encoding="utf-8"))
        manifest.write_json(path, said | {"base_model_name_or_path": model, "revision": commit})
