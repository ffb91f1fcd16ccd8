"""The leaderboard: one row per (task, strategy, budget), and one over all tasks where there are several.

Accuracy is the mean over questions of a question's mean score over replicates. A failed cell stays in the denominator
and is counted; a missing one is not there to count, so it is named, and comparisons use the questions that both sides
have. Intervals resample questions. Costs are means per problem, and include what failed cells had read; FLOPs and KV
bytes follow the policy's shape (`extratime.evaluate.cost`), seconds are modelled from the run's measured rates. The
baseline is one plain sample. Every random step has a seed of its own, so a row does not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from extratime.evaluate.cost import Cost, flops, kv_bytes
from extratime.evaluate.report.read import Machine, Result, Run
from extratime.evaluate.statistics import compare
from extratime.evaluate.statistics.arrays import Array
from extratime.evaluate.statistics.questions import clustered_ci, mcnemar, paired_difference, question_means

ALL = "all tasks"
PLAIN = ("self_consistency", "best_of_n", "weighted_vote")
"""Strategies that draw `budget` plain samples and choose among them: at budget 1 they are one plain sample."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the leaderboard; NaN or None is what is not known or makes no sense.

    Attributes:
        metric: the task's own, or "mixed".
        questions, replicates, missing, failed, unparsed: counts; missing results are in none of the others.
        accuracy, accuracy_low, accuracy_high: with the question-clustered 95 % bootstrap interval.
        generated, sequential, prefill, prefill_uncached: mean tokens a problem; `prefill` with an unlimited prefix
            cache, `prefill_uncached` with none.
        judged: mean tokens a problem that a judge generated.
        tokens_per_right: tokens generated for all answers, a judge's among them, per right one.
        flops, flops_uncached, kv_bytes, seconds_modelled: means a problem.
        oracle: whether the strategy looks at the expected answer: such a row is a ceiling and on no frontier.
        baseline: whether this row is what the others are compared with.
        difference, difference_low, difference_high: against the baseline on the `paired` questions both have.
        p, p_holm, p_mcnemar: sign-flip, the same corrected over the task's rows that are not one sample themselves,
            McNemar with one 0/1 answer a side.
        frontier: whether it is on the Pareto frontier of generated tokens and accuracy; None if that is not told.
        frontier_share: in which share of resamples of the questions it is.
    """

    task: str
    strategy: str
    budget: int
    metric: str
    questions: int
    replicates: int
    missing: int
    failed: int
    unparsed: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    generated: float
    sequential: float
    prefill: float
    prefill_uncached: float
    judged: float
    tokens_per_right: float
    flops: float = math.nan
    flops_uncached: float = math.nan
    kv_bytes: float = math.nan
    seconds_modelled: float = math.nan
    oracle: bool = False
    baseline: bool = False
    paired: int = 0
    difference: float = math.nan
    difference_low: float = math.nan
    difference_high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    p_mcnemar: float = math.nan
    frontier: bool | None = None
    frontier_share: float = math.nan


Key = tuple[str, int]
Group = dict[tuple[str, str], list[Result]]


def leaderboard(run: Run, resamples: int = 10_000) -> list[Row]:
    """Rows sorted by task, strategy and budget; the pool of all tasks comes first where there are several.

    Args:
        run: what to summarise.
        resamples: of every bootstrap and sign-flip test.
    """
    return [row for task, results in by_task(run) for row in _rows(run, task, results, resamples)]


def by_task(run: Run) -> list[tuple[str, list[Result]]]:
    """Results of each task; where there are several, those of all tasks together come first."""
    tasks = list(dict.fromkeys(r.task for r in run.results))
    names = tasks if len(tasks) == 1 else [ALL, *tasks]
    return [(name, [r for r in run.results if name in (r.task, ALL)]) for name in names]


def _rows(run: Run, task: str, results: Sequence[Result], resamples: int) -> list[Row]:
    groups = cells(results)
    gone = _missing(run, task)
    rows = {key: _row(task, key, group, gone.get(key, 0), run.machine, resamples) for key, group in groups.items()}
    base = baseline(run, groups)
    if base:
        same = [key for key in groups if one_sample(run, key)]
        rows = _compared(rows, groups, base, same, resamples)
    rows = {key: replace(row, oracle=key[0] in run.oracles) for key, row in rows.items()}
    return list(_on_frontier(rows, groups, resamples).values())


def cells(results: Iterable[Result]) -> dict[Key, Group]:
    """Results by (strategy, budget), and in it by (task, problem): the replicates, in order."""
    groups: dict[Key, Group] = {}
    for r in results:
        groups.setdefault((r.strategy, r.budget), {}).setdefault((r.task, r.problem), []).append(r)
    return dict(sorted(groups.items()))


def plain(run: Run, label: str) -> bool:
    """Whether a strategy's pool is plain i.i.d. samples."""
    return run.name(label) in PLAIN


def one_sample(run: Run, key: Key) -> bool:
    """Whether a cell is one plain sample: all such cells read the same draw, whatever they would choose by."""
    return key[1] == 1 and plain(run, key[0])


def baseline(run: Run, keys: Iterable[Key]) -> Key | None:
    """The cell that is one plain sample, the cheapest kind first, or None."""
    ones = [key for key in keys if one_sample(run, key)]
    return min(ones, key=lambda key: (PLAIN.index(run.name(key[0])), key[0]), default=None)


def _missing(run: Run, task: str) -> dict[Key, int]:
    key_of = {r.cell: (r.strategy, r.budget) for r in run.results}
    counts: dict[Key, int] = {}
    for of, cell, _ in run.missing:
        if task in (of, ALL):
            counts[key_of[cell]] = counts.get(key_of[cell], 0) + 1
    return counts


def _row(task: str, key: Key, group: Group, missing: int, machine: Machine, resamples: int) -> Row:
    flat = [r for replicates in group.values() for r in replicates]
    metrics = {r.metric for r in flat}
    accuracy = clustered_ci(values(group), _rng(), resamples)
    total = sum((r.cost for r in flat), Cost())
    right = sum(r.value for r in flat)
    mean = _means(group)
    row = Row(
        task=task,
        strategy=key[0],
        budget=key[1],
        metric=metrics.pop() if len(metrics) == 1 else "mixed",
        questions=len(group),
        replicates=max(map(len, group.values())),
        missing=missing,
        failed=sum(r.outcome == "failed" for r in flat),
        unparsed=sum(r.outcome == "unparsed" for r in flat),
        accuracy=accuracy.value,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        generated=mean(lambda c: c.generated),
        sequential=mean(lambda c: c.sequential),
        prefill=mean(lambda c: c.prefill),
        prefill_uncached=mean(lambda c: c.prefill_uncached),
        judged=mean(lambda c: c.judged),
        tokens_per_right=total.decoded / right if right > 0 else math.nan,
    )
    return _priced(row, mean, machine)


def _means(group: Group) -> Callable[[Callable[[Cost], float]], float]:
    """Mean over questions of a question's mean over replicates, as for accuracy."""

    def mean(of: Callable[[Cost], float]) -> float:
        return float(question_means(values(group, lambda r: of(r.cost))).mean())

    return mean


def _priced(row: Row, mean: Callable[[Callable[[Cost], float]], float], machine: Machine) -> Row:
    shape, rates = machine.shape, machine.rates
    if shape:
        row = replace(
            row,
            flops=mean(lambda c: flops(shape, c.decoded + c.prefill, c.pairs, c.skipped, c.skipped_pairs)),
            flops_uncached=mean(
                lambda c: flops(shape, c.decoded + c.prefill_uncached, c.pairs_uncached, c.skipped, c.skipped_pairs)
            ),
            kv_bytes=mean(lambda c: kv_bytes(shape, c.decode_pairs, c.skipped_pairs)),
        )
    if rates:
        row = replace(row, seconds_modelled=mean(lambda c: rates.seconds(c.prefill, c.decoded)))
    return row


def values(group: Group, of: Callable[[Result], float] = lambda r: r.value) -> list[list[float]]:
    """A number of each result, by question and replicate: its score unless told otherwise."""
    return [[of(r) for r in replicates] for replicates in group.values()]


def measured(group: Group, questions: Iterable[tuple[str, str]]) -> tuple[Array, Array]:
    """Score and generated tokens of each of these questions, means over replicates, both of shape (Q,)."""
    part = {question: group[question] for question in questions}
    tokens = values(part, lambda r: float(r.cost.decoded))
    return question_means(values(part)), question_means(tokens)


def _compared(
    rows: dict[Key, Row], groups: Mapping[Key, Group], base: Key, same: Sequence[Key], resamples: int
) -> dict[Key, Row]:
    """Rows with their difference against the baseline; Holm's correction is over all that are not one sample too."""
    done = {k: rows[k] if k == base else _against(rows[k], groups[k], groups[base], resamples) for k in rows}
    tested = [key for key, row in done.items() if not math.isnan(row.p) and key not in same]
    adjusted = compare.holm([done[key].p for key in tested]).tolist() if tested else []
    for key, p in zip(tested, adjusted, strict=True):
        done[key] = replace(done[key], p_holm=p)
    done[base] = replace(rows[base], baseline=True)
    return done


def _against(row: Row, group: Group, base: Group, resamples: int) -> Row:
    both = [question for question in group if question in base]
    if not both:
        return row
    ours, theirs = ({q: side[q] for q in both} for side in (group, base))
    d = paired_difference(values(ours), values(theirs), _rng(), resamples)
    return replace(
        row,
        paired=len(both),
        difference=d.value,
        difference_low=d.low,
        difference_high=d.high,
        p=d.p,
        p_mcnemar=_mcnemar(values(ours), values(theirs)),
    )


def _mcnemar(ours: list[list[float]], theirs: list[list[float]]) -> float:
    if any(len(x) != 1 or x[0] not in (0, 1) for x in ours + theirs):
        return math.nan
    gained = sum(a > b for a, b in zip(ours, theirs, strict=True))
    lost = sum(a < b for a, b in zip(ours, theirs, strict=True))
    return float(mcnemar(gained, lost))


def _on_frontier(rows: dict[Key, Row], groups: Mapping[Key, Group], resamples: int) -> dict[Key, Row]:
    """Rows with their place on the frontier, over the questions that all of them have."""
    keys = [key for key, row in rows.items() if not row.oracle]
    shared = [q for q in groups[keys[0]] if all(q in groups[k] for k in keys)] if keys else []
    if not shared:
        return rows
    quality, cost = map(np.array, zip(*(measured(groups[k], shared) for k in keys), strict=True))
    on = set(compare.pareto_frontier(cost.mean(axis=1), quality.mean(axis=1)))
    share = compare.frontier_inclusion(cost, quality, _rng(), resamples)
    placed = {k: replace(rows[k], frontier=i in on, frontier_share=float(share[i])) for i, k in enumerate(keys)}
    return rows | placed


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)
