"""Teach a network the temperature of every token, beside a frozen model (TempNet, arXiv 2404.04575).

Contexts are worked solutions; only the positions of the completion count. A step reads a batch with the frozen model
and moves the network down the robust loss ℓ = τ·CE(h/τ, y) − T_H·τ of `extratime.models.tempnet`, whose optimum is the
temperature at which the next-token entropy is T_H = ln K − ρ. The label cancels: data only supply contexts.

Deliberate deviations:
- T_H (`entropy`) is the setting rather than ρ, which means nothing without the size K of the vocabulary.
- The network begins at the best constant temperature of a random batch.
- The first layer learns more slowly, the wider the vocabulary (`FAR`).
- Trained by transformers' plain `Trainer` on the network alone: a checkpoint holds the network, not the model, which
  stands whole on every device.

With `joint: true` the policy learns as well, from the same loss: its gradient is softmax(h/τ) − onehot(y), the
network's input stays detached, and the network's learning rate is fixed. Policy and network are saved side by side.

    python -m extratime.train.tempnet --config recipes/tempnet/sums.yaml
    accelerate launch --config_file recipes/accelerate/zero2.yaml -m extratime.train.tempnet --config …
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, Trainer, set_seed

from extratime.models import tempnet
from extratime.models.tempnet import Temperatures, TempNet
from extratime.train import run, sft

FAR = 32.0
"""How far its inputs may carry the first layer, as a sum of their sizes, at the full learning rate.

The inputs have one sign, and Adam moves all weights of a unit alike: a step moves the unit by the learning rate times
this sum, about √K or far more. With K = 49,152 every sigmoid is shut within a few hundred steps, and the network a
constant.
"""


@dataclass
class Config(sft.Config):
    """Settings of the temperature network; `data`, `tasks`, `problems` and `solution` as in the supervised warm-up.

    Attributes:
        entropy: T_H in nats.
        low: lowest temperature.
        high: highest temperature; 1 or a little more where tokens are exact, as in arithmetic.
        width: of the hidden layers.
        normalise: whether logits are scaled to length 1, as published.
        joint: whether the policy learns, too; `learning_rate` and its schedule are then the policy's.
        tempnet_learning_rate: the network's own, fixed, where the policy learns.
    """

    entropy: float = Temperatures().entropy
    low: float = Temperatures().low
    high: float = Temperatures().high
    width: int = Temperatures().width
    normalise: bool = Temperatures().normalise
    joint: bool = False
    tempnet_learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Keep the columns that the model reads."""
        self.remove_unused_columns = False
        if self.joint:
            # The network reads what the policy's forward pass gave, so DDP would take its weights for unused.
            self.ddp_find_unused_parameters = False
        super().__post_init__()

    @property
    def temperatures(self) -> Temperatures:
        """What the network is."""
        return Temperatures(self.entropy, self.low, self.high, self.width, self.normalise)


class TempNetTrainer(Trainer):
    """Trains the network on what `policy` gives; the recipe sets it, and the first layer's `share` of the rate."""

    policy: Any
    share: float

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser, in which the network's first layer has a rate of its own."""
        made = super().create_optimizer(model)
        set_apart(made, self.model.transformation, lr=self.share * self.args.learning_rate)
        return made

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean of the robust loss over the completions' positions."""
        logits, labels, tau = self.tempered(model, inputs)
        loss = tempnet.loss(logits, labels, tau, self.args.entropy).mean()
        return (loss, {"tau": tau}) if return_outputs else loss

    def tempered(self, model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [N, K] of the policy, labels [N] and the network's temperatures [N]."""
        logits, labels = positions(self.policy, inputs)
        return logits, labels, model(logits)


class JointTrainer(TempNetTrainer):
    """Trains a policy together with the network that is its part `tempnet`."""

    def tempered(self, model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As with a frozen policy, but for the gradient of the logits."""
        logits, labels = positions(model, inputs, learn=True)
        return logits, labels, self.model.tempnet(logits)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser, whose groups of the network have no weight decay and know their share of its rate."""
        made = Trainer.create_optimizer(self, model)
        set_apart(made, self.model.tempnet, weight_decay=0.0, share=1.0)
        set_apart(made, self.model.tempnet.transformation, share=self.share)
        return made

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A step in which the schedule does not touch the network."""
        for group in self.optimizer.param_groups:
            if "share" in group:
                group["lr"] = group["share"] * self.args.tempnet_learning_rate
        return super().training_step(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        state = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {key: value for key, value in state.items() if not key.startswith(_PART)})
        net = {key.removeprefix(_PART): value.contiguous() for key, value in state.items() if key.startswith(_PART)}
        if self.args.should_save:
            save_file(net, Path(output_dir or self.args.output_dir) / tempnet.BESIDE)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(checkpoint, model)
        self.model.tempnet.load_state_dict(load_file(Path(checkpoint) / tempnet.BESIDE))


_PART = "tempnet."


def set_apart(optimiser: torch.optim.Optimizer, part: torch.nn.Module, **options: float) -> None:
    """Give the weights of a part groups of their own, which differ from those they were in by these options."""
    own = {id(weight) for weight in part.parameters()}
    for group in list(optimiser.param_groups):
        taken = [weight for weight in group["params"] if id(weight) in own]
        group["params"] = [weight for weight in group["params"] if id(weight) not in own]
        if taken:
            optimiser.add_param_group({**group, "params": taken, **options})


def positions(
    policy: Any, batch: Mapping[str, torch.Tensor], learn: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, K] of the policy before each label of a batch, and the labels [N]; −100 is no label.

    Args:
        policy: a causal language model.
        batch: input_ids, attention_mask and labels [rows, tokens].
        learn: whether the logits carry a gradient.
    """
    labels = batch["labels"][:, 1:]
    columns = (labels != -100).any(0).nonzero().squeeze(1)
    read = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.set_grad_enabled(learn):
        logits = policy(**read, logits_to_keep=columns, use_cache=False).logits
    labels = labels[:, columns]
    real = labels != -100
    return logits[real].float(), labels[real]


def tokens(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, longest: int | None) -> dict[str, list[int]]:
    """Token ids of prompt and completion, texts or chats, with labels on the completion; cut at `longest`."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        before = tokenizer.encode(prompt)
        whole = [*before, *tokenizer.encode(completion, add_special_tokens=False), tokenizer.eos_token_id]
    else:
        before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template([*prompt, *completion], return_dict=False)
    labels = [-100] * len(before) + whole[len(before) :]
    return {"input_ids": whole[:longest], "labels": labels[:longest]}


def labelled(args: sft.Config, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """The rows of a recipe as tokens, but for those of which nothing is left to learn from."""
    made = [tokens(row, tokenizer, args.max_length) for row in sft.rows(args)]
    return [row for row in made if any(label != -100 for label in row["labels"])]


def refuse_sharding(plugin: Any) -> None:
    """Refuse ZeRO-3 and FSDP: a frozen model is gathered for nobody, one that learns is not whole for its first batch.

    Raises:
        ValueError: accelerate was told to.
    """
    if (plugin is not None and plugin.zero_stage == 3) or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise ValueError(
            "the model is read outside of what the trainer shards, so neither ZeRO-3 nor FSDP can shard it: launch "
            "with recipes/accelerate/zero2.yaml, or without sharding"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    args, settings = run.parse(Config, argv)
    sft.refuse_nothing(args)
    refuse_sharding(args.deepspeed_plugin)
    said = args.temperatures  # refuses what means nothing, before anything is loaded
    todo = run.begin("tempnet", args, settings, [args.data] if args.data else [])
    if todo is None:
        return
    policy, tokenizer = run.load_policy(args)
    policy = policy.requires_grad_(args.joint).eval().to(args.device)
    made = labelled(args, tokenizer)
    collator = DataCollatorForSeq2Seq(tokenizer)
    set_seed(args.seed)
    net = TempNet(said, policy.config.vocab_size)
    some = random.Random(args.seed).sample(made, min(len(made), args.per_device_train_batch_size))
    first = collator(some).to(args.device)
    logits = positions(policy, first)[0]
    net.to(args.device).settle(logits)
    TempNetTrainer.share = min(1.0, FAR / net.features(logits).abs().sum(-1).mean().item())
    trainer, learner = TempNetTrainer, net
    if args.joint:
        policy.tempnet = net
        trainer, learner = JointTrainer, policy
    else:
        TempNetTrainer.policy = policy
    kind = "full" if args.joint else "tempnet"
    run.fit(
        trainer,
        args,
        replace(todo, manifest=replace(todo.manifest, kind=kind, temperatures=said)),
        model=learner,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(made),
        data_collator=collator,
    )


if __name__ == "__main__":
    main()
