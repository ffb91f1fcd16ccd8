"""The rows of a benchmark: what was measured, its bar, and whether it holds."""

import json
from pathlib import Path
from typing import Any


def row(name: str, value: float | None, bar: str = "", holds: bool | None = None, note: str = "") -> dict[str, Any]:
    return {"name": name, "value": value, "bar": bar, "holds": holds, "note": note}


def show(rows: list[dict[str, Any]], file: Path | None = None) -> None:
    """Print rows as a table, and write them to `file` as JSON."""
    print(f"{'':48} {'value':>10}  {'bar':9} holds")
    for each in rows:
        value = "–" if each["value"] is None else f"{each['value']:.3f}"
        holds = {True: "yes", False: "NO", None: ""}[each["holds"]]
        print(f"{each['name']:48} {value:>10}  {each['bar']:9} {holds:5} {each['note']}")
    if file:
        file.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
