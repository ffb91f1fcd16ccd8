"""What a recipe would do: the grid, the documents, and an upper estimate of tokens and hours. Loads no model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lm_eval.api.task import Task

from extratime.evaluate.grid import Column, Recipe, columns
from extratime.evaluate.tasks.load import load_tasks


def describe(recipe: Recipe, shard: tuple[int, int] = (0, 1)) -> str:
    """The plan of a recipe in words and numbers."""
    tasks, grid = load_tasks(recipe), columns(recipe)
    lines = [f"model     {recipe.model}", f"output    {recipe.output}", "", "tasks"]
    sizes = {name: _size(task, recipe, shard) for name, task in tasks.items()}
    lines += [
        f"  {name}: {sizes[name]} documents, at most {_length(task, recipe)} tokens a response"
        for name, task in tasks.items()
    ]
    lines += ["", f"grid      {len(grid)} columns, {len(grid) * sum(sizes.values())} cells"]
    lines += [f"  {label}: budgets {budgets}" for label, budgets in _budgets(grid).items()]
    read, drawn = _tokens(tasks, sizes, grid, recipe)
    lines += [
        "",
        f"tokens    at most {read:,} read by all cells; at most {drawn:,} drawn if strategies share their draws",
    ]
    lines.append(f"time      {_time(recipe.output, drawn)}")
    return "\n".join(lines)


def _size(task: Task, recipe: Recipe, shard: tuple[int, int]) -> int:
    size = len(task.eval_docs)
    return len(range(size if recipe.limit is None else min(size, recipe.limit))[shard[0] :: shard[1]])


def _length(task: Task, recipe: Recipe) -> int:
    return int(recipe.max_tokens or task.config.generation_kwargs.get("max_gen_toks") or 256)


def _budgets(grid: list[Column]) -> Mapping[str, list[int]]:
    found: dict[str, list[int]] = {}
    for column in grid:
        if column.budget not in found.setdefault(column.spec.label, []):
            found[column.spec.label].append(column.budget)
    return found


def _tokens(
    tasks: Mapping[str, Task], sizes: Mapping[str, int], grid: list[Column], recipe: Recipe
) -> tuple[int, int]:
    unit = sum(sizes[name] * _length(task, recipe) for name, task in tasks.items())
    widest = max(column.budget for column in grid)
    return unit * sum(column.budget for column in grid), unit * widest * recipe.replicates


def _time(folder: Path, tokens: int) -> str:
    """Hours for that many tokens at the rate of the last run in the folder, if there was one."""
    runs = sorted(folder.glob("run-*.json"))
    if not runs:
        return "not known before a first run in this folder; try --set limit=8"
    said = json.loads(runs[-1].read_text(encoding="utf-8"))
    decoded = sum(work["decode"] for work in said["counts"].values())
    if not decoded:
        return "not known: the last run in this folder drew nothing"
    return f"at most {tokens / decoded * said['seconds']['wall'] / 3600:.2f} h at the last run's rate in this folder"
