"""The leaderboard as text: Markdown that a terminal of 120 columns shows whole, CSV and JSON with every field."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from extratime.evaluate.report import reviews
from extratime.evaluate.report.leaderboard import Row
from extratime.evaluate.report.limits import Draws, Limits, Match
from extratime.evaluate.report.pools import POINT, AtK, Enough, Ranking
from extratime.evaluate.report.read import Run
from extratime.evaluate.report.reviews import Reviewed
from extratime.evaluate.report.versus import Versus
from extratime.evaluate.report.words import p_value, percent, short, times

WIDTH = 120
BESIDE = ("beside self-consistency", "budget", "tokens", "at its budget", "Holm p", "at its tokens", "Holm p")
HEAD = ("strategy", "budget", "accuracy %", "tokens", "FLOPs", "seconds", "vs. one sample", "Holm p")
PLATEAU = ("to match the vote at its best", "its accuracy %", "its tokens", "tokens", "times", "gain")
CALIBRATED = ("weights as chances of being right", "AUROC", "AURC", "Brier", "calibration error", "log-loss")
REVIEWED = ("right answers, reviewed", "budget", "reviewed", "wrong work %", "accuracy %", "valid %")
DRAWS = "Tokens of a draw: {} (right {}, not right {}); of one prompt's draws they vary by {} %."
NOTES = """\
Accuracy and differences (percentage points) with 95 % intervals from resampling whole questions; tokens generated,
FLOPs and modelled seconds are means per problem. One sample: {baseline}. Holm p: sign-flip test over all rows.
At its tokens: beside the two budgets of self-consistency whose mean tokens enclose the row's, in that proportion.
Enough: samples after which the next adds at most one point, by a fit that ends too early where problems differ;
~ where it misses what was measured by more than a point.
Times: the tokens to match the vote's best accuracy by those that the vote takes to come within half a point of it;
– where no budget does.
"""


class Findings(NamedTuple):
    """What a report tells of a run, all of it by task."""

    rows: Sequence[Row]
    at_k: Sequence[AtK]
    rankings: Sequence[Ranking]
    bends: Sequence[Enough]
    beside: Sequence[Versus]
    limits: Limits

    def of(self, task: str) -> Findings:
        """Those of one task."""
        *groups, limits = self
        mine = [_of(task, group) for group in groups]
        return Findings._make([*mine, Limits._make(_of(task, group) for group in limits)])


def _of(task: str, group: Iterable[Any]) -> Any:
    return tuple(x for x in group if x.task == task)


def as_json(run: Run, found: Findings) -> str:
    """Everything the report knows, save the responses; what is not known is null."""
    said = {
        **about(run),
        "rows": [asdict(row) for row in found.rows],
        "versus_self_consistency": [asdict(row) for row in found.beside],
        "versus_plateau": [asdict(row) for row in found.limits.matches],
        "pools": {
            "at_k": [asdict(x) for x in found.at_k],
            "verifiers": [asdict(x) for x in found.rankings],
            "enough": [asdict(x) for x in found.bends],
            "draws": [asdict(x) for x in found.limits.draws],
            "true_at_k": [asdict(x) for x in found.limits.true_at_k],
        },
        "reviewed": [asdict(x) for x in found.limits.reviewed],
        "warnings": list(run.warnings),
        "missing": [dict(zip(("task", "cell", "problem"), gone, strict=True)) for gone in run.missing],
        "failed": [
            {"task": r.task, "cell": r.cell, "problem": r.problem, "error": r.error}
            for r in run.results
            if r.outcome == "failed"
        ],
    }
    return json.dumps(known(said), indent=1, allow_nan=False)


def about(run: Run) -> dict[str, Any]:
    """What ran, in plain values."""
    machine = run.machine
    return {
        "run": run.folder.resolve().name,
        "models": list(machine.models),
        "devices": list(machine.devices),
        "versions": machine.versions,
        "wall_seconds": machine.wall,
        "tokens_computed": machine.computed,
        "tokens_read": sum(r.cost.decoded for r in run.results),
        "problems": len({r.problem for r in run.results}),
        "cells": len(run.results),
        "responses": len(run.responses),
    }


def known(value: Any) -> Any:
    """`value` with None for every number that is not finite."""
    if isinstance(value, dict):
        return {k: known(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [known(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(rows: Iterable[Row]) -> str:
    """One line a row, every field; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(known(asdict(row)) for row in rows)
    return text.getvalue()


def as_markdown(run: Run, found: Findings) -> str:
    """Headline, warnings, and for each task its leaderboard, what its pools tell, and what beats a vote."""
    said = about(run)
    models = ", ".join(said["models"]) or "unknown model"
    parts = [
        f"# {_clean(said['run'])}\n",
        _wrapped(f"{models}: {said['problems']} problems, {said['cells']} cells, {said['responses']} responses"),
        _wrapped(
            f"tokens generated: {said['tokens_computed']} computed, {said['tokens_read']} read by all cells together"
        ),
        "".join(_wrapped(f"- warning: {warning}") for warning in run.warnings),
    ]
    for task in dict.fromkeys(row.task for row in found.rows):
        own = found.of(task)
        mine, limits = own.rows, own.limits
        metric = "" if mine[0].metric == "mixed" else f", {mine[0].metric}"
        parts.append(f"## {_clean(task)} ({max(row.questions for row in mine)} problems{metric})\n")
        parts.append(_leaderboard(mine))
        parts.append(_pools(own.at_k, own.rankings, own.bends))
        parts.append(_calibrated(own.rankings))
        parts += [_wrapped(DRAWS.format(*_drawn(x))) for x in limits.draws]
        curve = reviews.said(limits.true_at_k)
        parts.append(_wrapped(curve) if curve else "")
        parts.append(_reviewed(limits.reviewed))
        parts.append(_beside(own.beside))
        parts.append(_plateau(limits.matches))
    ones = list(dict.fromkeys(f"{row.strategy} at budget 1" for row in found.rows if row.baseline))
    parts.append(_wrapped(NOTES.format(baseline=", ".join(ones) or "none in this run, so nothing is compared")))
    return "\n".join(part for part in parts if part)


def _leaderboard(rows: Sequence[Row]) -> str:
    lines = [[_cell(row) for row in rows], [str(row.budget) for row in rows]]
    lines.append([percent(row.accuracy, row.accuracy_low, row.accuracy_high) for row in rows])
    lines += [[short(getattr(row, name)) for row in rows] for name in ("generated", "flops", "seconds_modelled")]
    lines.append([_difference(row) for row in rows])
    lines.append([p_value(row.p_holm) for row in rows])
    return table(HEAD, list(zip(*lines, strict=True))) + _incomplete(rows)


def _cell(row: Row) -> str:
    return row.strategy + " †" * row.oracle + " *" * bool(row.failed or row.missing)


def _difference(row: Row) -> str:
    if row.baseline:
        return "one sample"
    return percent(row.difference, row.difference_low, row.difference_high, "+")


def _incomplete(rows: Iterable[Row]) -> str:
    """What the marks stand for."""
    said = [_wrapped("† looks at the expected answer: a ceiling, no strategy")] if any(r.oracle for r in rows) else []
    for row in rows:
        failed = f"{row.failed} failed, counted as not right" if row.failed else ""
        missing = f"{row.missing} missing, not counted" if row.missing else ""
        if failed or missing:
            said.append(
                _wrapped(f"\\* {row.strategy}, budget {row.budget}: " + "; ".join(filter(None, (failed, missing))))
            )
    return "\n" + "".join(said) if said else ""


def _pools(at_k: Sequence[AtK], rankings: Sequence[Ranking], bends: Sequence[Enough]) -> str:
    """Accuracy of k samples of one pool: what any choice could reach, what a vote and each verifier do reach."""
    ks = sorted({x.k for x in at_k})[:9]
    enough = {(x.kind, x.verifier): "~" * (x.misfit > POINT) + short(x.enough) for x in bends}
    found = {(x.kind, x.verifier, x.k): x.value for x in at_k}
    names = dict.fromkeys((x.kind, x.verifier) for x in at_k)
    within = {("best", x.verifier): x.within for x in rankings}
    lines = [
        [
            verifier or f"{kind}@k",
            *(percent(found.get((kind, verifier, k), math.nan)) for k in ks),
            enough.get((kind, verifier), short(math.nan)),
            short(within.get((kind, verifier), math.nan)),
        ]
        for kind, verifier in names
    ]
    return table(["% of k samples, k =", *map(str, ks), "enough", "AUROC within"], lines) if lines else ""


def _calibrated(rankings: Sequence[Ranking]) -> str:
    """Of the verifiers whose weights are probabilities, how far they are to be believed."""
    lines = [
        [x.verifier, *map(short, (x.auroc, x.aurc, x.brier, x.ece, x.log_loss))]
        for x in rankings
        if not math.isnan(x.brier)
    ]
    return table(CALIBRATED, lines) if lines else ""


def _drawn(draws: Draws) -> list[str]:
    return [short(x) for x in (draws.tokens, draws.right, draws.wrong)] + [percent(draws.variation)]


def _beside(rows: Sequence[Versus]) -> str:
    """Differences to self-consistency, in points."""
    lines = [
        [
            row.strategy,
            str(row.budget),
            short(row.tokens),
            percent(row.equal_budget, row.equal_budget_low, row.equal_budget_high, "+"),
            p_value(row.equal_budget_p_holm),
            percent(row.equal_tokens, row.equal_tokens_low, row.equal_tokens_high, "+"),
            p_value(row.equal_tokens_p_holm),
        ]
        for row in rows
    ]
    return table(BESIDE, lines) if lines else ""


def _reviewed(rows: Sequence[Reviewed]) -> str:
    """Right answers after their work was checked."""
    lines = [
        [
            row.strategy,
            str(row.budget),
            str(row.reviewed),
            percent(row.rate, row.low, row.high),
            percent(row.accuracy),
            percent(row.true),
        ]
        for row in rows
    ]
    return table(REVIEWED, lines) if lines else ""


def _plateau(rows: Sequence[Match]) -> str:
    """What matching the vote at its best costs."""
    lines = [
        [
            row.strategy,
            percent(row.plateau),
            short(row.saturates),
            short(row.matches),
            times(row.multiplier, row.low, row.high),
            percent(row.gain, math.nan, math.nan, "+"),
        ]
        for row in rows
    ]
    return table(PLATEAU, lines) if lines else ""


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; its first column gives way where the others leave no room."""
    lines = [[_clean(text).replace("|", "\\|") for text in line] for line in (head, *lines)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 3 * len(widths) - 1)
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [lines[0], rule, *lines[1:]]
    return "".join(
        "| "
        + " | ".join([_fit(line[0], widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))])
        + " |\n"
        for line in lines
    )


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else f"{text[: width - 9]}…{text[-8:]}"


def _wrapped(text: str) -> str:
    return textwrap.fill(_clean(text), WIDTH, subsequent_indent="  " * text.startswith(("-", "\\*"))) + "\n"


def _clean(text: str) -> str:
    """One line without control characters: what a model or a server said must not steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
