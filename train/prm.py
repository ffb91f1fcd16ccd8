"""Train a process reward model: how likely a solution is to end well, told at the end of each of its steps.

From labels ℓ_t in [0, 1] of the steps t ∈ S (Monte-Carlo values, arXiv 2312.08935, or anything else in that form), one
number z_t at the separator that ends step t, and r_t = σ(z_t):

    L = −(1/|S|) Σ_{t∈S} [ ℓ_t ln r_t + (1 − ℓ_t) ln(1 − r_t) ],

the mean over all labelled steps of a batch, whoever holds them. Texts are read as `extratime evaluate` reads them
(`extratime.models.steps`), and the checkpoint says what ends a step.

Deliberate deviations:
- Soft labels c/K by default; `hard` makes them 1[ℓ > 0], as published.
- A token classifier with one label, or with two, of which r is the softmax of the second; published models read two
  words of the vocabulary.
- The head begins at zero, r = ½ everywhere, has no bias, which servers would not load, and drop-out is off.
- A text longer than `max_length` is left out and counted: without its last steps it would be another text.

`data` is a JSONL of responses, one `{"prompt": text, "steps": [text, …], "labels": [number or null, …]}` a line, as
`extratime train step_labels` writes it.

    python -m extratime.train.prm --config recipes/prm/sums.yaml
    accelerate launch --config_file recipes/accelerate/zero3.yaml -m extratime.train.prm --config …
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoConfig, AutoModelForTokenClassification, PreTrainedModel, Trainer
from transformers.integrations import is_deepspeed_zero3_enabled

from extratime.models.load import load_tokenizer, locate, refuse_adapter
from extratime.models.steps import Reading, Steps, reader
from extratime.train import run

NONE = -100.0
"""The label of a token that has none."""


@dataclass
class Config(run.SFTRunConfig):
    """Settings of the process reward model.

    Attributes:
        data: JSONL of steps with labels.
        separator: what ends a step.
        labels: outputs of the head, 1 or 2.
        hard: whether any right completion makes a step right.
        dropout: before the head.
        shuffle_labels: the control: labels go to steps at random.
    """

    data: str = ""
    separator: str = Steps().separator
    labels: int = field(default=1, metadata={"choices": [1, 2]})
    hard: bool = False
    dropout: float = 0.0
    shuffle_labels: bool = False

    def __post_init__(self) -> None:
        """Keep the columns that the collator reads."""
        self.remove_unused_columns = False
        super().__post_init__()


@dataclass(frozen=True, slots=True)
class Solution:
    """A response with the labels of its steps, None where there is none."""

    prompt: str
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]


def read_solutions(path: str) -> list[Solution]:
    """The responses of a JSONL file.

    Raises:
        ValueError: a line is no such response; the error names it.
    """
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            labels = tuple(None if label is None else float(label) for label in row["labels"])
            found.append(Solution(str(row["prompt"]), tuple(map(str, row["steps"])), labels))
            if len(found[-1].steps) != len(labels):
                raise ValueError(f"{len(found[-1].steps)} steps, but {len(labels)} labels")
            if wrong := [label for label in labels if label is not None and not 0 <= label <= 1]:
                raise ValueError(f"the label {wrong[0]} is not in [0, 1]")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a response with labelled steps ({error!r})") from error
    if not any(label is not None for solution in found for label in solution.labels):
        raise ValueError(f"{path} holds no labelled steps")
    return found


def relabelled(solutions: Sequence[Solution], hard: bool, shuffle: bool, seed: int) -> list[Solution]:
    """The same responses with hard labels, or with all labels dealt out anew."""
    labels = [label for solution in solutions for label in solution.labels if label is not None]
    labels = [float(label > 0) for label in labels] if hard else labels
    if shuffle:
        random.Random(seed).shuffle(labels)
    deck = iter(labels)
    return [replace(s, labels=tuple(None if label is None else next(deck) for label in s.labels)) for s in solutions]


def row(solution: Solution, read: Callable[[str, str], Reading], separator: str) -> dict[str, list[Any]]:
    """Token ids, and the label of each, `NONE` but at the ends of labelled steps.

    Raises:
        ValueError: a step holds a separator or nothing, so that steps and labels do not belong together.
    """
    ids, ends = read(solution.prompt, separator.join(solution.steps))
    if len(ends) != len(solution.labels):
        raise ValueError(
            f"{len(solution.labels)} labels, but {len(ends)} steps in {separator.join(solution.steps)!r} with the "
            f"separator {separator!r}: set `separator` to the one that the steps were split at"
        )
    labels = [NONE] * len(ids)
    for end, label in zip(ends, solution.labels, strict=True):
        labels[end] = NONE if label is None else label
    return {"input_ids": list(ids), "labels": labels}


def rows(args: Config, tokenizer: Any) -> list[dict[str, list[Any]]]:
    """What is learned from.

    Raises:
        ValueError: nothing is.
    """
    read = reader(tokenizer, args.separator)
    solutions = relabelled(read_solutions(args.data), args.hard, args.shuffle_labels, args.seed)
    made = [each for each in (row(s, read, args.separator) for s in solutions) if set(each["labels"]) != {NONE}]
    kept = [each for each in made if args.max_length is None or len(each["input_ids"]) <= args.max_length]
    if not kept:
        raise ValueError(f"{args.data}: every response is longer than max_length {args.max_length}")
    if len(kept) < len(made):
        sys.stderr.write(f"{args.data}: {len(made) - len(kept)} of {len(made)} responses are too long and left out\n")
    return kept


def collator(pad: int) -> Callable[[Sequence[dict[str, list[Any]]]], dict[str, torch.Tensor]]:
    """From rows to a batch, padded on the right."""

    def collate(batch: Sequence[dict[str, list[Any]]]) -> dict[str, torch.Tensor]:
        width = max(len(each["input_ids"]) for each in batch)

        def filled(key: str, filler: float) -> list[list[Any]]:
            return [each[key] + [filler] * (width - len(each[key])) for each in batch]

        mask = [[int(i < len(each["input_ids"])) for i in range(width)] for each in batch]
        return {
            "input_ids": torch.tensor(filled("input_ids", pad)),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(filled("labels", NONE)),
        }

    return collate


def step_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, summed over the labelled tokens.

    Args:
        logits: [rows, tokens, 1], or [rows, tokens, 2] whose second is the right step's.
        labels: [rows, tokens], `NONE` where there is none.
    """
    odds = logits[..., -1] - logits[..., 0] if logits.shape[-1] == 2 else logits[..., 0]
    real = labels != NONE
    return F.binary_cross_entropy_with_logits(odds[real].float(), labels[real], reduction="sum")


class PRMTrainer(Trainer):
    """Learns the labels at the ends of steps."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the labelled steps; over `num_items_in_batch` where the batch is accumulated."""
        labels = inputs["labels"]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        total = step_loss(outputs.logits, labels)
        if num_items_in_batch is None:
            loss = total / (labels != NONE).sum()
        else:
            shared = self.args.average_tokens_across_devices
            loss = total / num_items_in_batch * (self.accelerator.num_processes if shared else 1)
        return (loss, outputs) if return_outputs else loss


def load_base(args: Config) -> tuple[PreTrainedModel, Any]:
    """The model that the settings name, with a head of zeros in place of its own, and its tokenizer.

    Raises:
        ValueError: it is an adapter, or lacks weights.
    """
    folder = locate(args.model, args.revision)
    refuse_adapter(args.model, folder)
    config = AutoConfig.from_pretrained(folder, num_labels=args.labels, trust_remote_code=False)
    config.classifier_dropout, config.token_classification_bias = args.dropout, False
    config.problem_type = "multi_label_classification" if args.labels == 1 else "single_label_classification"
    model, told = AutoModelForTokenClassification.from_pretrained(
        folder,
        config=config,
        dtype=getattr(torch, args.dtype),
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if lost := sorted(name for name in told["missing_keys"] if not name.startswith(("score.", "classifier."))):
        raise ValueError(f"{folder} lacks weights that its config.json asks for: {', '.join(lost[:3])}")
    _clear([weight for name, weight in model.named_parameters() if name.startswith(("score.", "classifier."))])
    return model, load_tokenizer(folder)


def _clear(weights: list[torch.nn.Parameter]) -> None:
    """Set weights to zero, sharded by ZeRO-3 or not."""
    whole: Any = contextlib.nullcontext()
    if is_deepspeed_zero3_enabled():
        import deepspeed

        whole = deepspeed.zero.GatheredParameters(weights, modifier_rank=0)
    with whole:
        for weight in weights:
            torch.nn.init.zeros_(weight)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    args, settings = run.parse(Config, argv)
    said = Steps(args.separator)
    todo = run.begin("prm", args, settings, [args.data])
    if todo is None:
        return
    model, tokenizer = load_base(args)
    todo = replace(todo, manifest=replace(todo.manifest, steps=said))
    run.fit(
        PRMTrainer,
        args,
        todo,
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows(args, tokenizer)),
        data_collator=collator(tokenizer.pad_token_id or 0),
    )


if __name__ == "__main__":
    main()
