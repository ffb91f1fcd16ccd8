"""Checkpoints that are whole or not there.

A checkpoint is written into `.partial/`, flushed to disk, given `complete.json` (the SHA-256 of every file, the step
and the number of processes) as its last file, and only then renamed to `checkpoint-<step>`. Whoever reads one checks
it first; a damaged one is passed over for the one before it, and that is said.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from extratime.models.manifest import differing, hash_files, write_json

MARKER = "complete.json"
PARTIAL = ".partial"
_OPTIMIZER = re.compile(r"optimizer\.(pt|bin)|scheduler\.pt|.*optim_states\.pt")
_NEEDED = {None: r"optimizer\.pt", "DeepSpeed": r".*optim_states\.pt", "FSDP": r"optimizer\.bin"}


@dataclass(frozen=True, slots=True)
class Marker:
    """What the last file of a checkpoint says.

    Attributes:
        step: optimiser steps taken.
        world: processes that wrote it.
        settings: what the recipe file and overrides said.
        inputs: SHA-256 of each data file.
        files: SHA-256 of each file, by path inside the checkpoint.
    """

    step: int
    world: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, str]


def publish(written: Path, place: Path, marker: Marker) -> None:
    """Turn the finished folder `written` into the checkpoint `place`; a crash leaves one of the two as it was."""
    names = sorted(str(p.relative_to(written)) for p in written.rglob("*") if p.is_file())
    flush(written)
    write_json(written / MARKER, asdict(marker) | {"files": hash_files(written, names)})
    flush_folder(written)
    if place.exists():
        stale = written.with_name(f"replaced-{place.name}")
        shutil.rmtree(stale, ignore_errors=True)
        place.rename(stale)
    written.rename(place)
    flush_folder(place.parent)
    shutil.rmtree(written.parent, ignore_errors=True)


def flush(folder: Path) -> None:
    """Have the disk hold every file under `folder`."""
    for path in folder.rglob("*"):
        if path.is_dir():
            flush_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Have the disk hold the names in `folder`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_marker(checkpoint: Path) -> Marker:
    """The marker of a checkpoint.

    Raises:
        ValueError: it is missing or broken: the checkpoint was never finished.
    """
    try:
        return Marker(**json.loads((checkpoint / MARKER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{checkpoint}: {MARKER} cannot be read ({error})") from error


def damage(checkpoint: Path, under: str | None = None, fresh_optimizer: bool = False) -> str | None:
    """Why one cannot go on from `checkpoint` exactly, or None if one can.

    Args:
        checkpoint: its folder.
        under: "DeepSpeed" or "FSDP" where that shards the run: its optimiser states are files of another kind.
        fresh_optimizer: whether missing optimiser and scheduler states are accepted.
    """
    try:
        files = dict(read_marker(checkpoint).files)
    except ValueError as error:
        return str(error)
    states = [name for name in files if _OPTIMIZER.fullmatch(Path(name).name)]
    if fresh_optimizer:
        for name in states:
            if not (checkpoint / name).exists():
                del files[name]
    elif not any(re.fullmatch(_NEEDED[under], Path(name).name) for name in states):
        how = f"under {under}" if under else "without DeepSpeed or FSDP"
        return f"{checkpoint}: holds no optimiser state for a run {how}"
    wrong = differing(checkpoint, files)
    return f"{checkpoint}: {wrong}" if wrong else None


def numbered(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, newest first, whatever state they are in."""
    found = [p for p in output_dir.glob("checkpoint-*") if p.is_dir() and p.name[11:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[11:]), reverse=True)


def last_good(output_dir: Path, under: str | None = None, fresh_optimizer: bool = False) -> Path | None:
    """The newest checkpoint that is whole, or None where there is no checkpoint at all.

    Raises:
        ValueError: there are checkpoints and none is whole.
    """
    reasons = []
    for checkpoint in numbered(output_dir):
        reason = damage(checkpoint, under, fresh_optimizer)
        if reason is None:
            return checkpoint
        reasons.append(reason)
        sys.stderr.write(f"passing over a damaged checkpoint: {reason}\n")
    if reasons:
        raise ValueError(
            f"{output_dir}: no checkpoint is whole ({'; '.join(reasons)}). Remove them to start over; where only "
            "optimiser states are missing, --fresh_optimizer true goes on without them"
        )
    return None


def forget_old(output_dir: Path, step: int, keep: int | None) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`; None or 0 keeps all.

    Later ones are damaged, or of a course that was left: they must not push out those that the run goes on from.
    """
    known = [checkpoint for checkpoint in numbered(output_dir) if int(checkpoint.name[11:]) <= step]
    for checkpoint in known[keep:] if keep else []:
        shutil.rmtree(checkpoint)
