"""Teach a judge to reason by reinforcement: its verdicts can be checked (J1, arXiv 2505.10320 and 2505.11875).

GRPO on pairs of a right and a wrong response, both orders of a pair in one batch of rollouts. Rewards of a judgement:

    verdict      1[v = label]
    format       −unparsed · 1[there is no verdict]
    consistency  1[v and the verdict on the other order both name the better response]

One paper tried a format reward and dropped it: `unparsed: 0`. Consistency is sparser than correctness, about q² where
each order is right with probability q: add it once q is above 0.6 or so. Which rollout of the other order a rollout
meets is not published: `consistency` takes "index", "mean" over all of them, or "none". `reward_weights` weighs the
rewards, in the order above; `scale_rewards: batch` divides by the spread of the whole batch, as REINFORCE++ does.

    python -m extratime.train.judge_grpo --config recipes/judge_grpo/sums.yaml
    accelerate launch --config_file recipes/accelerate/zero3.yaml -m extratime.train.judge_grpo --config …
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from datasets import Dataset
from trl.trainer.utils import RepeatSampler

from extratime.evaluate.statistics.position_bias import Verdict, position_bias
from extratime.models.judge import Form, Judge, check_verdicts, verdict
from extratime.train import rewards, run
from extratime.train.grpo import GRPOTrainer, refuse_inexact, said
from extratime.train.judge_data import Pair, read_pairs
from extratime.train.judge_sft import JudgeConfig, asked, turn

Reward = Callable[..., list[float]]


@dataclass
class Config(JudgeConfig, run.GRPORunConfig):
    """Settings: those of the judge, where `model` was not trained to judge; those of GRPO; and the following.

    Attributes:
        data: JSONL of pairs, as `extratime.train.judge_data` writes them.
        unparsed: what a judgement without a verdict loses.
        consistency: how the orders of a pair meet; pointwise judges have no orders.
    """

    data: str = ""
    unparsed: float = 0.5
    consistency: str = field(default="mean", metadata={"choices": ["none", "index", "mean"]})


class PairSampler(RepeatSampler):
    """TRL's sampler over pairs: rows 2p and 2p + 1 of each pair p, `group` times each, one after the other."""

    def __init__(self, rows: int, group: int, batch_size: int, **options: Any) -> None:
        super().__init__(range(rows // 2), 1, batch_size // (2 * group), **options)
        self.group = group

    def __iter__(self) -> Iterator[int]:
        """Places of rows."""
        for pair in super().__iter__():
            yield from [2 * pair] * self.group + [2 * pair + 1] * self.group

    def __len__(self) -> int:
        """How many places."""
        return 2 * self.group * super().__len__()


class JudgeTrainer(GRPOTrainer):
    """GRPO that draws both orders of a pair together."""

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        self._order = PairSampler(
            len(self.train_dataset if dataset is None else dataset),
            self.num_generations,
            self.args.generation_batch_size,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )
        return self._order


def rows(pairs: Sequence[Pair], judge: Judge) -> list[dict[str, Any]]:
    """Two rows a pair: the prompt, which pair, and the verdict it deserves."""
    return [
        {"prompt": turn(judge, "user", prompt), "pair": place, "label": label}
        for place, pair in enumerate(pairs)
        for prompt, label in pair.prompts(judge, judge.form)
    ]


def reward_functions(judge: Judge, unparsed: float = 0.5, consistency: str = "mean") -> list[Reward]:
    """The rewards, as TRL calls them; the first also logs accuracy and position bias."""

    def read(completions: Sequence[Any]) -> list[Verdict]:
        return [verdict(said(text), judge, judge.form) for text in completions]

    def correct(completions: Sequence[Any], pair: Sequence[int], label: Sequence[int], **more: Any) -> list[float]:
        found = read(completions)
        for name, value in measured(found, pair, label, judge.form).items():
            more["log_metric"](f"judge/{name}", value)
        return [float(v == right) for v, right in zip(found, label, strict=True)]

    def form(completions: Sequence[Any], **_: Any) -> list[float]:
        return [-unparsed if v is None else 0.0 for v in read(completions)]

    def agreeing(completions: Sequence[Any], pair: Sequence[int], label: Sequence[int], **_: Any) -> list[float]:
        right = [v == wanted for v, wanted in zip(read(completions), label, strict=True)]
        return rewards.consistency(right, pair, label, consistency == "mean")

    named = {"verdict": correct, "format": form, "consistency": agreeing}
    for name, function in named.items():
        function.__name__ = name
    both = consistency != "none" and judge.form == "pairwise"
    return list(named.values())[: 3 if both else 2]


def measured(found: Sequence[Verdict], pair: Sequence[int], label: Sequence[int], form: Form) -> dict[str, float]:
    """Accuracy and position bias of a batch, its rollouts of the two orders matched by their place."""
    order = sorted(range(len(found)), key=lambda i: pair[i])
    first, second = ([found[i] for i in order if label[i] == side] for side in (0, 1))
    told = asdict(position_bias(first, second))
    return told if form == "pairwise" else {name: told[name] for name in ("accuracy", "parsed")}


def refuse_split_pairs(args: Config, pairs: int) -> None:
    """Refuse batches that would not hold both orders of each pair, and fewer pairs than fill one.

    Raises:
        ValueError: they are such.
    """
    each, whole = args.per_device_train_batch_size * args.steps_per_generation, 2 * args.num_generations
    if each % whole:
        raise ValueError(
            f"a process draws {each} rollouts at a time (per_device_train_batch_size × steps_per_generation); both "
            f"orders of a pair take {whole} (2 × num_generations): make the first a multiple of the second"
        )
    if pairs < args.generation_batch_size // whole:
        raise ValueError(f"{pairs} pairs do not fill one batch of {args.generation_batch_size // whole}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    args, settings = run.parse(Config, argv)
    refuse_inexact(args)
    judge = asked(args.model, args)
    todo = run.begin("judge_grpo", args, settings, [args.data])
    if todo is None:
        return
    pairs = read_pairs(args.data)
    refuse_split_pairs(args, len(pairs))
    model, tokenizer = run.load_policy(args)
    check_verdicts(tokenizer, judge)
    run.fit(
        JudgeTrainer,
        args,
        replace(todo, manifest=replace(todo.manifest, judge=judge)),
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward_functions(judge, args.unparsed, args.consistency),
        train_dataset=Dataset.from_list(rows(pairs, judge)),
    )


if __name__ == "__main__":
    main()
