"""Accuracy against what it costs: one line per strategy through its budgets, one panel per task.

Bars are question-clustered 95 % intervals, the dotted line is one plain sample. Drawn with Agg, without pyplot, so
that nothing global changes. Labels are data: mathematical markup in them is not read.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from extratime.evaluate.report.leaderboard import Row
from extratime.evaluate.report.words import short

AXES = {
    "tokens": ("generated", "generated tokens per problem"),
    "flops": ("flops", "FLOPs per problem (policy, prefixes cached)"),
    "seconds": ("seconds_modelled", "modelled seconds per problem"),
}
"""Name of a figure → field of a row, and what stands below the axis."""

PAPER, INK, FAINT = "#ffffff", "#3b424c", "#d9dde3"
LINES = (
    "#2463d6", "#dd5b12", "#1f9254", "#9333ab", "#0b8296", "#cf2f45", "#946c00", "#5a45c9", "#b92a76", "#5b6673"
)  # fmt: skip
MARKERS = "osD^vPX*<>"
STYLE: Any = {
    **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), PAPER),
    **{"axes.edgecolor": FAINT, "grid.color": FAINT, "grid.linewidth": 0.7, "axes.grid": True, "axes.axisbelow": True},
    **{"ytick.major.size": 0, "axes.titleweight": "bold", "legend.frameon": False, "font.size": 10.5},
    **{"text.parse_math": False, "text.usetex": False},
}


def figure(rows: Sequence[Row], cost: str) -> bytes:
    """One figure as PNG, with a panel for each task among `rows`.

    Args:
        rows: of the leaderboard.
        cost: key of `AXES`.
    """
    with matplotlib.rc_context(STYLE):
        tasks = list(dict.fromkeys(row.task for row in rows))
        strategies = sorted({row.strategy for row in rows})
        columns = min(len(tasks), 3)
        lines = math.ceil(len(tasks) / columns)
        legend = math.ceil(len(strategies) / (2 + columns))
        size = (7.4 if columns == 1 else 4.9 * columns, 4.3 * lines + 0.25 * legend + 0.25)
        drawing = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(drawing)
        panels = drawing.subplots(lines, columns, squeeze=False).ravel()
        for panel, task in zip(panels, tasks, strict=False):
            _panel(panel, [row for row in rows if row.task == task], cost, strategies)
            panel.set_title(task if len(tasks) > 1 else "", loc="left")
        for panel in panels[len(tasks) :]:
            panel.set_visible(False)
        handles = [Line2D([], [], **_look(i)) for i in range(len(strategies))]
        drawing.legend(handles, strategies, loc="outside lower center", ncols=min(len(strategies), 2 + columns))
        buffer = io.BytesIO()
        drawing.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def _panel(panel: Axes, rows: Sequence[Row], cost: str, strategies: Sequence[str]) -> None:
    field, label = AXES[cost]
    drawn = False
    for i, strategy in enumerate(strategies):
        points = [(getattr(row, field), row) for row in rows if row.strategy == strategy]
        aside = 1 + 0.014 * (i - (len(strategies) - 1) / 2)  # points of one cost stand side by side
        points = sorted(((x * aside, row) for x, row in points if x > 0), key=lambda point: point[0])
        if points:
            _line(panel, points, _look(i))
            drawn = True
    panel.set_xlabel(label)
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if not drawn:
        panel.text(0.5, 0.5, "not known for this run", transform=panel.transAxes, ha="center", color=INK)
        return
    for row in rows:
        if row.baseline:
            panel.axhline(row.accuracy, color=INK, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _line(panel: Axes, points: Sequence[tuple[float, Row]], look: dict[str, Any]) -> None:
    x = [cost for cost, _ in points]
    low, high = [row.accuracy_low for _, row in points], [row.accuracy_high for _, row in points]
    panel.vlines(x, low, high, color=look["color"], alpha=0.35, linewidth=2.5)
    panel.plot(x, [row.accuracy for _, row in points], **look)


def _look(i: int) -> dict[str, Any]:
    return {
        "color": LINES[i % len(LINES)],
        "marker": MARKERS[(i // len(LINES)) % len(MARKERS)],
        "markersize": 6,
        "markeredgecolor": PAPER,
        "linewidth": 1.8,
    }
