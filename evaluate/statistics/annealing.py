"""The loss of every step from the learning rates so far (Tissue, Wang & Wang, arXiv 2408.11029).

With learning rates η_1 … η_T,

    L(s) = L0 + A·S1(s)^−α − C·S2(s),      S1(s) = Σ_{i≤s} η_i,
    S2(s) = Σ_{i≤s} m_i,                    m_i = λ·m_{i−1} + (η_{i−1} − η_i):

progress is the area under the learning rate, and a fall of the learning rate pays with a delay of about 1/(1 − λ)
steps. Fitted to one or two runs it predicts the curve of another schedule on the same model, data, peak and batch; it
knows nothing of other peaks, and it assumes that no data come twice.

Two conventions, where the paper leaves room: in warm-up (rises before the first fall) S1 counts the real rates and
m stays 0; a step with η = 0 moves no weights, so it adds nothing to S2.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.signal import lfilter
from scipy.special import huber

Array = NDArray[np.float64]
DECAYS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_DELTA = 1e-3
_LEFT_OUT = 0.1


@dataclass(frozen=True, slots=True)
class Curve:
    """What a run logged.

    Attributes:
        rates: learning rate [T] of every step.
        at: the steps [N] after which losses were measured, from 0 for the first, rising; a mean over several stands
            in their middle.
        losses: those losses [N], in nats per token.
    """

    rates: Array
    at: Array
    losses: Array


@dataclass(frozen=True, slots=True)
class Law:
    """The law's constants; `decay` is λ."""

    L0: float
    A: float
    alpha: float
    C: float
    decay: float

    def __call__(self, rates: ArrayLike) -> Array:
        """Predicted losses [T] after each step of a schedule with learning rates [T], the first of them > 0."""
        s1, s2 = areas(rates, self.decay)
        loss: Array = self.L0 + self.A * s1**-self.alpha - self.C * s2
        return loss

    def error(self, curve: Curve) -> float:
        """Mean relative error on a run's log, but for its beginning."""
        late = _late(curve)
        told = np.interp(curve.at, np.arange(len(curve.rates)), self(curve.rates))
        return float(np.mean(np.abs(told / curve.losses - 1)[late]))


def areas(rates: ArrayLike, decay: float) -> tuple[Array, Array]:
    """S1 and S2 [T] after each step of a schedule with learning rates [T]."""
    eta = np.asarray(rates, dtype=np.float64)
    fall = -np.diff(eta, prepend=eta[:1])
    fall[: warm_up(eta)] = 0
    momentum = lfilter([1.0], [1.0, -decay], fall)
    return np.cumsum(eta), np.cumsum(momentum * (eta > 0))


def warm_up(rates: Array) -> int:
    """Steps until the learning rate falls for the first time; all of them if it never does."""
    falls = np.flatnonzero(np.diff(rates) < 0)
    return int(falls[0]) + 1 if len(falls) else len(rates)


def fit(curves: Sequence[Curve], decays: Sequence[float] = DECAYS, annealing: bool = True) -> Law:
    """The law that fits runs of one model, peak and batch best: Huber loss of log losses, L-BFGS-B from many starts.

    Args:
        curves: logs of the runs; the first tenth of each after warm-up is left out.
        decays: values of λ to try.
        annealing: whether C may differ from 0.

    Raises:
        ValueError: fewer than five losses are left to fit.
    """
    losses = np.concatenate([curve.losses[_late(curve)] for curve in curves])
    if len(losses) < 5 or not (losses > 0).all():
        raise ValueError(f"the law has four constants and {len(losses)} losses > 0 to fit: log more often")
    found = [_fit(curves, losses, decay, annealing) for decay in (decays if annealing else decays[:1])]
    return min(found, key=lambda pair: pair[0])[1]


def _late(curve: Curve) -> NDArray[np.bool_]:
    """Which logged losses count: those after warm-up and a tenth of the rest."""
    rises = warm_up(curve.rates)
    begin = int(np.argmax(curve.rates[:rises] >= curve.rates[rises - 1]))
    late: NDArray[np.bool_] = curve.at >= begin + _LEFT_OUT * (len(curve.rates) - begin)
    return late


def _fit(curves: Sequence[Curve], losses: Array, decay: float, annealing: bool) -> tuple[float, Law]:
    """The best objective and law for one λ; unknown are L0, ln A, α and C in units of the largest S2."""
    pairs = [_areas_at(curve, decay) for curve in curves]
    s1, s2 = (np.concatenate(column) for column in zip(*pairs, strict=True))
    unit = float(s2.max()) or 1.0
    known = s1, s2 / unit, losses
    free = annealing and s2.max() > 0
    bounds = [(0, None), (None, None), (1e-3, 10), (0, None if free else 0)]
    starts = _starts(float(losses.min()), float(losses[0]), float(s1[0]), free)
    options: Any = {"args": known, "jac": True, "method": "L-BFGS-B", "bounds": bounds, "options": _PATIENT}
    best = min((minimize(_objective, start, **options) for start in starts), key=lambda end: float(end.fun))
    floor, log_scale, alpha, drop = (float(value) for value in best.x)
    return float(best.fun), Law(floor, math.exp(log_scale), alpha, drop / unit, decay)


_PATIENT = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-12, "gtol": 1e-8}


def _objective(x: Array, s1: Array, s2: Array, losses: Array) -> tuple[float, Array]:
    """Huber loss of log losses, times 1000 so that L-BFGS-B does not stop early, and its gradient."""
    floor, log_scale, alpha, drop = x
    power = np.exp(log_scale - alpha * np.log(s1))
    told = np.maximum(floor + power - drop * s2, 1e-9)
    wrong = np.log(told / losses)
    slope = np.clip(wrong, -_DELTA, _DELTA) / told
    by = np.stack([np.ones_like(s1), power, -np.log(s1) * power, -s2])
    return 1e3 * float(huber(_DELTA, wrong).sum()), 1e3 * (by @ slope)


def _starts(lowest: float, first: float, s1: float, free: bool) -> Iterator[list[float]]:
    """Where to begin: curves through the first loss with different floors, powers and gains from annealing."""
    for share, alpha in itertools.product((0.2, 0.6, 0.95), (0.2, 0.5, 1.0, 2.0)):
        rest = max(first - share * lowest, 1e-3)
        for drop in (0.02, 0.2) if free else (0.0,):
            yield [share * lowest, math.log(rest) + alpha * math.log(s1), alpha, drop * lowest]


def _areas_at(curve: Curve, decay: float) -> tuple[Array, Array]:
    """S1 and S2 where the losses that count stand."""
    where = curve.at[_late(curve)]
    s1, s2 = (np.interp(where, np.arange(len(curve.rates)), area) for area in areas(curve.rates, decay))
    return s1, s2


SHAPES: dict[str, Callable[[Array], Array]] = {
    "constant": np.ones_like,
    "cosine": lambda u: (1 + np.cos(np.pi * u)) / 2,
    "linear": lambda u: 1 - u,
    "constant, then linear over 20 %": lambda u: np.minimum(1, (1 - u) / 0.2),
}
"""Schedules by name: the multiplier of the peak at each share of the steps after warm-up."""


def schedule(shape: str, steps: int, peak: float, warm: int = 0) -> Array:
    """Learning rates [steps] of one of `SHAPES` after `warm` steps of linear warm-up."""
    rise = np.arange(1, warm + 1) / max(warm, 1)
    rates: Array = peak * np.concatenate([rise, SHAPES[shape](np.arange(steps - warm) / max(steps - warm, 1))])
    return rates


def read(folder: Path) -> Curve:
    """The log of a training run: of its newest checkpoint, or of the checkpoint that `folder` is.

    Learning rates between two logged steps are taken to lie on a line.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: its log cannot be read or tells fewer than ten losses.
    """
    states = [path for path in folder.glob("checkpoint-*/trainer_state.json") if path.parent.name[11:].isdigit()]
    newest = max(states, key=lambda path: int(path.parent.name[11:]), default=folder / "trainer_state.json")
    if not newest.is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoint of a training run (checkpoint-*/trainer_state.json)")
    try:
        history = json.loads(newest.read_text(encoding="utf-8"))["log_history"]
        told = [(entry["step"], entry["learning_rate"], entry["loss"]) for entry in history if "loss" in entry]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{newest} is no log of a training run: {error!r}") from error
    if len(told) < 10:
        raise ValueError(f"{newest} tells {len(told)} losses, and a curve needs 10: train with lower logging_steps")
    steps, rates, losses = (np.array(column) for column in zip(*told, strict=True))
    # A logged loss is the mean of all steps since the one logged before.
    middles = (np.append(0, steps[:-1]) + steps - 1) / 2
    return Curve(np.interp(np.arange(1, steps[-1] + 1), steps, rates), middles, losses)
