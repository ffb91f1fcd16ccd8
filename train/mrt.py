"""Meta reinforcement fine-tuning (MRT, arXiv 2503.07572): reward what an episode of thinking adds to the outcome.

ℓ_MRT = ℓ_FT + α · E Σ_j r_prg(z_j; c_j), where r_prg(z_j; c_j) = J(c_{j+1}) − J(c_j) is progress and J(c) the share of
right answers where the model is made to answer after the context c. Over one trace of the current policy progress adds
up to J_last − J_first, which says no more than the outcome, so credit goes to what follows a frozen prefix:

`branches` (default): c is a trace of the previous policy (`extratime.train.rollouts`), cut after a random number of
episodes. Of the 2m = `num_generations` rollouts from c, m are made to answer at once and m go on freely. Rewards are
normalised over all 2m: the stop group supplies J(c), and going on is rewarded only for what it adds.

    A_i = [(R_i − R̄_arm) + α·(R̄_arm − R̄)] / (std R + ε)          α = 1: (R_i − R̄)/(std R + ε)

`episodes`: rollouts of whole responses. Each token of episode j gets A_i + α·(Ĵ_{j+1} − Ĵ_j), each Ĵ from `k` forced
answers of the current policy.

Prompt, prefix and the words that force an answer are all part of what TRL takes for the prompt: they carry no loss.
All draws are TRL's own, by vLLM or the trained model. With α = 0 nothing is branched or forced: this is GRPO, to the
bit.

Deliberate deviations:
- The published objective has no formula for branches with α; here α weighs the part between the two groups.
- A prefix is read as text, so its tokens may differ from those drawn where a word straddles a blank line.

    python -m extratime.train.mrt --config recipes/mrt/signs.yaml
    accelerate launch --config_file recipes/accelerate/zero3.yaml -m extratime.train.mrt --config …
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from extratime.evaluate.algorithms.episodes import bridge
from extratime.evaluate.statistics.regret import progress
from extratime.models.engines.text import Text, decoder
from extratime.train import grpo, mrt_star, run
from extratime.train.grpo import Batch, Problems


@dataclass
class Config(mrt_star.Segmentation, grpo.Config):
    """Settings of MRT, beside those of GRPO and of the cutting of traces.

    Attributes:
        rollouts: run folder with the previous policy's draws, in place of `tasks`; needed for branches.
        form: "branches" or "episodes".
        alpha: α, the weight of progress; at 0 this is GRPO.
        k: forced answers after each prefix, for `episodes`.
    """

    rollouts: str = ""
    form: str = field(default="branches", metadata={"choices": ["branches", "episodes"]})
    alpha: float = 1.0
    k: int = 8

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before anything is loaded."""
        mrt_star.Segmentation.__post_init__(self)
        super(mrt_star.Segmentation, self).__post_init__()
        if self.form == "branches" and self.alpha and not self.rollouts:
            raise ValueError("branches begin in traces of the previous policy: name a folder of draws (rollouts)")
        if self.form == "branches" and self.alpha and self.num_generations % 2:
            raise ValueError(f"num_generations is m that stop and m that go on: even, not {self.num_generations}")
        if self.k < 1 or self.alpha < 0:
            raise ValueError(f"k must be ≥ 1 and alpha ≥ 0, not {self.k} and {self.alpha}")


class MRTTrainer(grpo.GRPOTrainer):
    """GRPO whose advantages know of progress."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        if not (self.args.alpha and self.model.training):
            return super()._generate_and_score_completions(inputs)
        if self.args.form == "branches":
            batch = super()._generate_and_score_completions(self._branches(inputs))
            return batch | {"advantages": self._weigh(batch["advantages"])}
        batch = super()._generate_and_score_completions(inputs)
        bonus = self.args.alpha * self._progress(inputs, batch)
        return batch | {"advantages": batch["advantages"].unsqueeze(1) + bonus}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, fields: Any, num: int, **more: Any
    ) -> Any:
        """Draw from every prompt: vLLM would take a group's for one, and those of branches differ."""
        alike = not (self.args.alpha and self.model.training and self.args.form == "branches")
        return super()._generate_single_turn(prompt_ids, images, fields, num if alike else 1, **more)

    def _branches(self, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows with their prefix as part of the prompt; the first half of each group has to answer at once."""
        first, size = self.accelerator.process_index * len(inputs), self.num_generations
        return [branch(row, self.args.cue, (first + i) % size < size // 2) for i, row in enumerate(inputs)]

    def _weigh(self, advantages: torch.Tensor) -> torch.Tensor:
        """Advantages [B] of this process with the part between the groups weighed by α."""
        if self.args.alpha == 1:
            return advantages
        everyone = weigh(self.accelerator.gather(advantages), self.num_generations, self.args.alpha)
        first = self.accelerator.process_index * len(advantages)
        return everyone[first : first + len(advantages)]

    def _progress(self, inputs: Sequence[Mapping[str, Any]], batch: Batch) -> torch.Tensor:
        """Bonus [B, T] of each token: what its episode adds to Ĵ; 0 for the answer and for padding."""
        read = decoder(self.processing_class)
        traces = [cut(kept(batch, "completion", i), self.args, read) for i in range(len(inputs))]
        asked = [(i, *context) for i, trace in enumerate(traces) for context in trace for _ in range(self.args.k)]
        rewards = iter(self._forced(inputs, batch, asked))
        bonus = torch.zeros_like(batch["completion_mask"], dtype=torch.float32)
        told = []
        for i, trace in enumerate(traces):
            successes = [sum(next(rewards) for _ in range(self.args.k)) / self.args.k for _ in trace]
            told.append((successes[0], successes[-1]))
            for (begin, _), (end, _), gain in zip(trace, trace[1:], progress(successes), strict=False):
                bonus[i, begin:end] = gain
        for name, column in zip(("first", "last"), zip(*told, strict=True), strict=True):
            self._metrics["train"][f"success/{name}"].append(sum(column) / len(column))
        return bonus

    @torch.no_grad()
    def _forced(self, inputs: Sequence[Any], batch: Batch, asked: Sequence[tuple[int, int, str]]) -> list[float]:
        """Rewards of answers forced in rows' rollouts after some tokens, by the current policy."""
        encode = {cue: self.processing_class(text=cue, add_special_tokens=False)["input_ids"] for _, _, cue in asked}
        prompts = [[*kept(batch, "prompt", i), *kept(batch, "completion", i)[:n], *encode[cue]] for i, n, cue in asked]
        drawn, _ = super()._generate_single_turn(prompts, None, {}, 1)
        texts = self.processing_class.batch_decode(drawn, skip_special_tokens=True)
        said = [cue + text for (_, _, cue), text in zip(asked, texts, strict=True)]
        return self._rewards([inputs[i] for i, _, _ in asked], said)

    def _rewards(self, rows: Sequence[Mapping[str, Any]], said: Sequence[str]) -> list[float]:
        columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
        prompts = [row["prompt"] for row in rows]
        total = [0.0] * len(said)
        for weight, reward in zip(self.reward_weights.tolist(), self.reward_funcs, strict=True):
            found = reward(prompts=prompts, completions=list(said), completion_ids=None, **columns)
            total = [before + weight * one for before, one in zip(total, found, strict=True)]
        return total


def branch(row: Mapping[str, Any], cue: str, stop: bool) -> dict[str, Any]:
    """A row whose prompt goes on with its prefix and, where it has to stop, with the words that force an answer."""
    forced = bridge(row["prefix"], cue) if stop else ""
    return {**row, "prompt": row["prompt"] + row["prefix"] + forced, "opening": forced}


def weigh(advantages: torch.Tensor, size: int, alpha: float) -> torch.Tensor:
    """Jointly normalised advantages [N·size] with the part between stopping and going on weighed by α.

    (R_i − R̄)/(s + ε) is linear in R, so the part between the groups is a group's mean of it.
    """
    groups = advantages.view(-1, 2, size // 2)
    return (groups - (1 - alpha) * groups.mean(-1, keepdim=True)).view(-1)


def kept(batch: Batch, part: str, i: int) -> list[int]:
    """Token ids of row i's prompt or completion, without padding."""
    return batch[f"{part}_ids"][i][batch[f"{part}_mask"][i].bool()].tolist()


def cut(ids: Sequence[int], args: mrt_star.Segmentation, decode: Callable[..., str]) -> list[tuple[int, str]]:
    """The contexts of a rollout: after how many of its tokens, and the words that force an answer there."""
    text, ends = Text(decode), []
    for token in ids:
        text.push(token)
        ends.append(len(text.value))
    found = args.cut(text.value)
    return [(bisect_left(ends, len(prefix)) + 1 if prefix else 0, bridge(prefix, cue)) for prefix, cue in found]


def prefixed(args: Config, tokenizer: Any) -> Problems:
    """The previous policy's traces, each cut after a random number of its episodes, with what judges their answers."""
    rng, tasks, found = random.Random(args.seed), mrt_star.open_tasks(Path(args.rollouts)), Problems([], [])
    places: dict[str, int] = {}
    for draw in mrt_star.read_draws(Path(args.rollouts)):
        name = draw["problem"]
        if name not in places:
            places[name] = len(found.documents)
            found.documents.append(tasks.document(name))
        (prefix, _) = rng.choice(args.cut(draw["response"])[:-1] or [("", "")])
        found.rows.append({"prompt": bare(draw["prompt"], tokenizer), "prefix": prefix, "problem": places[name]})
    return found


def bare(prompt: str, tokenizer: Any) -> str:
    """A prompt without the token that the tokenizer, asked by TRL, puts before every text."""
    adds = bool(tokenizer.bos_token) and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return prompt.removeprefix(tokenizer.bos_token) if adds else prompt


def outcome(problems: Problems) -> Callable[..., list[float]]:
    """The reward of what is said after the prefix: a right number in the thinking is no answer."""
    plain = grpo.outcome(problems)

    def outcome(completions: Sequence[Any], opening: Sequence[str] | None = None, **columns: Any) -> list[float]:
        said = [grpo.said(text) for text in completions]
        return plain([o + text for o, text in zip(opening, said, strict=True)] if opening else said, **columns)

    return outcome


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    args, settings = run.parse(Config, argv)
    grpo.refuse_inexact(args)
    if bool(args.tasks) == bool(args.rollouts):
        raise ValueError("name either tasks with a training split (tasks) or a folder of draws (rollouts)")
    todo = run.begin("mrt", args, settings, [str(Path(args.rollouts) / "draws.jsonl")] if args.rollouts else [])
    if todo is None:
        return
    model, tokenizer = run.load_policy(args)
    problems = prefixed(args, tokenizer) if args.rollouts else grpo.load_problems(args)
    run.fit(
        MRTTrainer,
        args,
        todo,
        model=model,
        processing_class=tokenizer,
        reward_funcs=outcome(problems),
        train_dataset=Dataset.from_list(problems.rows),
    )


if __name__ == "__main__":
    main()
