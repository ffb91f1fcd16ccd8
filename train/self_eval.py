"""Teach a model to tell, in one token, whether a fresh attempt would beat its response.

Capability-aware self-evaluation (Manvi, Singh, Ermon, arXiv 2410.02725). From n on-policy draws of each prompt with
rewards R, each response gets the soft label ŵ_i = (1/(n−1)) Σ_{j≠i} 1[R_i ≥ R_j − ε]; it is read whole with
probability ρ and cut at ⌈uL⌉, u ~ U(0, 1], otherwise; the question follows, and one slot carries the loss

    L = −[ ŵ log softmax(z)_No + (1 − ŵ) log softmax(z)_Yes ],   z the logits over the whole vocabulary.

Deliberate deviations:
- The adapter is an activated LoRA, on from the question on: the policy stays bit-identical and its KV cache is reused
  (`adapter: lora` reads the response again beside an unchanged policy, `adapter: full` changes the policy).
- Soft labels in place of one random opponent, and, with `cuts` > 1, one whole reading and one from each of `cuts` − 1
  equal parts of the response, weighted to the same law: same expectations, less variance.
- `contrast` adds, for pairs of one prompt and part with ŵ_i > ŵ_j, the mean of log(1 + exp(d_j − d_i)),
  d = z_No − z_Yes: calibration alone is satisfied by the difficulty of prompts.
- The question can tell how unlikely the response's weakest token was (`{weakest}` in `question`): outcomes alone are
  too few bits to teach a small model to notice its own slips, and what it felt while it wrote is known for nothing.
- `layout: shared` reads up to `responses` responses of a prompt and all their cuts in one sequence, a tree in which
  each sees only what it would see alone: what they share goes through the model once. `layout: separate` gives the
  same loss, slower.
- No KL term: under the default adapter there is nothing to hold.

`data` is a JSONL of draws, one `{"problem": id, "prompt": text, "response": text, "reward": number}` a line, and where
known the token ids drawn as "tokens" (without the end token), "prompt_ids", and "logprobs" of the tokens drawn.

    python -m extratime.train.self_eval --config recipes/self_eval/sums.yaml
    accelerate launch --config_file recipes/accelerate/zero3.yaml -m extratime.train.self_eval --config …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig
from trl import SFTTrainer

from extratime.models.self_eval import SelfEval, invocation_ids, question_ids, target_ids
from extratime.train import run
from extratime.train.readings import Collator, Law, read_draws, rows


@dataclass
class Config(run.SFTRunConfig):
    """Settings of the self-evaluation recipe.

    Attributes:
        data: JSONL of draws.
        question: what is asked after a response; `{weakest}` in it becomes the level of the weakest token.
        good: the answer that keeps a response; one token.
        bad: the answer that starts over; one token.
        chat: whether the chat template makes the question a turn.
        adapter: "alora", on from the question on; "lora", on from the prompt on; "full", which changes the policy.
        rank: of the adapter.
        alpha: scale of the adapter.
        target_modules: names of the adapted modules, or "all-linear".
        tolerance: ε, the largest gap of rewards that is a tie.
        cuts: readings of each response.
        keep: ρ, the share of readings of whole responses.
        contrast: weight of the within-prompt contrast.
        responses: most responses of one prompt in one row; the batch size counts rows.
        layout: "shared" or "separate" sequences.
        shuffle_labels: the control: labels go to responses at random.
    """

    data: str = ""
    question: str = SelfEval().question
    good: str = SelfEval().good
    bad: str = SelfEval().bad
    chat: bool = SelfEval().chat
    adapter: str = field(default="alora", metadata={"choices": ["alora", "lora", "full"]})
    rank: int = 32
    alpha: int = 64
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    tolerance: float = 0.0
    cuts: int = 1
    keep: float = 0.5
    contrast: float = 0.0
    responses: int = 8
    layout: str = field(default="shared", metadata={"choices": ["shared", "separate"]})
    shuffle_labels: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, and hand batches to our collator untouched."""
        self.dataset_kwargs = {"skip_prepare_dataset": True}
        self.remove_unused_columns = False
        super().__post_init__()
        if self.adapter == "alora" and self.activation_checkpointing:
            raise ValueError("adapter: alora cannot be trained with activation_checkpointing: true; set it to false")
        if self.contrast and self.responses < 2:
            raise ValueError("contrast compares responses of one row: set responses to 2 or more")

    @property
    def law(self) -> Law:
        """How responses are read."""
        return Law(self.cuts, self.keep, self.responses, self.tolerance, self.shuffle_labels, self.max_length)


def slot_loss(
    logits: torch.Tensor, targets: tuple[int, int], label: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Weighted mean cross-entropy of the answer slots.

    Args:
        logits: [..., vocabulary] at the slots.
        targets: ids of the good and the bad answer.
        label: [...] ŵ in [0, 1].
        weight: [...] ≥ 0; 0 where there is no slot.
    """
    logs = logits.float().log_softmax(-1)[..., list(targets)]
    each = -(label * logs[..., 0] + (1 - label) * logs[..., 1])
    return (weight * each).sum() / weight.sum()


def contrast_loss(margin: torch.Tensor, label: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Mean of log(1 + exp(d_j − d_i)) over pairs of one group with label_i > label_j; 0 where there is no such pair.

    Args:
        margin: [N] d = z_No − z_Yes.
        label: [N].
        group: [N] readings are compared where these are equal and ≥ 0.
    """
    better = (label[:, None] > label[None, :]) & (group[:, None] == group[None, :]) & (group >= 0)[:, None]
    each = F.softplus(margin[None, :] - margin[:, None])
    return (each * better).sum() / better.sum().clamp(min=1)


class SelfEvalTrainer(SFTTrainer):
    """SFT with loss on the answer slots only; `targets` is set by the recipe."""

    targets: tuple[int, int]
    loss_is_scaled_for_ga = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of a batch of `Collator`; only the slots' hidden states meet the vocabulary."""
        label, weight, group, slots = (inputs.pop(key) for key in ("label", "weight", "group", "slots"))
        offsets = inputs.pop("offsets").tolist()
        if self.args.adapter == "alora":
            inputs["alora_offsets"] = offsets
        outputs = model(**inputs, use_cache=False)
        logits = outputs.logits.take_along_dim(slots[..., None], 1)
        loss = self._told("slot_loss", slot_loss(logits, self.targets, label, weight))
        if self.args.contrast:
            good, bad = (logits[..., i].float() for i in self.targets)
            pairs = contrast_loss((good - bad).flatten(), label.flatten(), group.flatten())
            loss = loss + self.args.contrast * self._told("contrast_loss", pairs)
        return (loss, outputs) if return_outputs else loss

    def _told(self, name: str, loss: torch.Tensor) -> torch.Tensor:
        self._metrics["train"][name].append(loss.item())
        return loss


def adapter_config(args: Config, invocation: Sequence[int]) -> LoraConfig | None:
    """PEFT's configuration of the adapter, or None for full fine-tuning."""
    if args.adapter == "full":
        return None
    modules = args.target_modules
    return LoraConfig(
        r=args.rank,
        lora_alpha=args.alpha,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
        task_type="CAUSAL_LM",
        alora_invocation_tokens=list(invocation) if args.adapter == "alora" else None,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    args, settings = run.parse(Config, argv)
    ask = SelfEval(args.question, args.good, args.bad, args.chat)
    todo = run.begin("self_eval", args, settings, [args.data])
    if todo is None:
        return
    model, tokenizer = run.load_policy(args)
    questions = question_ids(tokenizer, ask)
    SelfEvalTrainer.targets = target_ids(tokenizer, ask)
    if args.layout == "shared" and model.config._attn_implementation != "sdpa":
        raise ValueError(f"layout: shared needs sdpa attention, not {model.config._attn_implementation}: use separate")
    drawn = read_draws(args.data, tokenizer)
    if ask.tells and any(len(draw.logprobs) < len(draw.response) for draw in drawn):
        raise ValueError(
            f"{args.data}: the question tells the weakest token, but a draw lacks log-probabilities of its tokens; "
            "draw with an engine that tells them, or leave {weakest} out of the question"
        )
    todo = replace(todo, manifest=replace(todo.manifest, kind=args.adapter, self_eval=ask))
    run.fit(
        SelfEvalTrainer,
        args,
        todo,
        model=model,
        processing_class=tokenizer,
        peft_config=adapter_config(args, invocation_ids(questions)),
        train_dataset=Dataset.from_list(rows(drawn, questions, args.law, args.seed)),
        data_collator=Collator(questions, tokenizer.pad_token_id or 0, args.layout == "shared"),
    )


if __name__ == "__main__":
    main()
