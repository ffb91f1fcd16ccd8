"""Teach a controller when tokens may leave a frozen model early, and when a response is hopeless (arXiv 2401.09964).

Rows are worked solutions, named as in the supervised warm-up; only the positions of the completion count. First the
translators of all exit points learn together, by the sum of their next-token cross-entropies. Then the classifier
learns, by the cross-entropy of `extratime.models.early_exit.labels`, later exit points weighing more; the translators,
which make those labels, stand still.

Deliberate deviations, beside those of the controller itself: both parts are one run of one schedule, the classifier
begins after a `share` of its steps; and a row is read once for all exit points, so that nothing is kept on disk.

    python -m extratime.train.early_exit --config recipes/early_exit/sums.yaml
    accelerate launch --config_file recipes/accelerate/zero2.yaml -m extratime.train.early_exit --config …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, set_seed

from extratime.models import early_exit
from extratime.models.early_exit import Controller, EarlyExit
from extratime.train import run, sft
from extratime.train.tempnet import labelled, refuse_sharding


@dataclass
class Config(sft.Config):
    """Settings of the controller; `data`, `tasks`, `problems` and `solution` as in the supervised warm-up.

    Attributes:
        exits: layers after which a token may leave, counted from 1.
        rank: of the translators.
        exit: probability above which a token leaves, for whoever runs the checkpoint; 1 turns that off.
        stop: probability above which a response is given up; 1 turns that off.
        share: of the steps in which the translators learn, before the classifier does.
        shuffle_labels: the control: the classifier learns the labels of other positions.
    """

    exits: list[int] = field(default_factory=lambda: list(EarlyExit().exits))
    rank: int = EarlyExit().rank
    exit: float = 0.9
    stop: float = 1.0
    share: float = 0.5
    shuffle_labels: bool = False

    def __post_init__(self) -> None:
        """Keep the columns that the model reads."""
        self.remove_unused_columns = False
        # The parts learn one after the other, so DDP has to look which of them a step used.
        self.ddp_find_unused_parameters = True
        super().__post_init__()

    @property
    def early_exit(self) -> EarlyExit:
        """What the controller is."""
        return EarlyExit(tuple(self.exits), self.rank, self.exit, self.stop)


class EarlyExitTrainer(Trainer):
    """Trains the controller on the states of `policy`; set by the recipe."""

    policy: Any

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The translators' loss in the first share of the steps, then the classifier's."""
        hidden, wanted = states(self.policy, inputs, self.args.exits)
        head = self.policy.get_output_embeddings()
        first = self.state.global_step < int(self.args.share * self.state.max_steps)
        part = "translators" if first else "classifier"
        read, told = model(hidden[:-1], self.policy.model.norm, learns=part)
        if first:
            loss = translators_loss(head, read, wanted)
        else:
            labels = early_exit.labels(right(head, [*read, hidden[-1]], wanted))
            if self.args.shuffle_labels:
                labels = labels[:, torch.randperm(labels.shape[1], device=labels.device)]
            loss = early_exit.loss(told, labels)
        return (loss, {"logits": told}) if return_outputs else loss


def states(policy: Any, batch: Mapping[str, torch.Tensor], exits: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """States [exits + 1, N, hidden] before each label of a batch, and the labels [N]; −100 is no label.

    Args:
        policy: a causal language model; nothing of it gets a gradient.
        batch: input_ids, attention_mask and labels [rows, tokens].
        exits: layers, counted from 1, whose states are wanted; last comes what the model's own head reads.
    """
    real = batch["labels"][:, 1:] != -100
    read = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        out = policy.model(**read, output_hidden_states=True, use_cache=False)
    kept = [*(out.hidden_states[layer] for layer in exits), out.last_hidden_state]
    return torch.stack([each[:, :-1][real] for each in kept]), batch["labels"][:, 1:][real]


def translators_loss(head: Any, read: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Sum over exit points of the next-token cross-entropy.

    Args:
        head: from states to logits.
        read: [exits, N, hidden], what it reads at each exit point.
        wanted: [N], the next tokens.
    """
    return torch.stack([F.cross_entropy(head(each).float(), wanted) for each in read]).sum()


@torch.no_grad()
def right(head: Any, read: Sequence[torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
    """Whether the likeliest token is the next one: bool [len(read), N], from states [N, hidden] and tokens [N]."""
    return torch.stack([head(each).argmax(-1) == wanted for each in read])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    args, settings = run.parse(Config, argv)
    sft.refuse_nothing(args)
    refuse_sharding(args.deepspeed_plugin)
    said = args.early_exit  # refuses what means nothing, before anything is loaded
    todo = run.begin("early_exit", args, settings, [args.data] if args.data else [])
    if todo is None:
        return
    policy, tokenizer = run.load_policy(args)
    early_exit.refuse_unfit(policy, said.exits)
    policy = policy.requires_grad_(False).eval().to(args.device)
    set_seed(args.seed)
    EarlyExitTrainer.policy = policy
    run.fit(
        EarlyExitTrainer,
        args,
        replace(todo, manifest=replace(todo.manifest, kind="early_exit", early_exit=said)),
        model=Controller(said, policy.config.hidden_size),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(labelled(args, tokenizer)),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )


if __name__ == "__main__":
    main()
