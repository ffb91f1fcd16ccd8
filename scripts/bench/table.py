"""The rows of a benchmark: what was measured, its bar, and whether it holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from extratime.evaluate.statistics.questions import Difference, paired_difference


def row(name: str, value: float | None, bar: str = "", holds: bool | None = None, note: str = "") -> dict[str, Any]:
    """One row; numbers may be NumPy's."""
    value, holds = None if value is None else float(value), None if holds is None else bool(holds)
    return {"name": name, "value": value, "bar": bar, "holds": holds, "note": note}


def at_least(name: str, value: float, bar: float, note: str = "") -> dict[str, Any]:
    return row(name, value, f"≥ {bar:g}", value >= bar, note)


def at_most(name: str, value: float, bar: float, note: str = "") -> dict[str, Any]:
    return row(name, value, f"≤ {bar:g}", value <= bar, note)


def paired(ours: npt.ArrayLike, theirs: npt.ArrayLike) -> tuple[Difference, str]:
    """The difference of two arms over the same problems, and its interval as a row tells it."""
    found = paired_difference(ours, theirs, np.random.default_rng(0))
    return found, f"[{found.low:+.3f}, {found.high:+.3f}]"


def show(rows: list[dict[str, Any]], file: Path | None = None) -> None:
    """Print rows as a table, and write them to `file` as JSON."""
    print(f"{'':60} {'value':>10}  {'bar':21} holds")
    for each in rows:
        value = "–" if each["value"] is None else f"{each['value']:.3f}"
        holds = {True: "yes", False: "NO", None: ""}[each["holds"]]
        print(f"{each['name']:60} {value:>10}  {each['bar']:21} {holds:5} {each['note']}")
    if file:
        file.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
