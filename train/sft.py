"""Supervised warm-up: next-token loss on worked solutions, so that a policy solves some problems some of the time.

Rows are `{"prompt": …, "completion": …}`, both texts or both lists of chat messages; only the completion carries loss.
TRL's SFT trainer, with one difference: away from its fused GPU kernel TRL projects every position onto the vocabulary,
and here only the columns of a batch in which some row has a label.

    python -m extratime.train.sft --config recipes/sft/embedded.yaml
    accelerate launch --config_file recipes/accelerate/zero3.yaml -m extratime.train.sft --config recipes/sft/…
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from datasets import Dataset
from trl import SFTTrainer

from extratime.train import run


@dataclass
class Config(run.SFTRunConfig):
    """Settings of the supervised warm-up.

    Attributes:
        data: JSONL of prompt and completion.
    """

    data: str = ""


class ColumnTrainer(SFTTrainer):
    """SFT that leaves out the logits of columns where no row has a label."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean negative log-likelihood of the labels; over `num_items_in_batch` where the batch is accumulated."""
        if return_outputs or inputs["input_ids"].is_cuda:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        columns = (labels != -100).any(0).nonzero().squeeze(1)
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            logits_to_keep=columns,
            use_cache=False,
        )
        labels = labels[:, columns].flatten()
        total = F.cross_entropy(outputs.logits.flatten(0, 1).float(), labels, ignore_index=-100, reduction="sum")
        if num_items_in_batch is None:
            return total / (labels != -100).sum()
        shared = self.args.average_tokens_across_devices
        return total / num_items_in_batch * (self.accelerator.num_processes if shared else 1)


def read_rows(path: str) -> list[dict[str, Any]]:
    """Prompt and completion of each line.

    Raises:
        ValueError: a line is not such a row; the error names it.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append({key: row[key] for key in ("prompt", "completion")})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a row with prompt and completion ({error!r})") from error
        if type(rows[-1]["prompt"]) is not type(rows[-1]["completion"]):
            raise ValueError(f"{path}:{number}: prompt and completion must both be text or both be messages")
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    args, settings = run.parse(Config, argv)
    todo = run.begin("sft", args, settings, [args.data])
    if todo is None:
        return
    model, tokenizer = run.load_policy(args)
    rows = Dataset.from_list(read_rows(args.data))
    run.fit(ColumnTrainer, args, todo, model=model, processing_class=tokenizer, train_dataset=rows)


if __name__ == "__main__":
    main()
