"""Teach a model to judge by judgements that came to the right verdict (J1-7B, arXiv 2505.11875, first stage).

Supervised fine-tuning on `{"prompt": …, "completion": …}` lines: what `extratime.train.judge_data` keeps of a judge's
own judgements by rejection sampling, reflective ones among them, or, for a start from nothing, traces written by a
program. The manifest tells how the judge is to be asked, so that `extratime evaluate` needs the folder alone.

    python -m extratime.train.judge_sft --config recipes/judge_sft/sums.yaml
    accelerate launch --config_file recipes/accelerate/zero3.yaml -m extratime.train.judge_sft --config …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from datasets import Dataset

from extratime.models import manifest
from extratime.models.judge import Judge, check_verdicts
from extratime.train import run, sft


@dataclass
class JudgeConfig:
    """What a judge is told; see `extratime.models.judge.Judge`, whose `max_tokens` is `judge_tokens` here."""

    pointwise: str = Judge().pointwise
    pairwise: str = Judge().pairwise
    opener: str = Judge().opener
    yes: str = Judge().yes
    no: str = Judge().no
    first: str = Judge().first
    second: str = Judge().second
    cue: str = Judge().cue
    form: str = field(default="pairwise", metadata={"choices": ["pointwise", "pairwise"]})
    judge_tokens: int = Judge().max_tokens
    chat: bool = Judge().chat

    @property
    def judge(self) -> Judge:
        """What the settings say."""
        said = {f.name: getattr(self, f.name) for f in fields(Judge) if f.name != "max_tokens"}
        return Judge(**said, max_tokens=self.judge_tokens)


@dataclass
class Config(JudgeConfig, sft.Config):
    """Settings: those of the judge, and `data` and the rest as in the supervised warm-up."""


def asked(model: str, settings: JudgeConfig) -> Judge:
    """What a judge is told: by the manifest of `model` where that was trained to judge, else by the settings."""
    said = manifest.found(model)
    return (said.judge if said else None) or settings.judge


def turn(judge: Judge, role: str, text: str) -> Any:
    """What is said to or by a judge, as TRL's trainers take it: a chat of one turn, or plain text."""
    return [{"role": role, "content": text}] if judge.chat else text


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    args, settings = run.parse(Config, argv)
    sft.refuse_nothing(args)
    judge = args.judge  # refuses what means nothing, before anything is loaded
    todo = run.begin("judge_sft", args, settings, [args.data] if args.data else [])
    if todo is None:
        return
    learned = Dataset.from_list(sft.rows(args))
    model, tokenizer = run.load_policy(args)
    check_verdicts(tokenizer, judge)
    todo = replace(todo, manifest=replace(todo.manifest, judge=judge))
    run.fit(sft.ColumnTrainer, args, todo, model=model, processing_class=tokenizer, train_dataset=learned)


if __name__ == "__main__":
    main()
