"""One evaluation from its recipe: engine, streams, tasks, grid, and the run folder they leave behind.

    runs/x/recipe.yaml            the resolved recipe
    runs/x/streams/<shard>.jsonl  what was drawn: the only thing that can't be computed again
    runs/x/results/<shard>.jsonl  one line per document and column
    runs/x/responses/<shard>.jsonl  every distinct response once
    runs/x/lm_eval/<shard>.json   lm-eval's own results
    runs/x/run-<shard>.json       engine, machine, counts and seconds

A run that was interrupted goes on where its streams end. Shards split the documents and may run anywhere; their files
merge by lying in one folder.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from lm_eval.api.task import Task
from tqdm import tqdm

from extratime.evaluate.cost import Ledger
from extratime.evaluate.grid import Recipe, bind, columns
from extratime.evaluate.harness import Bench, Scored, evaluate
from extratime.evaluate.means import refuse_beyond_means
from extratime.evaluate.named import RecipeError
from extratime.evaluate.schedule import Cell, Result, Schedule
from extratime.evaluate.streams import Streams
from extratime.evaluate.tasks.load import Reading, load_tasks, reading
from extratime.evaluate.verifiers.likelihood import mean_logprob
from extratime.models.engines.open import Opened, open_recipe, open_replay
from extratime.models.manifest import write_lines, write_text
from extratime.models.paths import digest
from extratime.models.request import Completion

LIBRARIES = ("extratime", "lm-eval", "torch", "transformers", "peft")


def run_recipe(recipe: Recipe, shard: tuple[int, int] = (0, 1), replay: bool = False) -> Path:
    """Run a recipe, or one shard of its documents.

    Args:
        recipe: what to run.
        shard: (i, n): every n-th document, from the i-th on.
        replay: answer from the streams alone, with no engine; what they lack is an error.

    Returns:
        The run folder.
    """
    began, name = time.time(), f"{shard[0]}-of-{shard[1]}"
    folder = recipe.output
    folder.mkdir(parents=True, exist_ok=True)
    tasks = load_tasks(recipe)  # before the model: a mistake in the recipe shows at once
    readings = {key: reading(task, recipe.reading(key), recipe.strip_thinking) for key, task in tasks.items()}
    opened = open_replay(folder) if replay else open_recipe(recipe)
    streams = Streams(folder / "streams", None if replay else name)
    ledger = Ledger()
    try:
        if recipe.chat and opened.render is None:
            raise RecipeError(f"chat is on, but {recipe.model} has no chat template: set chat: false")
        write_text(folder / "recipe.yaml", yaml.safe_dump(_plain(recipe), sort_keys=False))
        opened.save(folder)
        bench = _bench(recipe, tasks, readings, opened, shard)
        labels = [column.spec.label for column in bench.columns]
        refuse_beyond_means(dict(zip(labels, bench.strategies, strict=True)), opened.roles)
        scored, report = evaluate(bench, _runner(opened, streams, ledger))
        _keep(folder, name, bench, scored)
        write_text(folder / "lm_eval" / f"{name}.json", json.dumps(report, default=str))
        if not replay:
            _add_account(folder / f"run-{name}.json", _account(recipe, opened, ledger, began))
    finally:
        streams.close()
        for engine in opened.roles.values():
            engine.close()
    return folder


def _bench(
    recipe: Recipe, tasks: Mapping[str, Task], readings: Mapping[str, Reading], opened: Opened, shard: tuple[int, int]
) -> Bench:
    grid = columns(recipe)
    strategies = [bind(column.spec, opened.known) for column in grid]
    documents = {name: _documents(len(task.eval_docs), recipe.limit, shard) for name, task in tasks.items()}
    return Bench(recipe, grid, strategies, tasks, readings, documents, opened.engine.encode, opened.render)


def _documents(size: int, limit: int | None, shard: tuple[int, int]) -> list[int]:
    return list(range(size if limit is None else min(limit, size)))[shard[0] :: shard[1]]


def _runner(opened: Opened, streams: Streams, ledger: Ledger) -> Callable[[Sequence[Cell]], list[Result]]:
    def run(cells: Sequence[Cell]) -> list[Result]:
        with tqdm(total=len(cells), desc="cells", unit="cell", mininterval=1.0) as bar:
            schedule = Schedule(opened.roles, streams, ledger, lambda result: bar.update() and None)
            with _settled():
                return schedule.run(cells)

    return run


@contextmanager
def _settled() -> Iterator[None]:
    """Let the garbage collector pass over what is loaded: looking through it once takes as long as 10,000 draws."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _keep(folder: Path, name: str, bench: Bench, scored: Iterable[Scored]) -> None:
    """Write results, and every distinct response once."""
    responses: dict[str, dict[str, Any]] = {}
    records = [_record(bench, item, responses) for item in scored]
    write_lines(folder / "results" / f"{name}.jsonl", records)
    write_lines(folder / "responses" / f"{name}.jsonl", responses.values())


def _record(bench: Bench, item: Scored, responses: dict[str, dict[str, Any]]) -> dict[str, Any]:
    result, problem = item.result, item.result.cell.problem
    answer = result.answer
    name = _refer(answer.response, problem.id, bench, item, responses)
    pool = [
        [_refer(response, problem.id, bench, item, responses), _finite(weight)]
        for response, weight in zip(answer.pool, answer.weights, strict=True)
    ]
    return {
        "task": item.task,
        "doc_id": item.doc_id,
        "problem": problem.id,
        "question": problem.prompt.text,
        **({"messages": list(problem.messages)} if problem.messages else {}),
        "gold": item.gold,
        "cell": item.column.key,
        "strategy": item.column.spec.label,
        "budget": item.column.budget,
        "replicate": item.column.replicate,
        "score": None if result.error else item.score,
        "metric": item.metric,
        "outcome": _outcome(item, responses[name]["answer"]),
        "error": result.error,
        "response": name,
        "answer": responses[name]["answer"],
        "why": answer.why,
        "pool": pool,
        "cost": result.cost._asdict(),
    }


def _refer(
    response: Completion, problem: str, bench: Bench, item: Scored, responses: dict[str, dict[str, Any]]
) -> str:
    name = digest(problem, response.text, response.finish, response.n_tokens, list(response.tokens))[:16]
    if name not in responses:
        reading = bench.readings[item.task]
        answer = reading.answer(response.text) if response.finished else None
        responses[name] = {
            "id": name,
            "text": response.text,
            "tokens": list(response.tokens),
            "logprobs": [round(x, 5) for x in response.logprobs],
            "n_tokens": response.n_tokens,
            "finish": response.finish,
            "logprob": _finite(mean_logprob(response)),
            "answer": None if answer is None else str(answer),
            "score": reading.score(item.result.cell.problem.doc, response.text),
        }
    return name


def _outcome(item: Scored, answer: str | None) -> str:
    if item.result.error:
        return "failed"
    if item.score > 0:
        return "right"
    return "unparsed" if answer is None else "wrong"


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _account(recipe: Recipe, opened: Opened, ledger: Ledger, began: float) -> dict[str, Any]:
    engine = opened.engine
    shape = engine.profile.shape
    return {
        "model": recipe.model,
        "engine": {role: engine.fingerprint for role, engine in opened.roles.items()},
        "shape": asdict(shape) if shape else None,
        "counts": {role: asdict(work) for role, work in ledger.computed.items()},
        "seconds": {**engine.seconds, "wall": time.time() - began},
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _add_account(file: Path, account: dict[str, Any]) -> None:
    """Write the account, on top of what earlier sessions of the same run with the same engine did."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if before.get("engine") == account["engine"]:
        account["seconds"] = _sum(before["seconds"], account["seconds"])
        counts = account["counts"]
        account["counts"] = {
            role: _sum(before["counts"].get(role, {}), counts.get(role, {})) for role in {**before["counts"], **counts}
        }
    write_text(file, json.dumps(account, indent=1))


def _sum(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {key: a.get(key, 0) + b.get(key, 0) for key in {**a, **b}}


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it could stand in a file again."""
    said = json.loads(json.dumps(asdict(recipe), default=str))
    said["strategies"] = [_entry(spec) for spec in said["strategies"]]
    return {key: value for key, value in said.items() if value not in (None, {})}


def _entry(spec: Mapping[str, Any]) -> dict[str, Any]:
    extra = {"budgets": spec["budgets"]} if spec["budgets"] else {}
    return {spec["name"]: {**spec["options"], "label": spec["label"], **extra}}
