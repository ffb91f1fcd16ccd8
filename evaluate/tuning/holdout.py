"""A holdout that can be asked again and again: Thresholdout (Dwork et al., arXiv 1506.02629, Fig. 1) and the Ladder.

Whoever tunes by looking at a holdout ends up with numbers that hold nowhere else. Thresholdout answers from the public
questions and gives the hidden ones away only where the two disagree:

    T̂ = T + Lap(2σ)
    for each query φ:  refuse if B < 1;  η ~ Lap(4σ)
        |mean_hidden φ − mean_public φ| > T̂ + η:  answer mean_hidden φ + Lap(σ);  B ← B − 1;  T̂ = T + Lap(2σ)
        otherwise:                                answer mean_public φ

A query is the mean of one number a question, such as whether a strategy answers it rightly. The noise must not be
known to whoever asks: give a generator without a seed. An identical query has to get its first answer again, since
noise that is drawn anew averages out; `Holdout` sees to that, and keeps its state in a file.

On few questions that noise exceeds what there is to see. There the Ladder (Blum and Hardt, arXiv 1502.04585) tells the
best accuracy so far, in steps of η: a query that is not better by more than η is told the same again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from extratime.evaluate.statistics.arrays import finite
from extratime.models.manifest import write_json

FEW = 200
"""Hidden questions below which Thresholdout's threshold is wider than most effects."""


@dataclass(frozen=True, slots=True)
class Guard:
    """The state of Thresholdout.

    Attributes:
        threshold: T, in the unit of the queries.
        noise: σ; 0 takes all chance out.
        left: B, how often the hidden questions may still correct an answer.
        level: T̂.
    """

    threshold: float
    noise: float
    left: int
    level: float

    def __post_init__(self) -> None:
        if not (self.threshold >= 0 and self.noise >= 0):
            raise ValueError(f"threshold and noise must not be negative, got {self.threshold} and {self.noise}")


@dataclass(frozen=True, slots=True)
class Told:
    """An answer.

    Attributes:
        value: None where it was refused; from a ladder the best so far.
        corrected: whether the hidden questions gave it to this query.
        step: of the ladder that told it; None where Thresholdout did.
    """

    value: float | None
    corrected: bool
    step: float | None = None


def guard(threshold: float, noise: float, left: int, rng: np.random.Generator) -> Guard:
    """A fresh Thresholdout."""
    return Guard(threshold, noise, left, threshold + rng.laplace(0, 2 * noise))


def suggested(public: int, hidden: int) -> tuple[float, float]:
    """T and σ for so many questions: two standard errors of the difference of two accuracies, and an eighth of that.

    The constants of the theory (σ = τ / (96 ln(4m/β))) drown everything at the sizes of benchmarks.
    """
    threshold = 2 * math.sqrt(0.25 / public + 0.25 / hidden)
    return threshold, threshold / 8


def ask(state: Guard, public: npt.ArrayLike, hidden: npt.ArrayLike, rng: np.random.Generator) -> tuple[Guard, Told]:
    """Answer one query.

    Args:
        state: before the query.
        public: shape (n,), the query on each public question.
        hidden: shape (m,), on each hidden one.
        rng: draws the noise.

    Returns:
        The state after it, and the answer.

    Raises:
        ValueError: there is no question, or a number is not finite.
    """
    seen, held = finite(public, "public").mean(), finite(hidden, "hidden").mean()
    if state.left < 1:
        return state, Told(None, False)
    if abs(held - seen) > state.level + rng.laplace(0, 4 * state.noise):
        after = guard(state.threshold, state.noise, state.left - 1, rng)
        return after, Told(float(held + rng.laplace(0, state.noise)), True)
    return state, Told(float(seen), False)


def climb(top: float | None, score: float, step: float) -> tuple[float, bool]:
    """One query to the Ladder.

    Args:
        top: told so far; None where nothing was.
        score: of the query on the hidden questions.
        step: η.

    Returns:
        What is told, a multiple of η where it is new, and whether it is.
    """
    if top is not None and score <= top + step:
        return top, False
    return round(score / step) * step, True


@dataclass(frozen=True, slots=True)
class Holdout:
    """A guard with a memory: `file` keeps its state and every answer, before it is shown.

    Thresholdout answers where there are `FEW` hidden questions or more, otherwise a Ladder in steps of 1/√n, which has
    no budget. The file holds T̂, so it guards those who do not look into it.
    """

    file: Path

    def ask(self, name: str, public: npt.ArrayLike, hidden: npt.ArrayLike, left: int) -> Told:
        """The answer to a query, the first one where it was asked before.

        Args:
            name: of the query: the same name is the same query.
            public: shape (n,).
            hidden: shape (m,).
            left: budget of corrections of a fresh holdout.
        """
        kept = self._kept()
        if name in kept["answers"]:
            return Told(**kept["answers"][name])
        state, told = _climbed(kept, hidden) if np.size(hidden) < FEW else _guarded(kept, public, hidden, left)
        write_json(self.file, {**kept, **state, "answers": {**kept["answers"], name: asdict(told)}})
        return told

    @property
    def left(self) -> int | None:
        """Corrections left; None before the first query, and of a ladder."""
        left: int | None = self._kept()["guard"].get("left")
        return left

    def _kept(self) -> dict[str, Any]:
        kept: dict[str, Any] = {"guard": {}, "top": None, "answers": {}}
        if self.file.exists():
            kept |= json.loads(self.file.read_text(encoding="utf-8"))
        return kept


def _climbed(kept: Mapping[str, Any], hidden: npt.ArrayLike) -> tuple[dict[str, Any], Told]:
    held = finite(hidden, "hidden")
    step = 1 / math.sqrt(held.size)
    top, new = climb(kept["top"], float(held.mean()), step)
    return {"top": top}, Told(top, new, step)


def _guarded(
    kept: Mapping[str, Any], public: npt.ArrayLike, hidden: npt.ArrayLike, left: int
) -> tuple[dict[str, Any], Told]:
    rng = np.random.default_rng()
    sizes = suggested(np.size(public), np.size(hidden))
    after, told = ask(Guard(**kept["guard"]) if kept["guard"] else guard(*sizes, left, rng), public, hidden, rng)
    return {"guard": asdict(after)}, told
