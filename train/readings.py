r"""From draws to batches of readings: a response, whole or cut, with the question after it.

A row holds some responses of one prompt. Shared layout, one sequence a row: the tree of all its paths,

    prompt ─┬─ 1 2 + 7 = 1 9 ─┬─ question
            │                 └─ \n 1 9 - 4 = 1 5 ── question
            └─ 1 2 + 7 = 2 0 ─── question

where each token stands once, at the position it has in its own path, and sees that path only. So a row costs what its
responses share once, and readings of one place are one question; the questions stand last, where one activated adapter
is on. Separate layout: one sequence a reading. Sequences are padded on the left.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from extratime.models.self_eval import level
from extratime.train.rewards import win_or_tie


@dataclass(frozen=True, slots=True)
class Draw:
    """One response of the policy, in token ids, and the log-probability that each had (one more if it ended)."""

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
        shuffle: give the labels to the responses at random.
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
    return Draw(str(row["problem"]), tuple(prompt), tuple(response), reward, tuple(row.get("logprobs") or ()))


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


def rows(draws: Sequence[Draw], questions: Sequence[Sequence[int]], law: Law, seed: int) -> list[dict[str, Any]]:
    """Rows for `Collator`, the same for the same seed.

    Args:
        draws: of all problems.
        questions: token ids, one question or one for each level that it can tell.
        law: how responses are labelled and read.
        seed: of cuts, rows and shuffled labels.
    """
    rng = random.Random(seed)
    made = []
    for group in labelled(draws, law, rng):
        rng.shuffle(group)
        count = math.ceil(len(group) / law.responses)
        made += [_row(group[i::count], questions, law, rng) for i in range(count)]
    return made


def _row(
    group: Sequence[tuple[Draw, float]], questions: Sequence[Sequence[int]], law: Law, rng: random.Random
) -> dict[str, Any]:
    prompt, longest = group[0][0].prompt, max(map(len, questions))
    room = (law.max_length or math.inf) - len(prompt) - longest
    if room < 1:
        raise ValueError(
            f"problem {group[0][0].problem!r}: prompt ({len(prompt)} tokens) and question ({longest}) leave "
            f"no room for a response within max_length {law.max_length}"
        )
    responses, readings = [], []
    for i, (draw, label) in enumerate(group):
        found = [(int(min(t, room)), weight, part) for t, weight, part in places(len(draw.response), law, rng)]
        responses.append(list(draw.response[: max(t for t, _, _ in found)]))
        told = {"response": i, "label": label}
        for t, weight, part in found:
            readings.append(told | {"cut": t, "question": _asked(draw, t, questions), "weight": weight, "part": part})
    return {"prompt": list(prompt), "responses": responses, "readings": readings}


def _asked(draw: Draw, cut: int, questions: Sequence[Sequence[int]]) -> int:
    """Which question a reading gets: the first, or that of the level of what is read."""
    read = draw.logprobs if cut == len(draw.response) else draw.logprobs[:cut]
    return level(read) if len(questions) > 1 else 0


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes batches for `SelfEvalTrainer`.

    Attributes:
        questions: token ids, one question or one for each level that it can tell.
        pad: token id.
        shared: one sequence a row, or one a reading.
    """

    questions: tuple[tuple[int, ...], ...]
    pad: int
    shared: bool = True

    def __call__(self, batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Tensors of a batch.

        Returns:
            input_ids, position_ids [B, T]; attention_mask [B, T], or [B, 1, T, T] where shared; logits_to_keep [C]:
            columns whose logits are needed; slots [B, n]: which of them answers each reading; label, weight, group
            [B, n] of the readings; offsets [B]: tokens from the end that are questions.
        """
        rows = [(g, row) for g, row in enumerate(batch)]
        if not self.shared:
            rows = [(g, _alone(row, reading)) for g, row in rows for reading in row["readings"]]
        trees = [grow(row, self.questions) for _, row in rows]
        width, n = max(len(tree.tokens) for tree in trees), max(len(tree.slots) for tree in trees)
        padded = [(tree, width - len(tree.tokens)) for tree in trees]
        sees = torch.stack([_padded(tree.sees(), pad) for tree, pad in padded])
        slots = torch.tensor(
            [[width - 1] * (n - len(tree.slots)) + [pad + slot for slot in tree.slots] for tree, pad in padded]
        )
        columns = slots.unique()
        told = [_told(g, row["readings"], n) for g, row in rows]
        return {
            "input_ids": torch.tensor([[self.pad] * pad + tree.tokens for tree, pad in padded]),
            "position_ids": sees.sum(-1) - 1,
            "attention_mask": sees[:, None] if self.shared else _real([pad for _, pad in padded], width),
            "logits_to_keep": columns,
            "slots": torch.searchsorted(columns, slots),
            "label": torch.tensor([[r[0] for r in row] for row in told]),
            "weight": torch.tensor([[r[1] for r in row] for row in told]),
            "group": torch.tensor([[r[2] for r in row] for row in told]),
            "offsets": torch.tensor([tree.asked for tree in trees]),
        }


@dataclass(frozen=True, slots=True)
class Tree:
    """A row as a tree of tokens: what responses share is there once, and the questions stand last.

    Attributes:
        tokens: each after its parent.
        parents: places of the parents; -1 for the first token.
        slots: the place of each reading's last question token.
        asked: how many tokens are of questions.
    """

    tokens: list[int]
    parents: list[int]
    slots: list[int]
    asked: int

    def sees(self) -> torch.Tensor:
        """[T, T] whether a token (row) sees another (column): itself and what it follows."""
        seen = np.eye(len(self.parents), dtype=bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                seen[place] |= seen[parent]
        return torch.from_numpy(seen)


def grow(row: dict[str, Any], questions: Sequence[Sequence[int]]) -> Tree:
    """The tree of a row."""
    tree = Tree([], [], [], 0)
    places: dict[tuple[int, int, bool], int] = {}

    def follow(place: int, path: Sequence[int], asked: bool = False) -> list[int]:
        """The places of a path's tokens, from the one before it on."""
        passed = [place]
        for token in path:
            key = (passed[-1], token, asked)
            if key not in places:
                places[key] = len(tree.tokens)
                tree.tokens.append(token)
                tree.parents.append(passed[-1])
            passed.append(places[key])
        return passed

    trunk = follow(-1, row["prompt"])
    branches = [follow(trunk[-1], response) for response in row["responses"]]
    text = len(tree.tokens)
    for reading in row["readings"]:
        end = branches[reading["response"]][reading["cut"]]
        tree.slots.append(follow(end, questions[reading["question"]], asked=True)[-1])
    return replace(tree, asked=len(tree.tokens) - text)


def _padded(sees: torch.Tensor, pad: int) -> torch.Tensor:
    """`sees` of a sequence padded on the left; padding sees itself."""
    wide = torch.eye(pad + len(sees), dtype=torch.bool)
    wide[pad:, pad:] = sees
    return wide


def _real(pads: Sequence[int], width: int) -> torch.Tensor:
    """[B, T] 1 at tokens, 0 at padding."""
    return (torch.arange(width) >= torch.tensor(pads)[:, None]).long()


def _alone(row: dict[str, Any], reading: dict[str, Any]) -> dict[str, Any]:
    response = row["responses"][reading["response"]][: reading["cut"]]
    return {"prompt": row["prompt"], "responses": [response], "readings": [reading | {"response": 0}]}


def _told(group: int, readings: Sequence[dict[str, Any]], n: int) -> list[tuple[float, float, int]]:
    """(label, weight, group) of each reading; places without one come first and weigh nothing."""
    found = [(r["label"], r["weight"], group * _PARTS + r["part"]) for r in readings]
    return [(0.0, 0.0, -1)] * (n - len(found)) + found


_PARTS = 10_000
