"""From draws to batches of readings: a response, whole or cut, with the question after it.

A row holds some responses of one prompt. Shared layout, one sequence a row:

    prompt · response 1 … response m · question · question …

Each response sees the prompt and itself; each copy of the question sees the prompt, its response up to its cut, and
itself, at the positions it would have alone. So a row costs the prompt once, and the questions stand last, where one
activated adapter is on. Separate layout: one sequence a reading. Sequences are padded on the left, so the answer slots
are in the same columns of every row.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from extratime.train.rewards import win_or_tie


@dataclass(frozen=True, slots=True)
class Draw:
    """One response of the policy, in token ids, and the log-probability that each had, where known."""

    problem: str
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    reward: float
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Law:
    """How responses are labelled and read.

    Attributes:
        cuts: readings of each response.
        keep: probability that a reading is of the whole response.
        responses: most responses in a row.
        tolerance: largest gap of rewards that is a tie.
        shuffle: give the labels to the responses, and the log-probabilities to the tokens, at random.
        max_length: longest prompt + response + question; readings further in are moved to the front of it.
    """

    cuts: int = 1
    keep: float = 0.5
    responses: int = 8
    tolerance: float = 0.0
    shuffle: bool = False
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.cuts < 1 or self.responses < 1 or not 0 <= self.keep <= 1:
            raise ValueError(f"cuts and responses must be ≥ 1 and keep in [0, 1]: {self}")


def read_draws(path: str, tokenizer: PreTrainedTokenizerBase) -> list[Draw]:
    """The draws of a JSONL file.

    Raises:
        ValueError: a line is not a draw; the error names it.
    """
    draws = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            draws.append(_draw(json.loads(line), tokenizer))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a draw ({error!r})") from error
    if not draws:
        raise ValueError(f"{path} holds no draws")
    return draws


def _draw(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Draw:
    reward = float(row["reward"])
    if not math.isfinite(reward):
        raise ValueError(f"reward is {reward}")
    prompt = row.get("prompt_ids") or tokenizer.encode(row["prompt"], add_special_tokens=False)
    response = row.get("tokens") or tokenizer.encode(row["response"], add_special_tokens=False)
    logprobs = tuple(row.get("logprobs") or ())[: len(response)]
    return Draw(str(row["problem"]), tuple(prompt), tuple(response), reward, logprobs)


def places(length: int, law: Law, rng: random.Random) -> list[tuple[int, float, int]]:
    """Where a response of `length` tokens is read: (tokens read, weight, part of the response).

    With one reading, part 0 is the whole response with probability `keep` and else a cut at ⌈uL⌉. With more, part 0 is
    the whole and the others are equal stretches. Weights sum to 1.
    """
    if law.cuts == 1:
        whole = rng.random() < law.keep
        return [(length if whole else math.ceil((1 - rng.random()) * length), 1.0, 0)]
    parts = law.cuts - 1
    inner = [(math.ceil((j + 1 - rng.random()) / parts * length), (1 - law.keep) / parts, j + 1) for j in range(parts)]
    return [place for place in [(length, law.keep, 0), *inner] if place[1] > 0]


def labelled(draws: Sequence[Draw], law: Law, rng: random.Random) -> list[list[tuple[Draw, float]]]:
    """Draws with their labels, by problem in order of appearance.

    Raises:
        ValueError: a problem has one draw only, or draws of different prompts.
    """
    problems: dict[str, list[Draw]] = {}
    for draw in draws:
        problems.setdefault(draw.problem, []).append(draw)
    labels = []
    for name, group in problems.items():
        if len({draw.prompt for draw in group}) > 1:
            raise ValueError(f"problem {name!r} has draws of different prompts")
        try:
            labels += win_or_tie([draw.reward for draw in group], law.tolerance)
        except ValueError as error:
            raise ValueError(f"problem {name!r}: {error}") from error
    if law.shuffle:
        rng.shuffle(labels)
    told = iter(labels)
    return [[(draw, next(told)) for draw in group] for group in problems.values()]


def _scrambled(draws: Sequence[Draw], rng: random.Random) -> list[Draw]:
    """The draws with all their tokens' log-probabilities dealt out anew."""
    dealt = [x for draw in draws for x in draw.logprobs]
    rng.shuffle(dealt)
    told = iter(dealt)
    return [replace(draw, logprobs=tuple(next(told) for _ in draw.logprobs)) for draw in draws]


def rows(draws: Sequence[Draw], question_length: int, law: Law, seed: int) -> list[dict[str, Any]]:
    """Rows for `Collator`, the same for the same seed.

    Args:
        draws: of all problems.
        question_length: tokens of the question.
        law: how responses are labelled and read.
        seed: of cuts, rows and shuffled labels.
    """
    rng = random.Random(seed)
    made = []
    for group in labelled(_scrambled(draws, rng) if law.shuffle else draws, law, rng):
        rng.shuffle(group)
        count = math.ceil(len(group) / law.responses)
        made += [_row(group[i::count], question_length, law, rng) for i in range(count)]
    return made


def _row(group: Sequence[tuple[Draw, float]], question_length: int, law: Law, rng: random.Random) -> dict[str, Any]:
    prompt = group[0][0].prompt
    room = (law.max_length or math.inf) - len(prompt) - question_length
    if room < 1:
        raise ValueError(
            f"problem {group[0][0].problem!r}: prompt ({len(prompt)} tokens) and question ({question_length}) leave "
            f"no room for a response within max_length {law.max_length}"
        )
    responses, chances, readings = [], [], []
    for i, (draw, label) in enumerate(group):
        found = [(int(min(t, room)), weight, part) for t, weight, part in places(len(draw.response), law, rng)]
        read = max(t for t, _, _ in found)
        responses.append(list(draw.response[:read]))
        chances.append([math.exp(x) for x in draw.logprobs[:read]])
        told = {"response": i, "label": label}
        readings += [told | {"cut": t, "weight": w, "part": p, "weakest": _weakest(draw, t)} for t, w, p in found]
    return {"prompt": list(prompt), "responses": responses, "chances": chances, "readings": readings}


def _weakest(draw: Draw, cut: int) -> float:
    """The lowest log-probability of a whole response's tokens; NaN for a cut one: longer cuts see weaker ones."""
    return min(draw.logprobs, default=0.0) if cut == len(draw.response) else math.nan


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes batches for `SelfEvalTrainer`.

    Attributes:
        question: token ids.
        pad: token id.
        shared: one sequence a row, or one a reading.
        surprise: keep the logits of all response tokens too, with the chance that each had.
    """

    question: tuple[int, ...]
    pad: int
    shared: bool = True
    surprise: bool = False

    def __call__(self, batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Tensors of a batch.

        Returns:
            input_ids, position_ids [B, T]; attention_mask [B, T], or [B, 1, T, T] where shared; logits_to_keep [n]:
            columns of the slots; label, weight, group [B, n]; offsets [B]: tokens from the end that are questions.
            With `surprise`, logits_to_keep [m] is all columns from the first response on, slots [n] where the slots
            are among them, chance [B, m] each response token's probability, NaN elsewhere, and weakest [B, n] the
            lowest log-probability of a token, NaN where the response is cut.
        """
        sequences = [(g, row) for g, row in enumerate(batch)]
        if not self.shared:
            sequences = [(g, _alone(row, reading)) for g, row in sequences for reading in row["readings"]]
        trees = [self._tree(row) for _, row in sequences]
        width = max(tree.shape[1] for tree in trees)
        padded = torch.stack([_pad_left(tree, width) for tree in trees])
        ids, depth = padded[:, 0], padded[:, 1]
        ids = torch.where(padded[:, 3] == _PAD, self.pad, ids)
        slots = max(len(row["readings"]) for _, row in sequences)
        columns = width - 1 - len(self.question) * torch.arange(slots - 1, -1, -1)
        told = [_told(g, row["readings"], slots) for g, row in sequences]
        made = {
            "input_ids": ids,
            "position_ids": depth,
            "attention_mask": _sees(padded)[:, None] if self.shared else (padded[:, 3] != _PAD).long(),
            "logits_to_keep": columns,
            "label": torch.tensor([[r[0] for r in row] for row in told]),
            "weight": torch.tensor([[r[1] for r in row] for row in told]),
            "group": torch.tensor([[r[2] for r in row] for row in told]),
            "offsets": torch.tensor([len(row["readings"]) * len(self.question) for _, row in sequences]),
        }
        if self.surprise:
            known = [_chances(row, tree.shape[1], width) for tree, (_, row) in zip(trees, sequences, strict=True)]
            chance = torch.tensor(known)
            first = int((~chance.isnan()).any(0).int().argmax())
            weakest = torch.tensor([[r[3] for r in row] for row in told])
            made |= {"slots": columns - first, "chance": chance[:, first:], "weakest": weakest}
            made["logits_to_keep"] = torch.arange(first, width)
        return made

    def _tree(self, row: dict[str, Any]) -> torch.Tensor:
        """[5, T]: token, position, response it belongs to, question copy it belongs to, positions it sees."""
        start = len(row["prompt"])
        parts = [_span(row["prompt"], 0, _PROMPT, _NO_COPY, _ALL)]
        for i, response in enumerate(row["responses"]):
            parts.append(_span(response, start, i, _NO_COPY, _ALL))
        for copy, reading in enumerate(row["readings"]):
            end = start + reading["cut"]
            parts.append(_span(self.question, end, reading["response"], copy, end))
        return torch.cat(parts, 1)


def _chances(row: dict[str, Any], length: int, width: int) -> list[float]:
    """For each column of a padded row, the probability of the response token there; NaN where there is none."""
    known = [chance for chances in row["chances"] for chance in chances]
    start = width - length + len(row["prompt"])
    return [math.nan] * start + known + [math.nan] * (width - start - len(known))


_PROMPT, _NO_COPY, _PAD, _ALL = -1, -1, -2, 2**40


def _span(tokens: Sequence[int], start: int, response: int, copy: int, reach: int) -> torch.Tensor:
    count = len(tokens)
    told = [list(tokens), list(range(start, start + count)), [response] * count, [copy] * count, [reach] * count]
    return torch.tensor(told, dtype=torch.long).reshape(5, count)


def _pad_left(tree: torch.Tensor, width: int) -> torch.Tensor:
    missing = width - tree.shape[1]
    pads = torch.tensor([0, 0, _PAD, _PAD, 0])[:, None].expand(5, missing)
    return torch.cat([pads, tree], 1)


def _sees(padded: torch.Tensor) -> torch.Tensor:
    """[B, T, T] whether a token (row) sees another (column)."""
    _, depth, response, copy, reach = padded.unbind(1)
    order = torch.ones(depth.shape[1], depth.shape[1], dtype=torch.bool).tril()
    own = (response[:, None, :] == response[:, :, None]) & (depth[:, None, :] < reach[:, :, None])
    text = (copy[:, None, :] == _NO_COPY) & ((response[:, None, :] == _PROMPT) | own)
    asked = (copy[:, None, :] == copy[:, :, None]) & (copy != _NO_COPY)[:, :, None]
    return order & (text & (copy != _PAD)[:, :, None] | asked)


def _alone(row: dict[str, Any], reading: dict[str, Any]) -> dict[str, Any]:
    response = row["responses"][reading["response"]][: reading["cut"]]
    return {"prompt": row["prompt"], "responses": [response], "readings": [reading | {"response": 0}]}


def _told(group: int, readings: Sequence[dict[str, Any]], slots: int) -> list[tuple[float, float, int, float]]:
    """(label, weight, group, weakest) of each slot; places without a reading come first and weigh nothing."""
    found = [(r["label"], r["weight"], group * _PARTS + r["part"], r["weakest"]) for r in readings]
    return [(0.0, 0.0, -1, 0.0)] * (slots - len(found)) + found


_PARTS = 10_000
