"""`extratime allocate FOLDER`: the best strategy for each difficulty, out of what a finished run tells.

Arms are the strategies of the run at its budgets, save those that ask the oracle, on the questions that all of them
have. How hard a question is, is predicted by the mean score of its first `look` plain draws, or told by the pass@1 of
all of them. The latter knows the answers: its curve is a ceiling, and a small pool flatters it, since arms read the
same draws. The prediction is charged as the strategy `by_difficulty` pays for it: plain draws go on from the pilot,
whatever else is chosen comes on top.

Terms: what may be spent at N is N full lengths (`budget`), or the tokens that N plain draws took on the same questions
(`tokens`). Accuracy is two-fold cross-validated, and set against the best single arm that is chosen the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from extratime.evaluate.algorithms.allocation import allocate, bin_of, halves, quantile_edges
from extratime.evaluate.report import page, tables
from extratime.evaluate.report.figures import figure
from extratime.evaluate.report.leaderboard import Key, Row, cells, leaderboard, plain
from extratime.evaluate.report.pools import Pools, largest, verifiers
from extratime.evaluate.report.read import Result, Run
from extratime.evaluate.report.words import p_value, percent, short
from extratime.evaluate.statistics.arrays import Array, Ints
from extratime.evaluate.statistics.questions import clustered_ci, paired_difference
from extratime.models.manifest import write_json

NAME = "compute-optimal"
ORACLE = "oracle"
Terms = Literal["budget", "tokens"]


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the curve.

    Attributes:
        budget: N.
        accuracy, low, high: cross-validated, with the question-clustered 95 % interval.
        tokens: mean tokens generated a question, the pilot's among them.
        fixed: cross-validated accuracy of the best single arm.
        difference, difference_low, difference_high, p: against it, on the same questions.
        choices: (strategy, budget) of each bin, the easiest first, chosen on all questions.
        halves: the same, chosen on either half.
    """

    budget: int
    accuracy: float
    low: float
    high: float
    tokens: float
    fixed: float
    difference: float
    difference_low: float
    difference_high: float
    p: float
    choices: tuple[Key, ...]
    halves: tuple[tuple[Key, ...], tuple[Key, ...]]


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy of the compute-optimal choice over budgets.

    Attributes:
        by: what told the difficulty: the label of a strategy whose weights predict it, or "oracle".
        terms: what N is.
        look: draws of the pilot; 0 where nothing was predicted.
        edges: difficulties between the bins, the easiest first.
        sizes: questions in each bin.
        points: by budget.
    """

    by: str
    terms: Terms
    look: int
    edges: tuple[float, ...]
    sizes: tuple[int, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    """Arms by questions: their quality and tokens; what each question's pilot told and took."""

    arms: list[Key]
    plain: list[bool]
    quality: Array
    tokens: Array
    difficulty: Array
    pilot: Array
    look: int

    def charged(self, price: Array, pilot: Array) -> Array:
        """`price` with the pilot's: plain draws begin with it, all else comes on top."""
        shared = np.array(self.plain)[:, None]
        return np.where(shared, np.maximum(price, pilot), price + pilot)

    def prices(self, terms: Terms) -> Array:
        """Shape (S, Q), in full lengths or in tokens."""
        if terms == "tokens":
            return self.charged(self.tokens, self.pilot)
        budgets = np.array([[float(budget)] for _, budget in self.arms])
        return self.charged(np.repeat(budgets, self.pilot.size, axis=1), np.full_like(self.pilot, self.look))

    def caps(self, terms: Terms) -> dict[int, Array]:
        """What may be spent on each question, by N; the pilot is part of it."""
        budgets = sorted({budget for _, budget in self.arms if budget >= self.look})
        if terms == "budget":
            return {n: np.full_like(self.pilot, n) for n in budgets}
        prices, at = self.prices(terms), dict(zip(self.arms, self.plain, strict=True))
        drawn = {n: next((i for i, arm in enumerate(self.arms) if arm[1] == n and at[arm]), None) for n in budgets}
        return {n: prices[i] for n, i in drawn.items() if i is not None}


def compute_optimal(
    run: Run,
    by: str = "",
    terms: Terms = "budget",
    bins: int = 5,
    edges: Sequence[float] = (),
    look: int = 4,
    resamples: int = 10_000,
) -> Curve:
    """The best arm of each difficulty, at every budget of a run.

    Args:
        run: what to choose from.
        by: label of a strategy of plain draws whose weights predict difficulty, or "oracle"; "" takes the first label.
        terms: "budget" or "tokens".
        bins: quantiles of difficulty; 5 as published.
        edges: difficulties between the bins instead, the highest first; (0.5, 0.1) of pass@1 are published.
        look: draws that predict.
        resamples: of every bootstrap and sign-flip test.

    Raises:
        ValueError: the run has no question in common, no draws to tell difficulty by, or no budget that pays for them.
    """
    by = by or next(iter(verifiers(_plain(run), run.responses)), "")
    table = _table(run, by, look)
    between = tuple(sorted(edges, reverse=True)) or tuple(quantile_edges(table.difficulty, bins))
    places, count = np.array([bin_of(value, between) for value in table.difficulty]), len(between) + 1
    caps = table.caps(terms)
    if not caps:
        raise ValueError(f"no budget of the run pays for a pilot of {look}, or none has plain draws: lower --look")
    half = halves(places, np.random.default_rng(0))
    points = tuple(_point(table, n, terms, cap, places, count, half, resamples) for n, cap in caps.items())
    sizes = tuple(int(size) for size in np.bincount(places, minlength=count))
    return Curve(by, terms, table.look, between, sizes, points)


def _plain(run: Run) -> list[Result]:
    return [r for r in run.results if plain(run, r.strategy) and r.strategy not in run.oracles]


def _table(run: Run, by: str, look: int) -> _Table:
    groups = {key: group for key, group in cells(run.results).items() if key[0] not in run.oracles}
    pools = largest([r for r in _plain(run) if by in (ORACLE, r.strategy)], run.responses)
    shared = [q for q in dict.fromkeys((r.task, r.problem) for r in run.results) if q[1] in pools]
    shared = [q for q in shared if all(q in group for group in groups.values())]
    if not shared:
        known = ", ".join(verifiers(_plain(run), run.responses)) or "none"
        raise ValueError(
            f"{run.folder}: no question has an answer of every strategy and draws of {by or 'a verifier'!r} that tell "
            f"how hard it is; labels with a verifier and plain draws: {known}; `--by oracle` needs plain draws only"
        )
    quality, tokens = (
        np.array([[np.mean([of(r) for r in group[q]]) for q in shared] for group in groups.values()])
        for of in (lambda r: r.value, lambda r: float(r.cost.decoded))
    )
    told, pilot = _difficulty(pools, [q for _, q in shared], by, look)
    arms = list(groups)
    return _Table(arms, [plain(run, label) for label, _ in arms], quality, tokens, told, pilot, look * (by != ORACLE))


def _difficulty(pools: Pools, questions: Sequence[str], by: str, look: int) -> tuple[Array, Array]:
    """Of each question how easy it is, and what it took to tell so in tokens."""
    if by == ORACLE:
        return np.array([np.mean(pools[q].worth) for q in questions]), np.zeros(len(questions))
    heads = [pools[q].weights[:look] for q in questions]
    told = [np.mean([w for w in head if not math.isnan(w)] or [-math.inf]) for head in heads]
    return np.array(told), np.array([float(sum(r.n_tokens for r in pools[q].responses[:look])) for q in questions])


def _point(
    table: _Table, n: int, terms: Terms, cap: Array, places: Ints, count: int, half: Ints, resamples: int
) -> Point:
    chosen, single = (
        allocate(table.quality, table.prices(terms), cap, bins, count, half)
        for bins, count in ((places, count), (np.zeros_like(places), 1))
    )
    questions = np.arange(half.size)
    ours, theirs = (table.quality[which.arms, questions] for which in (chosen, single))
    interval = clustered_ci(ours, np.random.default_rng(0), resamples)
    gain = paired_difference(ours, theirs, np.random.default_rng(0), resamples)
    first, second = (tuple(table.arms[arm] for arm in arms) for arms in chosen.halves)
    return Point(
        n,
        interval.value,
        interval.low,
        interval.high,
        float(table.prices("tokens")[chosen.arms, questions].mean()),
        float(theirs.mean()),
        gain.value,
        gain.low,
        gain.high,
        gain.p,
        tuple(table.arms[arm] for arm in chosen.choices),
        (first, second),
    )


def write(run: Run, curve: Curve) -> Path:
    """Leave `allocation.json`, with entries for recipes, and `figures/compute_optimal.png` in the run's folder.

    Returns:
        The JSON file.
    """
    points = [asdict(point) | {"strategy": entry(run, curve, point)} for point in curve.points]
    write_json(run.folder / "allocation.json", tables.known(asdict(curve) | {"points": points}))
    rows = leaderboard(run)
    rows = [row for row in rows if row.task == rows[0].task and not row.oracle]
    page.write(run.folder / "figures" / "compute_optimal.png", figure([*rows, *_rows(curve, rows[0])], "tokens"))
    return run.folder / "allocation.json"


def entry(run: Run, curve: Curve, point: Point) -> dict[str, Any] | None:
    """What stands in a recipe for the choice of a point; None where difficulty was not predicted."""
    if curve.by == ORACLE:
        return None
    said = {options.get("label"): (name, options) for one in _entries(run) for name, options in one.items()}
    named = [said.get(label, (run.name(label), {})) for label, _ in point.choices]
    choices = [{name: _bare(options)} for name, options in named]
    verify = said.get(curve.by, ("", {}))[1].get("verify")
    told: dict[str, Any] = {"verify": verify} if verify else {}
    told |= {"strategies": choices, "edges": list(curve.edges), "most": [most for _, most in point.choices]}
    return {"by_difficulty": told | {"look": curve.look, "budgets": [point.budget]}}


def _entries(run: Run) -> list[dict[str, dict[str, Any]]]:
    return (yaml.safe_load(run.recipe) or {}).get("strategies", []) if run.recipe else []


def _bare(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in ("label", "budgets")}


def _rows(curve: Curve, like: Row) -> list[Row]:
    """Points as rows of the leaderboard."""
    bare = replace(like, strategy=NAME, baseline=False, oracle=curve.by == ORACLE, flops=math.nan)
    return [
        replace(
            bare,
            budget=point.budget,
            accuracy=point.accuracy,
            accuracy_low=point.low,
            accuracy_high=point.high,
            generated=point.tokens,
        )
        for point in curve.points
    ]


HEAD = ("N", f"{NAME} %", "tokens", "best single %", "difference", "p")


def as_markdown(curve: Curve) -> str:
    """The curve, and what each bin gets at each N."""
    lines = [
        [
            str(point.budget),
            percent(point.accuracy, point.low, point.high),
            short(point.tokens),
            percent(point.fixed),
            percent(point.difference, point.difference_low, point.difference_high, "+"),
            p_value(point.p),
        ]
        for point in curve.points
    ]
    sizes = [f"{i} ({size})" for i, size in enumerate(curve.sizes, start=1)]
    chosen = [[str(point.budget), *(f"{label}@{n}" for label, n in point.choices)] for point in curve.points]
    told = "pass@1: a ceiling" if curve.by == ORACLE else f"{curve.look} draws of {curve.by}"
    return (
        f"Difficulty by {told}; bins from easy to hard.\n\n"
        + tables.table(HEAD, lines)
        + "\n"
        + tables.table(("N", *(f"bin {size}" for size in sizes)), chosen)
    )
