"""What the page embeds of each problem: a line for the list, and packed evidence that is read when it is opened.

A problem's evidence is JSON, compressed and in base64: a run of hundreds of problems stays a page that opens at once,
and nothing that a model wrote stands in the page as text.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from extratime.evaluate.report.read import Response, Result, Run

LETTERS = {"right": "r", "wrong": "w", "unparsed": "u", "failed": "f"}
EXCERPT = 180
Cell = tuple[str, int, int]


def cells(run: Run) -> list[Cell]:
    """Every (strategy, budget, replicate) of a run, in order."""
    return sorted({(r.strategy, r.budget, r.replicate) for r in run.results})


def problems(run: Run) -> list[list[Result]]:
    """The results of each problem, by task and document."""
    found: dict[tuple[str, str], list[Result]] = {}
    for r in run.results:
        found.setdefault((r.task, r.problem), []).append(r)
    return list(found.values())


def overview(run: Run) -> list[dict[str, Any]]:
    """One line a problem: task, document, gold answer, excerpt, and one letter a cell (`LETTERS`, "." is missing)."""
    columns = {cell: i for i, cell in enumerate(cells(run))}
    found = problems(run)
    frames = {task: _frame([p[0].question for p in found if p[0].task == task]) for task in {p[0].task for p in found}}
    lines = []
    for results in found:
        letters = ["."] * len(columns)
        for r in results:
            letters[columns[r.strategy, r.budget, r.replicate]] = LETTERS.get(r.outcome, "w")
        one = results[0]
        excerpt = _excerpt(one.question, *frames[one.task])
        line = {"task": one.task, "doc": one.doc_id, "id": one.problem, "gold": one.gold}
        lines.append(line | {"text": excerpt, "outcomes": "".join(letters)})
    return lines


def _frame(questions: Sequence[str]) -> tuple[int, int]:
    """Characters at both ends of a task's prompts that are template: alike in all, up to a mark or a line's end."""
    if len(questions) < 2:
        return 0, 0
    head = _shared(questions)
    tail = _shared([q[::-1] for q in questions])[::-1]
    before = max(head.rfind(mark) for mark in ">]\n") + 1
    found = re.search(r"[<\[\n]", tail)
    return before, len(tail) - found.start() if found else 0


def _shared(texts: Sequence[str]) -> str:
    """The longest beginning of all of them: that of the first and the last in order."""
    first, last = min(texts), max(texts)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _excerpt(question: str, before: int, after: int) -> str:
    words = " ".join(question[before : len(question) - after].split())
    return words if len(words) <= EXCERPT else words[: EXCERPT - 1] + "…"


def packed(run: Run) -> Iterator[str]:
    """The evidence of each problem, in the order of `problems`."""
    columns = {cell: i for i, cell in enumerate(cells(run))}
    for results in problems(run):
        said = json.dumps(_evidence(results, columns, run.responses), separators=(",", ":"))
        yield base64.b64encode(zlib.compress(said.encode())).decode()


def _evidence(results: Sequence[Result], columns: dict[Cell, int], responses: dict[str, Response]) -> dict[str, Any]:
    """Question, distinct responses, and each cell's answer with its pool as places among the responses."""
    names = list(dict.fromkeys(i for r in results for i in (r.response, *(name for name, _ in r.pool))))
    place = {name: i for i, name in enumerate(names)}
    return {
        "question": results[0].question,
        "responses": [_response(responses.get(name)) for name in names],
        "cells": {columns[r.strategy, r.budget, r.replicate]: _cell(r, place) for r in results},
    }


def _response(r: Response | None) -> dict[str, Any] | None:
    if r is None:
        return None
    said = {"text": r.text, "tokens": r.n_tokens, "finish": r.finish, "answer": r.answer, "score": r.worth}
    return said | {"logprob": _digits(r.logprob)}


def _cell(r: Result, place: dict[str, int]) -> dict[str, Any]:
    return {
        "outcome": r.outcome,
        "score": r.score,
        "response": place[r.response],
        "answer": r.answer,
        "why": r.why,
        "error": r.error,
        "pool": [place[name] for name, _ in r.pool],
        "weights": [_digits(weight) for _, weight in r.pool],
        "generated": r.cost.generated,
        "sequential": r.cost.sequential,
    }


def _digits(x: float | None) -> float | None:
    return None if x is None else float(f"{x:.6g}")
