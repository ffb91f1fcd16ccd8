"""Supervised warm-up: next-token loss on worked solutions, so that a policy solves some problems some of the time.

Rows come from a file, `{"prompt": …, "completion": …}` a line, both texts or both lists of chat messages; or from the
training split of lm-eval tasks, the prompt as the task renders it. Only the completion carries loss.
TRL's SFT trainer, with one difference: away from its fused GPU kernel TRL projects every position onto the vocabulary,
and here only the columns of a batch in which some row has a label.

    python -m extratime.train.sft --config recipes/sft/sums.yaml
    accelerate launch --config_file recipes/accelerate/zero3.yaml -m extratime.train.sft --config recipes/sft/…
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from datasets import Dataset
from trl import SFTTrainer

from extratime.evaluate.grid import Recipe
from extratime.evaluate.tasks.load import load_tasks
from extratime.train import run


@dataclass
class Config(run.SFTRunConfig):
    """Settings of the supervised warm-up.

    Attributes:
        data: JSONL of prompt and completion.
        tasks: lm-eval tasks to take worked solutions from, beside or instead of `data`.
        problems: documents of each task; None takes all.
        solution: the documents' field that holds the worked solution.
    """

    data: str = ""
    tasks: list[str] = field(default_factory=list)
    problems: int | None = None
    solution: str = "solution"


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


def task_rows(args: Config) -> Iterator[dict[str, Any]]:
    """Prompt and worked solution of each training document of the tasks.

    Raises:
        ValueError: a task has no training split, or its documents no such field.
    """
    for name, task in load_tasks(Recipe(args.model, tuple(args.tasks), (), Path(args.output_dir))).items():
        if not task.has_training_docs():
            raise ValueError(f"task {name} has no training split to take solutions from")
        for doc in itertools.islice(task.training_docs(), args.problems):
            if args.solution not in doc:
                raise ValueError(
                    f"task {name}: no field {args.solution!r} in its documents; there are {', '.join(doc)}"
                )
            yield {"prompt": task.doc_to_text(doc), "completion": str(doc[args.solution])}


def rows(args: Config) -> list[dict[str, Any]]:
    """Prompt and completion of everything that the settings name."""
    return (read_rows(args.data) if args.data else []) + list(task_rows(args) if args.tasks else [])


def refuse_nothing(args: Config) -> None:
    """Refuse settings that name nothing to learn from.

    Raises:
        ValueError: they do.
    """
    if not (args.data or args.tasks):
        raise ValueError("nothing to learn from: name a file of rows (data) or tasks with worked solutions (tasks)")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    args, settings = run.parse(Config, argv)
    refuse_nothing(args)
    todo = run.begin("sft", args, settings, [args.data] if args.data else [])
    if todo is None:
        return
    learned = Dataset.from_list(rows(args))
    model, tokenizer = run.load_policy(args)
    run.fit(ColumnTrainer, args, todo, model=model, processing_class=tokenizer, train_dataset=learned)


if __name__ == "__main__":
    main()
