"""`extratime report FOLDER`: leaderboard as Markdown, CSV and JSON, figures as PNG, and one self-contained page.

The page asks the network for nothing and says so in its content security policy, which also admits no script but its
own: whatever a model wrote is shown as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from string import Template

from extratime.evaluate.report import evidence, tables
from extratime.evaluate.report.figures import AXES, figure
from extratime.evaluate.report.leaderboard import ALL, leaderboard
from extratime.evaluate.report.limits import limits
from extratime.evaluate.report.pools import pool_statistics
from extratime.evaluate.report.read import Run, read
from extratime.evaluate.report.versus import versus

HERE = Path(__file__).parent
SCRIPTS = ("elements.js", "table.js", "chart.js", "problems.js", "page.js")


def report(folder: Path) -> Path:
    """Write everything there is to say about a run into its folder; each file appears whole or not at all.

    Args:
        folder: what `extratime evaluate` left behind, of one shard or several.

    Returns:
        The page.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: a record is no record; the message names file and line.
    """
    run = read(folder)
    found = tables.Findings(leaderboard(run), *pool_statistics(run), versus(run), limits(run))
    files: dict[str, str | bytes] = {
        "leaderboard.json": tables.as_json(run, found),
        "leaderboard.csv": tables.as_csv(found.rows),
        "leaderboard.md": tables.as_markdown(run, found),
        **{f"figures/accuracy_{name}.png": figure(found.rows, name) for name in AXES},
        "index.html": _page(run, found),
    }
    for name, content in files.items():
        write(folder / name, content)
    return folder / "index.html"


def _page(run: Run, found: tables.Findings) -> str:
    versus_vote = {(row.task, row.strategy, row.budget): asdict(row) for row in found.beside}
    data = {
        "rows": [versus_vote.get((row.task, row.strategy, row.budget), {}) | asdict(row) for row in found.rows],
        "at_k": [asdict(x) for x in found.at_k],
        "rankings": [asdict(x) for x in found.rankings],
        "about": tables.about(run),
        "warnings": run.warnings,
        "all": ALL,
        "cells": evidence.cells(run),
        "problems": evidence.overview(run),
        "recipe": run.recipe,
    }
    script = "".join((HERE / name).read_text("utf-8") for name in SCRIPTS)
    style = (HERE / "page.css").read_text("utf-8")
    return Template((HERE / "page.html").read_text("utf-8")).substitute(
        title=html.escape(f"{run.folder.resolve().name} · extratime"),
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'",
        style=style,
        data=_inert(json.dumps(tables.known(data), separators=(",", ":"), allow_nan=False)),
        evidence=_blocks(evidence.packed(run)),
        script=script,
    )


def _inert(text: str) -> str:
    """JSON that can't end the element it stands in."""
    return text.replace("<", "\\u003c")


def _blocks(packed: Iterable[str]) -> str:
    return "\n".join(
        f'<script type="application/octet-stream" id="evidence-{i}">{text}</script>' for i, text in enumerate(packed)
    )


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def write(file: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the new one; makes missing folders."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    partial.replace(file)
