"""Group-relative policy optimisation on verifiable rewards (GRPO, arXiv 2402.03300): the outcome-only baseline.

Each step draws a group of responses to each problem, rewards each by the task's own metric, and raises the tokens of
those above their group's mean: A_i = (R_i − mean R)/(std R + ε). TRL's GRPO trainer, with one difference: a checkpoint
holds the rollouts that are still to be learned from and TRL's own count of steps, so that a run goes on exactly where
responses serve more than one optimiser step (`num_iterations`, `steps_per_generation`); TRL draws anew.

Problems are the training documents of lm-eval tasks, prompts as the task renders them.

    python -m extratime.train.grpo --config recipes/grpo/sums.yaml
    accelerate launch --config_file recipes/accelerate/zero3.yaml -m extratime.train.grpo --config …
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from safetensors.torch import load_file, save_file

from extratime.evaluate.grid import Recipe, Scoring
from extratime.evaluate.tasks.load import Reading, load_tasks, reading
from extratime.train import run

Batch = dict[str, Any]


@dataclass
class Config(run.GRPORunConfig):
    """Settings of outcome-only GRPO.

    Attributes:
        tasks: lm-eval tasks whose training documents are the problems.
        problems: documents of each task; None takes all.
        chat: whether a prompt is a user's turn of a chat.
    """

    tasks: list[str] = field(default_factory=list)
    problems: int | None = None
    chat: bool = False


class GRPOTrainer(trl.GRPOTrainer):
    """TRL's trainer, going on exactly."""

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        self._order = super()._get_train_sampler(dataset)
        return self._order

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        """An epoch in its own order: TRL's sampler begins with that of the first epoch wherever a run goes on."""
        if self._order.shuffle:
            self._order.generator.manual_seed(self._order.seed)
            for _ in range(epoch):
                torch.randperm(self._order.num_samples, generator=self._order.generator)
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        held = pack(self._buffered_inputs or []) | {"step": torch.tensor(self._step)}
        save_file(held, self._rollouts(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint and self._rollouts(checkpoint).is_file():
            held = {key: value.to(self.args.device) for key, value in load_file(self._rollouts(checkpoint)).items()}
            self._step = int(held.pop("step"))
            self._buffered_inputs = unpack(held) or None

    def _rollouts(self, folder: str) -> Path:
        return Path(folder) / f"rollouts_{self.args.process_index}.safetensors"


def pack(batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
    """Tensors of a list of batches by "<place>.<name>", each in memory of its own, as safetensors wants them.

    Raises:
        TypeError: a batch holds what is no tensor, such as images, which a checkpoint cannot keep.
    """
    held = {}
    for place, batch in enumerate(batches):
        for name, value in batch.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"rollouts hold {name!r}, a {type(value).__name__}: only text can be saved")
            held[f"{place}.{name}"] = value.detach().clone(memory_format=torch.contiguous_format)
    return held


def unpack(held: Mapping[str, torch.Tensor]) -> list[Batch]:
    """The batches that `pack` was given."""
    batches: dict[int, Batch] = {}
    for key, value in held.items():
        place, _, name = key.partition(".")
        batches.setdefault(int(place), {})[name] = value
    return [batches[place] for place in sorted(batches)]


@dataclass(frozen=True, slots=True)
class Problems:
    """Training problems with their rewards.

    Attributes:
        rows: prompt, and the problem's place in `documents`.
        documents: (reading of its task, document).
    """

    rows: list[dict[str, Any]]
    documents: list[tuple[Reading, Mapping[str, Any]]]

    def reward(self, text: str, problem: int) -> float:
        """The task's own metric of one response."""
        read, document = self.documents[problem]
        return read.score(document, text)


def load_problems(args: Config) -> Problems:
    """The problems that the settings name.

    Raises:
        ValueError: a task has no training split.
    """
    found = Problems([], [])
    for name, task in load_tasks(Recipe(args.model, tuple(args.tasks), (), Path(args.output_dir))).items():
        if not task.has_training_docs():
            raise ValueError(f"task {name} has no training split to take problems from")
        read = reading(task, Scoring(), thinking=False)
        for document in itertools.islice(task.training_docs(), args.problems):
            text = task.doc_to_text(document)
            prompt = [{"role": "user", "content": text}] if args.chat else text
            found.rows.append({"prompt": prompt, "problem": len(found.documents)})
            found.documents.append((read, document))
    return found


def said(completion: str | Sequence[Mapping[str, str]]) -> str:
    """The text of a completion, plain or a chat's turn."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def outcome(problems: Problems) -> Callable[..., list[float]]:
    """The reward of a right response, as TRL calls it: one number a completion."""

    def outcome(completions: Sequence[Any], problem: Sequence[int], **_: Any) -> list[float]:
        return [problems.reward(said(text), place) for text, place in zip(completions, problem, strict=True)]

    return outcome


def refuse_inexact(args: run.GRPORunConfig) -> None:
    """Refuse settings under which a stopped run would not go on as if it had never stopped.

    Raises:
        ValueError: they move the reference model, of which checkpoints hold nothing.
    """
    if args.sync_ref_model:
        raise ValueError("sync_ref_model: true moves a model that checkpoints do not hold; set it to false")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    args, settings = run.parse(Config, argv)
    refuse_inexact(args)
    if not args.tasks:
        raise ValueError("nothing to learn from: name lm-eval tasks with a training split (tasks)")
    todo = run.begin("grpo", args, settings, [])
    if todo is None:
        return
    problems = load_problems(args)
    model, tokenizer = run.load_policy(args)
    run.fit(
        GRPOTrainer,
        args,
        todo,
        model=model,
        processing_class=tokenizer,
        reward_funcs=outcome(problems),
        train_dataset=Dataset.from_list(problems.rows),
    )


if __name__ == "__main__":
    main()
