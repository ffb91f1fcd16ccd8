"""Reward models: from a name to a model that says how good a text is, as a whole or step by step.

Two kinds of checkpoint, as TRL's trainers and `extratime.train.prm` leave them: a sequence classifier with one output
weighs a whole text, a token classifier weighs each step at the separator that ends it (Lightman et al., arXiv
2305.20050; see `extratime.models.steps`). A token classifier with two labels tells P(label 1); one with a single label
tells the sigmoid of its number where its configuration calls the problem "multi_label_classification", as that loss
does, and else the number as it is. Published process reward models have conventions of their own
(`extratime.models.conventions`).

Weights come from safetensors only; no code from a checkpoint is run. Texts are read as they are: a chat template is
the business of whoever renders the prompt, save where a convention has one of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from extratime.models import manifest
from extratime.models.conventions import (
    CONVENTIONS,
    Headed,
    as_it_is,
    first_as_probability,
    named,
    second_of_two,
)
from extratime.models.engines.text import encoder
from extratime.models.load import Where, load, locate, refuse_adapter
from extratime.models.paths import digest
from extratime.models.steps import Reading, reader


@dataclass(frozen=True, slots=True)
class Manner:
    """How a reward model is asked, and what its logits say.

    Attributes:
        read: from the texts of prompt and continuation to what goes through the model.
        tell: from logits to rewards: [rows, 1], or [rows, tokens] where it weighs steps.
        separator: what ends a step; None where whole texts are weighed.
        convention: of a published model, which reads the question in place of the policy's prompt; else None.
    """

    read: Callable[[str, str], Reading]
    tell: Callable[[Tensor], Tensor]
    separator: str | None
    convention: str | None = None

    @property
    def steps(self) -> bool:
        """Whether it weighs steps."""
        return self.separator is not None


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A reward model ready to run.

    Attributes:
        model: a module whose output for `input_ids` and `attention_mask` has `logits`: [rows, labels], or [rows,
            tokens, labels] where it weighs steps.
        how: it is asked.
        fingerprint: of weights, settings, numeric type, separator and convention.
        context: longest text in tokens, or None if not known.
    """

    model: Any
    how: Manner
    fingerprint: str
    context: int | None


def load_reward(
    where: Where,
    dtype: torch.dtype | str = "auto",
    device: str | None = None,
    separator: str | None = None,
    convention: str | None = None,
) -> RewardModel:
    """Load a reward model.

    Args:
        where: hub id or folder.
        dtype: numeric type of the weights; "auto" takes the checkpoint's own.
        device: where to put it; the CPU if None.
        separator: what ends a step, for a model that weighs steps, unless its manifest or convention tells.
        convention: of a published model; None where its configuration or a classifier's tells.

    Raises:
        FileNotFoundError: no model or tokenizer there.
        ValueError: it is no reward model, or of the other kind, or has outputs that mean nothing here.
    """
    folder = locate(where)
    refuse_adapter(where, folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    convention, separator = _means(where, config, separator, convention)
    head = AutoModelForTokenClassification if separator else AutoModelForSequenceClassification
    loaded = load(where, dtype=dtype, device=device, head=AutoModel if convention else head)
    how = manner(loaded.tokenizer, config, separator, convention)
    known = CONVENTIONS[convention] if convention else None
    model = Headed(loaded.model, known.head(folder, loaded.model, loaded.tokenizer)) if known else loaded.model
    mark = digest("reward", loaded.fingerprint, separator, *([convention] if convention else []))
    return RewardModel(model, how, mark, context(config, loaded.tokenizer))


def served_reward(
    where: str, tokenizer: Any, separator: str | None = None, convention: str | None = None
) -> tuple[Manner, int | None]:
    """How a reward model that a server holds is asked, and its context; see `load_reward`.

    Args:
        where: hub id or folder of its configuration.
        tokenizer: of the model.
        separator: what ends a step.
        convention: of a published model.

    Raises:
        ValueError: it is no reward model, or one that a pooling server does not tell enough of.
    """
    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    convention, separator = _means(where, config, separator, convention)
    if convention and not CONVENTIONS[convention].served:
        raise ValueError(
            f"a pooling server does not tell what the convention {convention} reads: leave verifier.url out, and the "
            "model runs in this process"
        )
    return manner(tokenizer, config, separator, convention), context(config, tokenizer)


def manner(tokenizer: Any, config: Any, separator: str | None, convention: str | None) -> Manner:
    """How the model of a configuration is asked; see `load_reward`."""
    if convention:
        known = CONVENTIONS[convention]
        return Manner(known.read(tokenizer, separator or ""), known.tell, separator, convention)
    if separator:
        return Manner(reader(tokenizer, separator), _tell(config.num_labels, config.problem_type), separator)
    return Manner(_whole(tokenizer), as_it_is, None)


def _means(where: Where, config: Any, separator: str | None, convention: str | None) -> tuple[str | None, str | None]:
    """Convention and separator of a checkpoint, from what the recipe says and from what it says itself.

    Raises:
        ValueError: they do not fit, or it is no reward model.
    """
    architectures = list(config.architectures or ())
    convention = convention or named(architectures)
    if convention is None:
        separator = separator or _told_separator(Path(where).expanduser())
        _refuse_other_kinds(where, architectures, separator, config.num_labels)
        return None, separator
    if convention not in CONVENTIONS:
        raise ValueError(f"no convention {convention!r}; there are {', '.join(CONVENTIONS)}")
    known = CONVENTIONS[convention]
    if separator and not known.steps:
        raise ValueError(f"{where} ({convention}) weighs whole texts: leave verifier.separator out")
    return convention, (separator or known.separator) if known.steps else None


def _told_separator(folder: Path) -> str | None:
    """What ends a step, if the folder's manifest tells."""
    said = manifest.found(folder)
    return said.steps.separator if said and said.steps else None


def _refuse_other_kinds(where: Where, architectures: list[str], separator: str | None, labels: int) -> None:
    for name in architectures:
        if name.endswith("ForTokenClassification") and not separator:
            raise ValueError(f"{where} is a {name}, which weighs steps: set verifier.separator to what ends a step")
        if name.endswith("ForSequenceClassification") and separator:
            raise ValueError(f"{where} is a {name}, which weighs whole texts: leave verifier.separator out")
        if not name.endswith(("ForTokenClassification", "ForSequenceClassification")):
            raise ValueError(
                f"{where} is a {name}, no reward model: give a sequence or token classifier, or set "
                f"verifier.convention to how it is asked ({', '.join(CONVENTIONS)})"
            )
    if labels > (2 if separator else 1):
        raise ValueError(f"{where} has {labels} outputs: a reward model has one, or two where it weighs steps")


def _whole(tokenizer: Any) -> Callable[[str, str], Reading]:
    encode = encoder(tokenizer)
    return lambda prompt, said: (encode(prompt + said).ids or (), ())


def _tell(labels: int, problem: str | None) -> Callable[[Tensor], Tensor]:
    if labels == 2:
        return second_of_two
    return first_as_probability if problem == "multi_label_classification" else _first


def _first(logits: Tensor) -> Tensor:
    return logits[..., 0]


def context(config: Any, tokenizer: Any) -> int | None:
    """Longest text in tokens that a model reads, or None if not known."""
    told = getattr(config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length
    return min((n for n in told if n and n < 1 << 30), default=None)
