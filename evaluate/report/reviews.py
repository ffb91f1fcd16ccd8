"""Accuracy after the work was checked: `reviews.jsonl` in a run's folder (arXiv 2502.06217, `false_positives.py`).

Each line says of one response by its id (as in `responses/`) whether its work is valid, whoever found out:

    {"response": "…", "valid": false}

Only responses that the task calls right count: of them those with wrong work are false positives. pass@k is corrected
where every question with a right draw has a review; those that were reviewed have to be a random part of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extratime.evaluate.report.leaderboard import Group, Key, values
from extratime.evaluate.report.pools import Pools
from extratime.evaluate.report.read import Result
from extratime.evaluate.statistics.at_k import pass_at_k
from extratime.evaluate.statistics.false_positives import true_pass_at_k
from extratime.evaluate.statistics.questions import clustered_ci, question_means

FILE = "reviews.jsonl"


@dataclass(frozen=True, slots=True)
class Reviewed:
    """The right answers of one cell of the grid, as far as they were reviewed.

    Attributes:
        reviewed, false: counts.
        rate, low, high: share of the reviewed that is false, with its 95 % interval over questions.
        accuracy, true: of the cell, as graded and after the share of false answers is taken off.
    """

    task: str
    strategy: str
    budget: int
    reviewed: int
    false: int
    rate: float
    low: float
    high: float
    accuracy: float
    true: float


@dataclass(frozen=True, slots=True)
class TrueAtK:
    """pass@k of a task as graded, and with valid work alone."""

    task: str
    k: int
    graded: float
    true: float


def read_reviews(folder: Path, known: Mapping[str, object]) -> dict[str, bool]:
    """Whether the work of each reviewed response is valid; empty where nothing was reviewed.

    Raises:
        ValueError: a line is no review, or names no response of the run; the message names it.
    """
    file, found = folder / FILE, {}
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            said = json.loads(line)
            name, valid = said["response"], said["valid"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}:{number}: no review ({error!r}); see {__name__}") from error
        if name not in known or not isinstance(valid, bool):
            raise ValueError(f"{file}:{number}: {name!r} is no response of this run, or {valid!r} not true or false")
        found[name] = valid
    return found


def reviewed(
    task: str, groups: Mapping[Key, Group], reviews: Mapping[str, bool], resamples: int
) -> Iterator[Reviewed]:
    """Each cell of which a right answer was reviewed."""
    for (label, budget), group in groups.items():
        said = [found for results in group.values() if (found := _false(results, reviews))]
        if not said:
            continue
        flags = [flag for found in said for flag in found]
        ci = clustered_ci(said, np.random.default_rng(0), resamples)
        rate = sum(flags) / len(flags)
        accuracy = float(question_means(values(group)).mean())
        counts = len(flags), int(sum(flags))
        yield Reviewed(task, label, budget, *counts, rate, ci.low, ci.high, accuracy, accuracy * (1 - rate))


def _false(results: Sequence[Result], reviews: Mapping[str, bool]) -> list[float]:
    """Of each right answer that was reviewed whether it is false."""
    right = (r.response for r in results if r.value > 0)
    return [float(not reviews[name]) for name in right if name in reviews]


def true_at_k(task: str, pools: Pools, reviews: Mapping[str, bool]) -> list[TrueAtK]:
    """At the k that every pool has; nothing where a question has right draws and no review of them."""
    counts = []
    for pool in pools.values():
        right = [r.id for r in pool.responses if r.worth > 0]
        said = [reviews[name] for name in right if name in reviews]
        if right and not said:
            return []
        counts.append((len(pool.responses), len(right), len(said), said.count(False)))
    least = min((n for n, *_ in counts), default=0)
    return [
        TrueAtK(
            task,
            k,
            float(np.mean([pass_at_k(n, c, k) for n, c, _, _ in counts])),
            float(np.mean([true_pass_at_k(*count, k) for count in counts])),
        )
        for k in (2**i for i in range(least.bit_length()))
    ]


def said(rows: Sequence[TrueAtK]) -> str:
    """The curve in one line; "" where there is none."""
    points = ", ".join(f"{100 * x.graded:.1f} → {100 * x.true:.1f} at {x.k}" for x in rows if math.isfinite(x.true))
    return f"pass@k in % as graded → with valid work: {points}." if points else ""
