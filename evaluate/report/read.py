"""A run folder as values: every shard's results and responses, what they cost, and what is missing.

Shards merge by lying in one folder: files are read in the order of their names, and of two records of one
(cell, problem) or one response the first wins. A torn line is dropped with a warning that names file and line; the
result it held then shows up as missing. Nothing here depends on how a run was split into shards.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from extratime.evaluate.cost import Cost, Rates, rates
from extratime.evaluate.report import gaps
from extratime.models.request import Shape, Work

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Response:
    """One distinct response to one problem.

    Attributes:
        n_tokens: its length.
        finish: why it ends (`extratime.models.request.Finish`).
        logprob: mean log-probability of its tokens, or None if the engine told none.
        answer: what it votes for, or None.
        score: the task's metric of it.
    """

    id: str
    text: str
    n_tokens: int
    finish: str
    logprob: float | None
    answer: str | None
    score: float

    @property
    def standing(self) -> int:
        """2 for a finished response, 1 for an unfinished one, 0 for a failed one, as strategies rank them."""
        return {"eos": 2, "until": 2, "failed": 0}.get(self.finish, 1)

    @property
    def worth(self) -> float:
        """Its score; a failed draw is worth nothing, whatever its beginning says."""
        return self.score if self.standing else 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """What one cell (strategy, budget, replicate) answered to one problem.

    Attributes:
        score: the task's metric; None if the cell failed, which is not a wrong answer but stays in the denominator.
        outcome: "right", "wrong", "unparsed" or "failed".
        response: id of the answer's response; of a failed cell, what there is of it.
        pool: (response id, weight) of every candidate; weight None where there is none.
        cost: what the cell read.
    """

    task: str
    doc_id: int
    problem: str
    question: str
    gold: str | None
    cell: str
    strategy: str
    budget: int
    replicate: int
    score: float | None
    metric: str
    outcome: str
    error: str
    response: str
    answer: str | None
    why: str
    pool: tuple[tuple[str, float | None], ...]
    cost: Cost

    @property
    def value(self) -> float:
        """What the result adds to an accuracy: a failed cell adds nothing but is counted."""
        return self.score if self.score is not None else 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What ran, from run-*.json, and what a token costs there.

    Attributes:
        models, devices: distinct names over the shards.
        shape: sizes of the policy, or None if not known; then FLOPs and bytes are not told.
        rates: measured seconds per token over all shards, or None if nothing was measured.
        computed: tokens that the engines generated, in all roles and shards; cells read them many times over.
        wall: seconds of all shards together.
        versions: of the libraries.
    """

    models: tuple[str, ...]
    devices: tuple[str, ...]
    shape: Shape | None
    rates: Rates | None
    computed: int
    wall: float
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Run:
    """A merged run folder.

    Attributes:
        results: sorted by task, document, strategy, budget and replicate.
        responses: by id.
        missing: (task, cell, problem) without a record, though some other cell has the problem.
        warnings: what was dropped or does not fit together, in words.
        recipe: text of recipe.yaml, or "".
        names: the strategy behind each label.
        oracles: labels of strategies that look at the expected answer.
    """

    folder: Path
    results: tuple[Result, ...]
    responses: dict[str, Response]
    machine: Machine
    missing: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...]
    recipe: str
    names: dict[str, str]
    oracles: frozenset[str]

    def name(self, label: str) -> str:
        """The strategy behind a label, such as best_of_n of "best_of_n(self_eval)"."""
        return self.names.get(label, label.split("(")[0])


def read(folder: Path) -> Run:
    """Merge all shards of a run folder.

    Raises:
        FileNotFoundError: the folder or its results are not there.
        ValueError: a record that is not torn lacks a key, or there is no record at all.
    """
    warnings: list[str] = []
    found = _first(_records(folder, "results", _result, warnings), lambda r: (r.task, r.cell, r.problem), warnings)
    if not found:
        raise ValueError(f"{folder}/results holds no complete record: run `extratime evaluate` again, it goes on")
    responses = _first(_records(folder, "responses", _response, warnings), lambda r: r.id, warnings)
    results = sorted(found.values(), key=lambda r: (r.task, r.doc_id, r.problem, r.strategy, r.budget, r.replicate))
    machine = _machine(folder, warnings)
    missing = _missing(results)
    warnings += gaps.complaints(folder, results, responses, missing)
    recipe = _recipe(folder / "recipe.yaml")
    return Run(
        folder,
        tuple(results),
        dict(sorted(responses.items())),
        machine,
        missing,
        tuple(warnings),
        *recipe,
    )


def _recipe(file: Path) -> tuple[str, dict[str, str], frozenset[str]]:
    """Its text, label → strategy from entries such as `best_of_n: {label: …}`, and labels that ask the oracle."""
    text = file.read_text("utf-8") if file.exists() else ""
    try:
        strategies = (yaml.safe_load(text) or {}).get("strategies", [])
    except (yaml.YAMLError, AttributeError) as error:
        raise ValueError(f"{file}: not a recipe: {error}") from error
    entries = [(name, said or {}) for entry in strategies if isinstance(entry, dict) for name, said in entry.items()]
    labelled = [(said["label"], name, said) for name, said in entries if "label" in said]
    oracles = frozenset(label for label, _, said in labelled if _asks_oracle(said))
    return text, {label: name for label, name, _ in labelled}, oracles


def _asks_oracle(said: dict[str, Any]) -> bool:
    """Whether a strategy, or one that it chooses among, has the oracle for a verifier."""
    inner = [options or {} for one in said.get("strategies", ()) if isinstance(one, dict) for options in one.values()]
    return "oracle" in (said.get("verify") or ()) or any(map(_asks_oracle, inner))


def _records(folder: Path, kind: str, parse: Callable[[dict[str, Any]], T], warnings: list[str]) -> Iterator[T]:
    files = sorted((folder / kind).glob("*.jsonl"))
    if not files and kind == "results":
        raise FileNotFoundError(
            f"{folder} is no run folder: it has no results/*.jsonl. Make one with `extratime evaluate RECIPE`, "
            "or name the folder that it printed"
        )
    for file in files:
        for number, record in _lines(file, warnings):
            try:
                yield parse(record)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{file}:{number}: not a record of {kind}: {error!r}") from error


def _lines(file: Path, warnings: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:  # covers bytes that are not UTF-8
                record = None
            if isinstance(record, dict):
                yield number, record
            else:
                warnings.append(f"{file.parent.name}/{file.name}, line {number}: torn, dropped")


PLAIN = [f.name for f in fields(Result) if f.name not in ("question", "score", "outcome", "error", "pool", "cost")]


def _result(record: dict[str, Any]) -> Result:
    score, outcome, error = _number(record["score"]), record["outcome"], str(record["error"])
    # Older runs may not mention what they had none of.
    read = {"judged": 0, "skipped": 0, "skipped_pairs": 0, **record["cost"]}
    if score is None and outcome != "failed":
        outcome, error = "failed", f"its score is {record['score']}, not a number"
    return Result(
        **{name: record[name] for name in PLAIN},
        question=sys.intern(str(record["question"])),
        score=score,
        outcome=outcome,
        error=error,
        pool=tuple((sys.intern(str(i)), _number(weight)) for i, weight in record["pool"]),
        cost=Cost(**{name: int(read[name]) for name in Cost._fields}),
    )


def _response(record: dict[str, Any]) -> Response:
    plain = {f.name: record[f.name] for f in fields(Response) if f.name != "score"}
    return Response(**plain, score=_number(record["score"]) or 0.0)


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    return None if value is None or not math.isfinite(value) else float(value)


def _first(records: Iterator[T], key: Callable[[T], Any], warnings: list[str]) -> dict[Any, T]:
    found: dict[Any, T] = {}
    differ = [record for record in records if found.setdefault(key(record), record) != record]
    if differ:
        first = " on ".join(key(differ[0])[1:]) if isinstance(key(differ[0]), tuple) else key(differ[0])
        warnings.append(f"{len(differ)} records are there twice and differ, first {first}: the first file counts")
    return found


def _missing(results: Sequence[Result]) -> tuple[tuple[str, str, str], ...]:
    have = {(r.task, r.cell, r.problem) for r in results}
    cells = sorted({r.cell for r in results})
    problems = dict.fromkeys((r.task, r.problem) for r in results)
    return tuple((t, c, p) for t, p in problems for c in cells if (t, c, p) not in have)


def _machine(folder: Path, warnings: list[str]) -> Machine:
    runs = [_account(file) for file in sorted(folder.glob("run-*.json"))]
    if not runs:
        warnings.append("run-*.json is missing: FLOPs and seconds are not told")
    if len({json.dumps(run.get("engine"), sort_keys=True) for run in runs}) > 1:
        warnings.append("the shards were drawn by different engines: their results should not be pooled")
    shapes = [run["shape"] for run in runs if run.get("shape")]
    counts = sum(map(_policy_counts, runs), Work())
    seconds = {k: sum(run.get("seconds", {}).get(k, 0.0) for run in runs) for k in ("prefill", "decode", "wall")}
    return Machine(
        tuple(dict.fromkeys(run["model"] for run in runs if run.get("model"))),
        tuple(dict.fromkeys(run["device"] for run in runs if run.get("device"))),
        Shape(**shapes[0]) if shapes else None,
        rates(counts, seconds) if counts.decode and seconds["decode"] else None,
        sum(count["decode"] for run in runs for count in run.get("counts", {}).values()),
        seconds["wall"],
        dict(runs[0].get("versions", {})) if runs else {},
    )


def _policy_counts(run: dict[str, Any]) -> Work:
    """What the policy's engine did, in whatever role: the seconds of an account are that engine's."""
    engines, counts = run.get("engine", {}), run.get("counts", {})
    roles = [role for role in counts if role == "policy" or engines.get(role) == engines.get("policy")]
    return sum((Work(**counts[role]) for role in roles if "policy" in counts), Work())


def _account(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON, run that shard again: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{file}: a mapping is expected, not {type(said).__name__}")
    return said
