"""What a checkpoint says about itself: `extratime.json` beside its weights.

It is written last, so a folder that has one is complete; it names the base model, what was trained on it and how it is
to be asked, so that `evaluate` needs no flags; and it holds the SHA-256 of every file beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from transformers import PreTrainedTokenizerBase

from extratime.models.early_exit import EarlyExit
from extratime.models.judge import Judge
from extratime.models.self_eval import SelfEval
from extratime.models.steps import Steps
from extratime.models.tempnet import Temperatures

NAME = "extratime.json"
FORMAT = 1
Kind: TypeAlias = Literal["full", "lora", "alora", "tempnet", "early_exit"]
_PACKAGES = ("extratime", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checkpoint's account of itself.

    Attributes:
        recipe: the recipe that trained it: "sft", "self_eval", …
        kind: full weights, a LoRA adapter, an activated LoRA adapter that leaves the policy untouched, a network of
            temperatures beside it, or a controller of early exit.
        base: the model it was trained from, as the recipe named it: a hub id, a folder or "embedded".
        revision: commit of the base on the hub, where it comes from there.
        base_sha256: one hash over the base's weight files, where it is a local folder.
        self_eval: the question and targets of a self-evaluation checkpoint.
        temperatures: what a network of temperatures is.
        early_exit: what a controller of early exit is, and when it acts.
        steps: what ends a step for a process reward model.
        judge: what a generative judge is told.
        template_sha256: hash of the chat template it was trained with.
        settings: what the recipe file and the overrides said.
        seeds: by name.
        inputs: SHA-256 of each data file.
        versions: of the libraries that trained it.
        files: SHA-256 of each file of the checkpoint; filled in by `write`.
        format: version of this layout.
    """

    recipe: str
    kind: Kind
    base: str
    revision: str | None = None
    base_sha256: str | None = None
    self_eval: SelfEval | None = None
    temperatures: Temperatures | None = None
    early_exit: EarlyExit | None = None
    steps: Steps | None = None
    judge: Judge | None = None
    template_sha256: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {self.kind!r}")


def write(folder: Path, manifest: Manifest) -> Manifest:
    """Write `extratime.json` for the files that stand directly in `folder` (prose aside), atomically.

    Returns:
        The manifest with its `files`.
    """
    beside = (p for p in folder.iterdir() if p.is_file() and p.name != NAME)
    names = sorted(p.name for p in beside if p.name[0] != "." and p.suffix != ".md")
    full = replace(manifest, files=hash_files(folder, names))
    write_json(folder / NAME, asdict(full))
    return full


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it cannot be read, or says things this version does not know.
    """
    path = folder / NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {NAME}; is this the folder that a recipe wrote, and did it finish?")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Manifest)}
        _refuse_unknown(said, known)
        return Manifest(**{**said, **{name: _part(said.get(name), kind) for name, kind in _PARTS.items()}})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def found(folder: str | Path) -> Manifest | None:
    """The manifest of a folder that a recipe wrote, or None of any other."""
    return read(Path(folder)) if (Path(folder) / NAME).is_file() else None


def _part(said: Mapping[str, Any] | None, kind: type[Any]) -> Any:
    if said is None:
        return None
    _refuse_unknown(said, {f.name for f in fields(kind)})
    return kind(**said)


_PARTS = {
    "self_eval": SelfEval,
    "temperatures": Temperatures,
    "early_exit": EarlyExit,
    "steps": Steps,
    "judge": Judge,
}


def _refuse_unknown(said: Mapping[str, Any], known: Iterable[str]) -> None:
    if said.get("format", FORMAT) != FORMAT:
        raise ValueError(f"manifest format {said['format']} is not {FORMAT}; use the release that wrote it")
    unknown = sorted(set(said) - set(known))
    if unknown:
        raise ValueError(f"unknown keys {', '.join(unknown)}; a newer release wrote this manifest")


def verify(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose every file is as it was written.

    Raises:
        ValueError: a file is missing or has changed.
    """
    manifest = read(folder)
    damage = differing(folder, manifest.files)
    if damage:
        raise ValueError(f"{folder}: {damage}")
    return manifest


def differing(folder: Path, files: Mapping[str, str]) -> str | None:
    """What is wrong with `folder` measured against the hashes of its files, or None."""
    for name in files:
        if not (folder / name).is_file():
            return f"{name} is missing"
    found = hash_files(folder, files)
    changed = [name for name, digest in files.items() if found[name] != digest]
    return f"{changed[0]} is not what was written (its SHA-256 differs)" if changed else None


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files by name relative to `folder`; several at a time."""
    ordered = list(names)
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(ordered, pool.map(lambda name: hash_file(folder / name), ordered), strict=True))


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def hash_weights(folder: Path) -> str | None:
    """One hash over the safetensors files of `folder`, or None where there are none."""
    names = sorted(p.name for p in folder.glob("*.safetensors"))
    told = json.dumps(hash_files(folder, names), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest() if names else None


def hash_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of a tokenizer's chat template, or None where it has none."""
    template = tokenizer.chat_template
    return None if not template else hashlib.sha256(json.dumps(template).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide what training gives, of those that are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value a line, so that a reader sees the old file or the new one, never a part."""
    write_text(path, "".join(json.dumps(value) + "\n" for value in values))


def write_text(path: Path, text: str) -> None:
    """Write text so that a reader sees the old file or the new one, never a part; makes missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
