"""Published process reward models: how each is asked, and where in its output the answer stands.

- `qwen2.5-math-prm` (arXiv 2501.07301): a chat with a system turn, each step followed by `<extra_0>`; there, the
  softmax of two outputs, the second.
- `skywork-o1-open-prm`: the question and the steps, each followed by a line feed; there, the sigmoid of a value head.
- `math-shepherd` (arXiv 2312.08935): the question and the steps, each followed by " ки"; there, P("+") of the words
  "+" and "-".
- `rlhflow` (arXiv 2405.07863): a chat, one turn of the user's a step, each answered "+"; one place before each "+",
  P("+") of the same words.
- `armorm` (arXiv 2406.12845): a chat of question and response; one number for the whole, objectives at its end weighed
  by a gate on what the model holds where the question ends.

Their own code is never run: weights go into the plain transformers architecture, heads into the modules below. What is
read from two words of the vocabulary becomes a head of these two rows. A response is split where the convention's
steps end, or at the recipe's separator; the convention's own marks and special tokens are dropped from within a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from extratime.models.engines.text import encoder
from extratime.models.steps import Reading, Unreadable, reader, split

Read = Callable[[str, str], Reading]
_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
_QWEN_TAG, _SHEPHERD_TAG = "<extra_0>", "ки"
_ARMO_TURN = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


def second_of_two(logits: Tensor) -> Tensor:
    """P(label 1) of two: [rows, tokens] of [rows, tokens, 2]."""
    return logits.softmax(-1)[..., 1]


def first_as_probability(logits: Tensor) -> Tensor:
    """Sigmoid of a single label: [rows, tokens] of [rows, tokens, 1]."""
    return logits[..., 0].sigmoid()


def as_it_is(logits: Tensor) -> Tensor:
    """One number a text: [rows, 1]."""
    return logits


@dataclass(frozen=True, slots=True)
class Convention:
    """One family of published checkpoints.

    Attributes:
        separator: where a response is split into steps unless a recipe says otherwise.
        read: from tokenizer and separator to how texts are read; the first text is the question alone.
        tell: from logits to rewards.
        head: from the checkpoint's folder, the backbone and the tokenizer to what follows the backbone.
        architecture: the name in config.json that means this convention; None where others use it, too.
        steps: whether it weighs steps.
        served: whether a pooling server tells what it reads: outputs of a head, not words of the vocabulary.
    """

    separator: str
    read: Callable[[Any, str], Read]
    tell: Callable[[Tensor], Tensor]
    head: Callable[[Path, Any, Any], nn.Module]
    architecture: str | None = None
    steps: bool = True
    served: bool = False


def named(architectures: Iterable[str]) -> str | None:
    """The convention that an architecture's name means, or None."""
    known = {convention.architecture: name for name, convention in CONVENTIONS.items() if convention.architecture}
    return next((known[name] for name in architectures if name in known), None)


class Headed(nn.Module):
    """A backbone with a head that turns (hidden states, ids, mask) into logits."""

    def __init__(self, backbone: Any, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head.to(backbone.device, backbone.dtype).eval()
        self.config, self.device = backbone.config, backbone.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """See `extratime.models.reward.RewardModel`."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        if isinstance(self.head, Gated):
            return SimpleNamespace(logits=self.head(hidden, input_ids, attention_mask))
        return SimpleNamespace(logits=self.head(hidden))


# --- how texts are read


def _steps(tokenizer: Any, said: str, separator: str, *marks: str) -> list[str]:
    """The steps of a response, without marks that would pass for the convention's own."""
    marks = (*marks, *tokenizer.all_special_tokens)
    return [_without(step, marks).strip() for step in split(said, separator)]


def _without(text: str, marks: Sequence[str]) -> str:
    for mark in marks:
        text = text.replace(mark, "")
    return text


def _at(ids: Sequence[int], tag: int, steps: int, mark: str) -> Reading:
    """The places of `tag`, one a step.

    Raises:
        Unreadable: there are more or fewer.
    """
    ends = tuple(i for i, token in enumerate(ids) if token == tag)
    if len(ends) != steps:
        raise Unreadable(f"{len(ends)} ends of steps ({mark}) where {steps} were put: is this the model's tokenizer?")
    return tuple(ids), ends


def _last(tokenizer: Any, text: str) -> int:
    return int(tokenizer(text, add_special_tokens=False).input_ids[-1])


def _qwen(tokenizer: Any, separator: str) -> Read:
    tag = tokenizer.convert_tokens_to_ids(_QWEN_TAG)

    def read(question: str, said: str) -> Reading:
        steps = _steps(tokenizer, said, separator, _QWEN_TAG)
        chat = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": question.replace(_QWEN_TAG, "")},
            {"role": "assistant", "content": "".join(step + _QWEN_TAG for step in steps)},
        ]
        return _at(_chat(tokenizer, chat), tag, len(steps), _QWEN_TAG) if steps else ((), ())

    return read


def _skywork(tokenizer: Any, separator: str) -> Read:
    read_steps = reader(tokenizer, "\n")

    def read(question: str, said: str) -> Reading:
        steps = [" ".join(step.split("\n")) for step in _steps(tokenizer, said, separator)]
        ids, ends = read_steps(f"{tokenizer.bos_token or ''}{question}\n", "\n".join(steps))
        if len(ends) != len(steps):
            raise Unreadable(
                f"{len(ends)} ends of steps where {len(steps)} were put: a step holds special tokens only"
            )
        return ids, ends

    return read


def _shepherd(tokenizer: Any, separator: str) -> Read:
    encode, tag = encoder(tokenizer), _last(tokenizer, f" {_SHEPHERD_TAG}")

    def read(question: str, said: str) -> Reading:
        steps = _steps(tokenizer, said, separator, _SHEPHERD_TAG)
        text = "\n".join(f"{step} {_SHEPHERD_TAG}" for step in steps)
        ids = encode(f"{question.replace(_SHEPHERD_TAG, '')}\n {text}").ids or ()
        return _at(ids, tag, len(steps), _SHEPHERD_TAG) if steps else ((), ())

    return read


def _rlhflow(tokenizer: Any, separator: str) -> Read:
    plus = _last(tokenizer, "+")

    def read(question: str, said: str) -> Reading:
        chat: list[dict[str, str]] = []
        begun = []
        for step in _steps(tokenizer, said, separator):
            chat.append({"role": "user", "content": step if chat else f"{question} {step}"})
            begun.append(_chat(tokenizer, chat, reply=True))
            chat.append({"role": "assistant", "content": "+"})
        ids = _chat(tokenizer, chat) if chat else []
        for before in begun:
            if ids[: len(before) + 1] != [*before, plus]:
                raise Unreadable("the chat template changes turns when others follow, so that no place predicts '+'")
        return tuple(ids), tuple(len(before) - 1 for before in begun)

    return read


def _armorm(tokenizer: Any, separator: str) -> Read:
    turn = tokenizer(_ARMO_TURN, add_special_tokens=False).input_ids

    def read(question: str, said: str) -> Reading:
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
        ids = _chat(tokenizer, chat)
        if not any(ids[i : i + len(turn)] == turn for i in range(len(ids))):
            raise Unreadable(f"the chat template holds no {_ARMO_TURN!r}, from which the gate reads")
        return tuple(ids), ()

    return read


def _chat(tokenizer: Any, chat: list[dict[str, str]], reply: bool = False) -> list[int]:
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=reply, return_dict=False))


# --- what follows the backbone


def _tensors(folder: Path, *names: str) -> list[Tensor]:
    """Weights of a checkpoint by name.

    Raises:
        ValueError: it lacks one.
    """
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in set(names) & set(file.keys())}
    if lost := [name for name in names if name not in found]:
        raise ValueError(
            f"{folder} lacks {', '.join(lost)}, from which this convention reads: take another convention"
        )
    return [found[name] for name in names]


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


def _two_layers(folder: Path, backbone: Any, tokenizer: Any) -> nn.Module:
    weights = _tensors(folder, "score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")
    return nn.Sequential(_linear(*weights[:2]), nn.ReLU(), _linear(*weights[2:]))


def _value(folder: Path, backbone: Any, tokenizer: Any) -> nn.Module:
    return _linear(*_tensors(folder, "v_head.summary.weight", "v_head.summary.bias"))


def _two_words(folder: Path, backbone: Any, tokenizer: Any) -> nn.Module:
    if backbone.config.tie_word_embeddings:
        words = backbone.get_input_embeddings().weight.detach()
    else:
        (words,) = _tensors(folder, "lm_head.weight")
    return _linear(words[[_last(tokenizer, "-"), _last(tokenizer, "+")]].clone())


class Gated(nn.Module):
    """Objectives at the end of the text, weighed by a gate on what the model holds where the question ends."""

    def __init__(self, objectives: Tensor, transform: Tensor, layers: Sequence[nn.Linear], scale: Tensor, t: float):
        super().__init__()
        self.objectives, self.layers = _linear(objectives), nn.ModuleList(layers)
        self.transform, self.scale = nn.Parameter(transform), nn.Parameter(scale)
        self.temperature = t
        self.turn: Tensor = torch.empty(0)

    def forward(self, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """One number a text: [rows, 1]."""
        rows, places = torch.arange(len(ids), device=ids.device), torch.arange(ids.shape[1], device=ids.device)
        turn = self.turn.to(ids.device)
        starts = (ids.unfold(1, len(turn), 1) == turn).all(-1)
        x = hidden[rows, (starts * places[: starts.shape[1]]).argmax(1)]
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        gate = (self.layers[-1](x) / self.temperature).softmax(-1) * self.scale
        rewards = self.objectives(hidden[rows, (mask * places).argmax(1)]) @ self.transform
        score: Tensor = (gate * rewards).sum(-1, keepdim=True)
        return score


def _gated(folder: Path, backbone: Any, tokenizer: Any) -> nn.Module:
    hidden = getattr(backbone.config, "gating_n_hidden", 3)
    names = [f"gating.layers.{i}.{part}" for i in range(hidden + 1) for part in ("weight", "bias")]
    weights = _tensors(folder, *names)
    layers = [_linear(*weights[i : i + 2]) for i in range(0, len(weights), 2)]
    others = ("regression_layer.weight", "reward_transform_matrix", "gating.logit_scale")
    objectives, transform, scale = _tensors(folder, *others)
    head = Gated(objectives, transform, layers, scale, float(getattr(backbone.config, "gating_temperature", 10)))
    head.turn = torch.tensor(tokenizer(_ARMO_TURN, add_special_tokens=False).input_ids)
    return head


CONVENTIONS: Mapping[str, Convention] = {
    "qwen2.5-math-prm": Convention(
        "\n\n", _qwen, second_of_two, _two_layers, "Qwen2ForProcessRewardModel", served=True
    ),
    "skywork-o1-open-prm": Convention("\n", _skywork, first_as_probability, _value, "Qwen2ForPrmModel", served=True),
    "math-shepherd": Convention("\n", _shepherd, second_of_two, _two_words),
    "rlhflow": Convention("\n\n", _rlhflow, second_of_two, _two_words),
    "armorm": Convention("", _armorm, as_it_is, _gated, "LlamaForRewardModelWithGating", steps=False),
}
