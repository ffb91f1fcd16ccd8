"""Strategies beside self-consistency: at the same budget, and at the same mean tokens.

A strategy that stops early or asks a judge spends other tokens than a vote of the same budget does. So it is also held
against the vote that spends just as many in the mean: of the two budgets whose mean tokens enclose the strategy's, the
larger one with such a probability that the expected tokens are equal. Its accuracy on a question is the mean of the
two, weighed by that probability. Nothing is extrapolated: a strategy that spends less than the smallest or more than
the largest vote has no such comparison.

Tokens are all that were generated for the answers, a judge's among them. Differences are paired by question; each of
the two columns of p-values is corrected by Holm's method over its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from extratime.evaluate.report.leaderboard import Group, Key, by_task, cells, measured, one_sample
from extratime.evaluate.report.read import Run
from extratime.evaluate.statistics import compare
from extratime.evaluate.statistics.arrays import Array
from extratime.evaluate.statistics.questions import paired_difference

REFERENCE = "self_consistency"


@dataclass(frozen=True, slots=True)
class Versus:
    """A cell of the grid against the vote; NaN is what cannot be compared.

    Attributes:
        tokens: mean a problem, a judge's among them.
        paired: questions that it and every budget of the vote have.
        equal_budget, equal_budget_low, equal_budget_high: difference of accuracy to the vote of the same budget.
        equal_budget_p_holm: by sign flips, corrected over the task's rows.
        equal_tokens, equal_tokens_low, equal_tokens_high, equal_tokens_p_holm: the same to the vote of equal tokens.
    """

    task: str
    strategy: str
    budget: int
    tokens: float
    paired: int
    equal_budget: float = math.nan
    equal_budget_low: float = math.nan
    equal_budget_high: float = math.nan
    equal_budget_p_holm: float = math.nan
    equal_tokens: float = math.nan
    equal_tokens_low: float = math.nan
    equal_tokens_high: float = math.nan
    equal_tokens_p_holm: float = math.nan


@dataclass(frozen=True, slots=True)
class _Vote:
    """A cell of the grid, mostly the vote at one budget: accuracy by question, shape (Q,), and mean tokens."""

    budget: int
    right: Array
    tokens: float


def versus(run: Run, resamples: int = 10_000) -> list[Versus]:
    """Every cell that can be compared but those that are one plain sample, by task as in the leaderboard.

    Args:
        run: what to compare; without a strategy `self_consistency` there is nothing.
        resamples: of every bootstrap and sign-flip test.
    """
    return [row for task, results in by_task(run) for row in _of_task(run, task, cells(results), resamples)]


def reference(run: Run, groups: Mapping[Key, Group]) -> str | None:
    """The label of the vote; None where there is none."""
    return min((label for label, _ in groups if run.name(label) == REFERENCE), default=None)


def _of_task(run: Run, task: str, groups: Mapping[Key, Group], resamples: int) -> list[Versus]:
    vote = reference(run, groups)
    votes = {key: group for key, group in groups.items() if key[0] == vote}
    rest = [key for key in groups if key not in votes and not one_sample(run, key)] if votes else []
    known = cache(partial(_votes, votes))
    rows = [row for key in rest if (row := _row(task, key, groups[key], votes, known, resamples))]
    for name in ("equal_budget", "equal_tokens"):
        rows = _corrected(rows, f"{name}_p_holm")
    return rows


def _row(
    task: str,
    key: Key,
    group: Group,
    votes: Mapping[Key, Group],
    known: Callable[[tuple[tuple[str, str], ...]], list[_Vote]],
    resamples: int,
) -> Versus | None:
    """A cell beside the vote; None where neither budget nor tokens can be compared."""
    both = tuple(question for question in group if all(question in vote for vote in votes.values()))
    if not both:
        return None
    own = _on(group, both, key[1])
    same = next((vote.right for vote in known(both) if vote.budget == key[1]), None)
    told: dict[str, Any] = {}
    for name, theirs in (("equal_budget", same), ("equal_tokens", at_tokens(known(both), own.tokens))):
        if theirs is not None:
            d = paired_difference(own.right, theirs, np.random.default_rng(0), resamples)
            told |= {name: d.value, f"{name}_low": d.low, f"{name}_high": d.high, f"{name}_p_holm": d.p}
    return Versus(task, *key, own.tokens, len(both), **told) if told else None


def _votes(votes: Mapping[Key, Group], questions: Sequence[tuple[str, str]]) -> list[_Vote]:
    """The vote at all its budgets on these questions, by mean tokens."""
    return sorted((_on(group, questions, budget) for (_, budget), group in votes.items()), key=lambda v: v.tokens)


def _on(group: Group, questions: Sequence[tuple[str, str]], budget: int) -> _Vote:
    right, tokens = measured(group, questions)
    return _Vote(budget, right, float(tokens.mean()))


def at_tokens(votes: Sequence[_Vote], tokens: float) -> Array | None:
    """Accuracy by question, shape (Q,), of the vote that spends `tokens` in the mean; None outside its range.

    Args:
        votes: by mean tokens, ascending.
        tokens: to be spent in the mean.
    """
    for low, high in zip(votes, [*votes[1:], votes[-1]], strict=True):
        if low.tokens <= tokens <= high.tokens:
            share = (tokens - low.tokens) / (high.tokens - low.tokens) if high.tokens > low.tokens else 0.0
            return (1 - share) * low.right + share * high.right
    return None


def _corrected(rows: Sequence[Versus], name: str) -> list[Versus]:
    """Rows with the p-values in this field corrected over all of them that have one."""
    tested = [i for i, row in enumerate(rows) if not math.isnan(getattr(row, name))]
    if not tested:
        return list(rows)
    adjusted = compare.holm([getattr(rows[i], name) for i in tested])
    found: dict[int, dict[str, Any]] = {i: {name: float(p)} for i, p in zip(tested, adjusted, strict=True)}
    return [replace(row, **found.get(i, {})) for i, row in enumerate(rows)]
