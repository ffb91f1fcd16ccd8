"""What the `hf` engine has to know about a transformers model before it runs it: limits, ends, sizes."""

from __future__ import annotations

import inspect
from typing import Any

from extratime.models.request import Shape

_PLAIN = {"full_attention", "sliding_attention"}
_NEEDED = {"position_ids", "past_key_values", "logits_to_keep"}


def refuse_unusual(model: Any, config: Any) -> None:
    """Refuse models whose state is not one key and one value per layer and token, at positions of our choosing.

    Raises:
        ValueError: the model is of such a kind; the message says what to use instead.
    """
    kinds = sorted(set(getattr(config, "layer_types", None) or []) - _PLAIN)
    lacks = sorted(_NEEDED - set(inspect.signature(_plain(model).forward).parameters))
    if kinds:
        why = f"has {', '.join(kinds)}"
    elif getattr(model, "_is_stateful", False) or not getattr(config, "num_attention_heads", None):
        why = "keeps a running state"
    elif lacks:
        why = f"takes no {', '.join(lacks)}"
    else:
        return
    raise ValueError(
        f"the hf engine needs plain attention layers, but {config.model_type} {why}: "
        "serve it with vLLM and use the openai engine"
    )


def context_length(config: Any) -> tuple[int, str]:
    """Tokens up to which the model sees everything before a token, all positions scaled alike; and what sets them."""
    rope = getattr(config, "rope_parameters", None) or {}
    limits = [(config.max_position_embeddings, "context")]
    if rope.get("rope_type") == "longrope" and rope.get("original_max_position_embeddings"):
        limits.append((rope["original_max_position_embeddings"], "context before its positions are rescaled"))
    if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
        limits.append((config.sliding_window, "sliding window"))
    return min(limits)


NOTHING = "the prompt has no tokens, and nothing comes after nothing"
"""Why a draw from an empty prompt fails."""


def too_long(tokens: int, context: int, bound: str) -> str:
    """Why a request of so many tokens fails; `context` and `bound` as `context_length` tells them."""
    return f"prompt too long: {tokens} tokens, the model's {bound} is {context}; shorten the prompt"


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a response: those of the generation config, and the tokenizer's own."""
    told = model.generation_config.eos_token_id
    listed = told if isinstance(told, list) else [told]
    return frozenset(i for i in (*listed, tokenizer.eos_token_id) if i is not None)


def shape_of(model: Any, config: Any, beside: Any = None) -> Shape:
    """Sizes of a model for the ledger, the network beside it included, adapters and an untied embedding not."""
    counted = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    counted += sum(p.numel() for p in beside.parameters()) if beside else 0
    read = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is read
    heads = config.num_attention_heads
    return Shape(
        parameters=counted - (0 if tied else read.numel()),
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype_bytes=model.dtype.itemsize,
    )


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model
