"""Reward models: from a name to a model that says how good a text is, as a whole or step by step.

Two kinds of checkpoint, as TRL's trainers leave them: a sequence classifier with one output weighs a whole text, a
token classifier weighs each step at the separator that ends it (Lightman et al., arXiv 2305.20050). A token classifier
with two labels tells P(label 1), one with a single label tells its number as it is. What a token classifier reads is
put together as in its training: prompt, step and separator are turned into tokens apart from each other, and the last
step gets a separator even where the response has none. Weights come from safetensors only; no code from a checkpoint
is run. Texts are read as they are: a chat template is the business of whoever renders the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from extratime.models.engines.text import encoder
from extratime.models.load import Where, load, locate
from extratime.models.request import digest

Reading: TypeAlias = "tuple[tuple[int, ...], tuple[int, ...]]"
"""Token ids, and those of their places at which a step ends; no places where the whole text is weighed."""


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A reward model ready to run.

    Attributes:
        model: a transformers classifier.
        read: from the texts of prompt and continuation to what goes through the model.
        fingerprint: of weights, settings, numeric type and separator.
        steps: whether it weighs steps.
        context: longest text in tokens, or None if not known.
    """

    model: Any
    read: Callable[[str, str], Reading]
    fingerprint: str
    steps: bool
    context: int | None


def load_reward(
    where: Where, dtype: torch.dtype | str = "auto", device: str | None = None, separator: str | None = None
) -> RewardModel:
    """Load a reward model.

    Args:
        where: hub id or folder.
        dtype: numeric type of the weights; "auto" takes the checkpoint's own.
        device: where to put it; the CPU if None.
        separator: what ends a step, for a token classifier; None for a sequence classifier.

    Raises:
        FileNotFoundError: no model or tokenizer there.
        ValueError: it is no reward model, or of the other kind, or has outputs that mean nothing here.
    """
    _refuse_other_kinds(where, separator)
    head = AutoModelForTokenClassification if separator else AutoModelForSequenceClassification
    loaded = load(where, dtype=dtype, device=device, head=head)
    labels = loaded.model.config.num_labels
    if labels > (2 if separator else 1):
        raise ValueError(f"{where} has {labels} outputs: a reward model has one, or two where it weighs steps")
    read = _steps(loaded.tokenizer, separator) if separator else _whole(loaded.tokenizer)
    mark = digest("reward", loaded.fingerprint, separator)
    return RewardModel(loaded.model, read, mark, bool(separator), _context(loaded.model, loaded.tokenizer))


def _refuse_other_kinds(where: Where, separator: str | None) -> None:
    config = locate(where) / "config.json"
    said = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    for name in said.get("architectures") or ():
        if name.endswith("ForTokenClassification") and not separator:
            raise ValueError(f"{where} is a {name}, which weighs steps: set verifier.separator to what ends a step")
        if name.endswith("ForSequenceClassification") and separator:
            raise ValueError(f"{where} is a {name}, which weighs whole texts: leave verifier.separator out")
        if not name.endswith(("ForTokenClassification", "ForSequenceClassification")):
            raise ValueError(f"{where} is a {name}, no reward model: give a sequence or token classifier")


def _whole(tokenizer: Any) -> Callable[[str, str], Reading]:
    encode = encoder(tokenizer)
    return lambda prompt, said: (encode(prompt + said).ids or (), ())


def _steps(tokenizer: Any, separator: str) -> Callable[[str, str], Reading]:
    encode = encoder(tokenizer)

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    def read(prompt: str, said: str) -> Reading:
        ids, ends = list(encode(prompt).ids or ()), []
        for step in said.removesuffix(separator).split(separator) if said else ():
            ids += tokens(step) + tokens(separator)
            if step.strip():
                ends.append(len(ids) - 1)
        return tuple(ids), tuple(ends)

    return read


def _context(model: Any, tokenizer: Any) -> int | None:
    told = getattr(model.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length
    return min((n for n in told if n and n < 1 << 30), default=None)
