"""The temperature of rollouts at which the policy's next-token entropy is a target (AceReason, arXiv 2506.13284).

Every policy is of its own sharpness, so no one temperature suits all. Over the positions t of drawn responses

    H(T) = mean_t H(softmax(z_t / T)),      dH/dT = mean_t Var(z_t)/T³ ≥ 0,

so on given responses bisection finds T with H(T) = target; since responses drawn at another temperature are others,
draw and solve again until T stays. The paper names the target, 0.3 nats for long reasoning; bisection is ours.

Any recipe on TRL's GRPO trainer does it before its first step if it is told `entropy: 0.3`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extratime.models.manifest import write_json
from extratime.models.tempnet import entropy

NAME = "temperature.json"
LOW, HIGH = 0.3, 1.6
PROMPTS, POSITIONS, ROWS = 128, 4096, 256


@dataclass(frozen=True, slots=True)
class Choice:
    """A temperature that was chosen.

    Attributes:
        target: entropy asked for, in nats.
        temperature: what was found.
        entropy: that of fresh responses drawn at it.
    """

    target: float
    temperature: float
    entropy: float


def mean_entropy(logits: Tensor, temperature: float) -> float:
    """H(T) in nats of positions with logits [N, K], in float32."""
    total = sum(entropy(rows.float(), temperature).double().sum() for rows in logits.split(ROWS))
    return float(total) / len(logits)


def solve(logits: Tensor, target: float) -> float:
    """The temperature in [0.3, 1.6] at which positions with logits [N, K] have the entropy `target`, to 1e-4.

    Raises:
        ValueError: no temperature there gives it; the message tells what can be had.
    """
    low, high = LOW, HIGH
    least, most = mean_entropy(logits, low), mean_entropy(logits, high)
    if not least < target < most:
        raise ValueError(
            f"entropy: {target:g} nats cannot be had: the policy's is {least:.3f} at temperature {LOW} and {most:.3f} "
            f"at {HIGH}; choose a target between them, or leave it out and set temperature"
        )
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if mean_entropy(logits, middle) > target else (middle, high)
    return (low + high) / 2


def choose(draw: Callable[[float], Tensor], target: float, start: float = 1.0, rounds: int = 3) -> Choice:
    """Draw and solve until the temperature moves by less than 0.02.

    Args:
        draw: logits [N, K] at the positions of fresh responses drawn at a temperature.
        target: nats.
        start: temperature of the first responses.
        rounds: most draws before the one that confirms.
    """
    temperature = start
    for _ in range(rounds):
        before, temperature = temperature, solve(draw(temperature), target)
        if abs(temperature - before) < 0.02:
            break
    return Choice(target, temperature, mean_entropy(draw(temperature), temperature))


@torch.no_grad()
def drawn_logits(
    model: Any, tokenizer: Any, batch: Sequence[Sequence[int]], temperature: float, longest: int
) -> Tensor:
    """Logits [N, K] before each token of one response to each prompt, its end token included; no pad counts.

    Of long responses only columns chosen at random are read, so that N stays near its share of `POSITIONS`.
    """
    padded = tokenizer.pad({"input_ids": [list(ids) for ids in batch]}, padding_side="left", return_tensors="pt")
    padded = padded.to(model.device)
    law = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    whole = model.generate(**padded, **law, **ends, max_new_tokens=longest)
    width = padded["input_ids"].shape[1]
    told = counted(whole[:, width:], tokenizer.eos_token_id)
    mask = torch.cat([padded["attention_mask"], told.long()], 1)
    share = max(1, POSITIONS // PROMPTS)
    columns = torch.randperm(told.shape[1])[:share].sort().values.to(model.device)
    logits = model(input_ids=whole, attention_mask=mask, logits_to_keep=columns + width - 1, use_cache=False).logits
    return logits[told[:, columns]]


def counted(tokens: Tensor, end: int) -> Tensor:
    """Which of the tokens [B, L] after prompts count: all up to the first end token, and it too."""
    ended = (tokens == end).cumsum(1)
    return (ended - (tokens == end).long()) == 0


def encoded(prompts: Sequence[Any], tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of prompts, texts or chats, as TRL makes them."""
    for prompt in prompts:
        if isinstance(prompt, str):
            yield tokenizer(prompt)["input_ids"]
        else:
            yield tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)


def settle(args: Any, model: Any, tokenizer: Any, prompts: Sequence[Any]) -> float:
    """The temperature for a run's rollouts: what its folder says, else chosen now and written there.

    Args:
        args: settings of a GRPO run with `entropy`; `temperature` is where the search begins.
        model: the policy, whole.
        tokenizer: its tokenizer.
        prompts: texts or chats; 128 of them, evenly spread, are answered once a round.

    Raises:
        ValueError: the settings cut the distribution, shard the model, or the target cannot be had.
    """
    _refuse(args)
    file = Path(args.output_dir) / NAME
    if file.is_file():
        choice = Choice(**json.loads(file.read_text(encoding="utf-8")))
        if choice.target == args.entropy:
            return choice.temperature
    ids = list(encoded(prompts[:: max(1, len(prompts) // PROMPTS)][:PROMPTS], tokenizer))
    model = model.to(args.device).eval()

    def draw(temperature: float) -> Tensor:
        each, longest = args.per_device_train_batch_size, args.max_completion_length
        batches = (ids[begin : begin + each] for begin in range(0, len(ids), each))
        return torch.cat([drawn_logits(model, tokenizer, batch, temperature, longest) for batch in batches])

    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        choice = choose(draw, args.entropy, args.temperature)
    sys.stderr.write(f"rollouts at temperature {choice.temperature:.3f}: entropy {choice.entropy:.3f} nats\n")
    write_json(file, asdict(choice))
    return choice.temperature


def _refuse(args: Any) -> None:
    cut = {"top_p": args.top_p != 1, "top_k": bool(args.top_k), "min_p": bool(args.min_p)}
    cut |= {"repetition_penalty": args.repetition_penalty != 1, "generation_kwargs": bool(args.generation_kwargs)}
    if found := [name for name, told in cut.items() if told]:
        raise ValueError(f"entropy is that of the whole distribution, which {', '.join(found)} would cut")
    plugin = args.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        raise ValueError(
            "entropy: under ZeRO-3 no process holds a whole policy to draw from; set the temperature that the same "
            "recipe prints without DeepSpeed or under zero2.yaml"
        )
