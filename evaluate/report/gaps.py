"""What a run folder lacks, in words: absent shards, missing and failed cells, failed draws, lost texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extratime.evaluate.report.read import Response, Result

SHOWN = 3
"""Examples that a warning names."""


def complaints(
    folder: Path,
    results: Sequence[Result],
    responses: Mapping[str, Response],
    missing: Sequence[tuple[str, str, str]],
) -> list[str]:
    """One sentence for each kind of gap; none if the folder is whole."""
    return [
        *(_shards(folder) or _documents(results)),
        *_missing(missing),
        *_failed(results),
        *_failed_draws(results, responses),
        *_textless(results, responses),
    ]


def _shards(folder: Path) -> list[str]:
    """Shards i-of-n of which others are there; none if some division of the documents is complete."""
    seen: dict[int, set[int]] = {}
    for i, n in _numbers(folder / "results"):
        seen.setdefault(n, set()).add(i)
    if any(len(there) == n for n, there in seen.items()):
        return []
    begun = set(_numbers(folder / "streams"))
    said = []
    for n, there in sorted(seen.items()):
        absent = sorted(set(range(n)) - there)
        names = ", ".join(f"{i}/{n}" + (" (begun)" if (i, n) in begun else "") for i in absent)
        said.append(
            f"no results of {_count(len(absent), 'shard')} {names}: run `extratime evaluate … --shard` on them"
        )
    return said


def _numbers(folder: Path) -> list[tuple[int, int]]:
    named = (re.fullmatch(r"(\d+)-of-(\d+)", file.stem) for file in folder.glob("*.jsonl"))
    return [(int(m[1]), int(m[2])) for m in named if m]


def _documents(results: Sequence[Result]) -> list[str]:
    """Documents that no cell has, though later ones are there."""
    said = []
    for task in dict.fromkeys(r.task for r in results):
        ids = {r.doc_id for r in results if r.task == task}
        absent = sorted(set(range(max(ids))) - ids)
        if absent:
            said.append(f"{task}: no cell has {_count(len(absent), 'document')}: {_examples(map(str, absent))}")
    return said


def _missing(missing: Sequence[tuple[str, str, str]]) -> list[str]:
    if not missing:
        return []
    names = _examples(f"{cell} on {problem}" for _, cell, problem in missing)
    return [f"{_count(len(missing), 'cell')} without a record, in no denominator: {names}"]


def _failed(results: Iterable[Result]) -> list[str]:
    """Failed cells by what failed, the most frequent first."""
    failed = [r for r in results if r.outcome == "failed"]
    errors = Counter(r.error for r in failed).most_common()
    said = []
    for error, n in errors[:SHOWN]:
        names = _examples(f"{r.cell} on {r.problem}" for r in failed if r.error == error)
        said.append(f"{_count(n, 'cell')} failed, without score but in the denominator: {names}: {error[:300]}")
    others = sum(n for _, n in errors[SHOWN:])
    return said + ([f"{_count(others, 'more cell')} failed with {len(errors) - SHOWN} other errors"] if others else [])


def _failed_draws(results: Iterable[Result], responses: Mapping[str, Response]) -> list[str]:
    whole = (r for r in results if r.outcome != "failed")
    failed = {i for r in whole for i, _ in r.pool if i in responses and responses[i].finish == "failed"}
    return [f"{_count(len(failed), 'draw')} failed in cells that answered; they count as not right"] if failed else []


def _textless(results: Iterable[Result], responses: Mapping[str, Response]) -> list[str]:
    lost = {i for r in results for i in (r.response, *(name for name, _ in r.pool))} - responses.keys()
    if not lost:
        return []
    return [f"{_count(len(lost), 'response')} named in results but not in responses/, first {min(lost)}"]


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _examples(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
