"""`extratime report --training FOLDER…`: what the logs of training runs say about learning-rate schedules.

The annealing law (`statistics/annealing.py`) is fitted to all runs together, which must share model, data, peak
and batch. The first folder gets `annealing.json` and `annealing.png`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from extratime.evaluate.report.figures import INK, LINES, STYLE
from extratime.evaluate.report.page import write
from extratime.evaluate.statistics.annealing import SHAPES, Curve, Law, fit, read, schedule, warm_up
from extratime.models.manifest import write_json

CONVENTION = "warm-up counts in S1 and not in S2; the first tenth after it is left out of the fit"


def report(folders: Sequence[Path]) -> str:
    """Fit the law to the runs in `folders`, write figure and numbers into the first, and say what was found.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: a log cannot be read or tells too little, or the runs have different peaks.
    """
    curves = {folder.resolve().name: read(folder) for folder in folders}
    peaks = {f"{curve.rates.max():.3g}" for curve in curves.values()}
    if len(peaks) > 1:
        raise ValueError(f"the law holds for one peak learning rate, and these runs have {', '.join(sorted(peaks))}")
    law = fit(list(curves.values()))
    ends = _ends(law, next(iter(curves.values())))
    write(folders[0] / "annealing.png", _figure(law, curves))
    told = {"law": asdict(law), "convention": CONVENTION, "predicted final loss": ends}
    write_json(folders[0] / "annealing.json", told | {"error": {name: law.error(c) for name, c in curves.items()}})
    return _words(law, curves, ends)


def _ends(law: Law, curve: Curve) -> dict[str, float]:
    """Predicted final loss of each schedule over as many steps, from the same peak and warm-up."""
    steps, peak = len(curve.rates), float(curve.rates.max())
    warm = int(np.argmax(curve.rates)) if warm_up(curve.rates) < steps else 0
    return {shape: float(law(schedule(shape, steps, peak, warm))[-1]) for shape in SHAPES}


def _words(law: Law, curves: Mapping[str, Curve], ends: Mapping[str, float]) -> str:
    lines = [
        f"L(s) = {law.L0:.4g} + {law.A:.4g}·S1^−{law.alpha:.3g} − {law.C:.4g}·S2, λ = {law.decay:g} ({CONVENTION})",
        *(f"{name}: mean error {law.error(curve):.2%}, {len(curve.at)} losses" for name, curve in curves.items()),
        "predicted final loss over as many steps from the same peak:",
        *(f"  {shape:34} {loss:.4f}" for shape, loss in ends.items()),
    ]
    if len(curves) == 1:
        lines.append("one schedule cannot tell progress from annealing: name a second run to trust the predictions")
    return "\n".join(lines)


def _figure(law: Law, curves: Mapping[str, Curve]) -> bytes:
    """Logged losses as dots, the law as lines, learning rates below; as PNG."""
    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(7.4, 5.2), layout="constrained")
        FigureCanvasAgg(drawing)
        above, below = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for i, (name, curve) in enumerate(curves.items()):
            color, steps = LINES[i % len(LINES)], np.arange(len(curve.rates)) + 1
            above.plot(curve.at + 1, curve.losses, ".", color=color, alpha=0.5, markersize=4)
            above.plot(steps, law(curve.rates), color=color, label=name)
            below.plot(steps, curve.rates, color=color)
        lowest = min(float(curve.losses.min()) for curve in curves.values())
        highest = max(float(np.quantile(curve.losses, 0.95)) for curve in curves.values())
        above.set_ylim(lowest - 0.05 * (highest - lowest), highest)
        above.set_ylabel("loss, nats per token")
        below.set_ylabel("learning rate")
        below.set_xlabel("step")
        above.legend(labelcolor=INK)
        buffer = io.BytesIO()
        drawing.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()
