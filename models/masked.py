"""Masked-diffusion checkpoints that bring code of their own, read without it: LLaDA and Dream.

Both are a plain architecture under another name, less the causal mask: LLaDA (arXiv 2502.09992) is Llama with other
names for settings and weights, Dream (arXiv 2508.15487) is Qwen2. Dream began as a model that writes left to right, so
its logits stand one place before the token that they are about: `shift_logits`, which a plain folder may set, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_LLAMA = {
    "d_model": "hidden_size",
    "mlp_hidden_size": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
}
_KEPT = ("vocab_size", "rms_norm_eps", "rope_theta", "mask_token_id", "eos_token_id", "pad_token_id", "torch_dtype")
_MEANT = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "scale_logits": False,
}
"""Settings under which LLaDA is Llama."""
_BLOCK = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_NAMES = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    **{rf"^model\.transformer\.blocks\.(\d+)\.{a}\.": rf"model.layers.\1.{b}." for a, b in _BLOCK.items()},
}


@dataclass(frozen=True, slots=True)
class Published:
    """A folder read as a plain architecture.

    Attributes:
        build: the architecture.
        settings: its configuration.
        names: patterns of the folder's names of weights, and the architecture's.
    """

    build: Any
    settings: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)

    def from_pretrained(self, folder: Path, **options: Any) -> Any:
        """The model in the folder, as that of a transformers class; see there for the options."""
        config = self.build.config_class(**self.settings)
        return self.build.from_pretrained(folder, config=config, key_mapping=dict(self.names), **options)


def head_of(folder: Path) -> Any:
    """What builds the masked-diffusion model in a folder, for `extratime.models.load.load`.

    Raises:
        ValueError: the model is what its own code says, and that is never run.
    """
    file = folder / "config.json"
    said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known = {("llada", "LLaDAModelLM"): _llada, ("Dream", "DreamModel"): _dream}
    kind = said.get("model_type"), next(iter(said.get("architectures") or ()), None)
    if kind in known:
        return known[kind](folder, said)
    if "auto_map" in said and kind[0] not in CONFIG_MAPPING:
        _refuse(folder, f"{kind[1]} of type {kind[0]!r} is known from its own code alone")
    return AutoModelForCausalLM


def _llada(folder: Path, said: Mapping[str, Any]) -> Published:
    if other := {key: said[key] for key, meant in _MEANT.items() if said.get(key, meant) != meant}:
        _refuse(folder, f"it is LLaDA with {', '.join(f'{key} {value}' for key, value in other.items())}")
    settings = {name: said[key] for key, name in _LLAMA.items() if key in said}
    settings |= {key: said[key] for key in _KEPT if key in said}
    settings["num_key_value_heads"] = said.get("n_kv_heads") or said["n_heads"]
    settings["vocab_size"] = said.get("embedding_size") or said["vocab_size"]
    return Published(LlamaForCausalLM, settings, _NAMES)


def _dream(folder: Path, said: Mapping[str, Any]) -> Published:
    theirs = {"architectures", "auto_map", "model_type", "transformers_version"}
    return Published(Qwen2ForCausalLM, {k: v for k, v in said.items() if k not in theirs} | {"shift_logits": True})


def _refuse(folder: Path, why: str) -> NoReturn:
    raise ValueError(
        f"{folder} cannot be read: {why}, and code of a checkpoint is never run; convert it to a plain architecture "
        "whose config.json names mask_token_id (and shift_logits, where logits are about the next place)"
    )
