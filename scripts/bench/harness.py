"""What a grid costs on top of lm-eval, and whether greedy decoding is what lm-eval itself gets from the model.

    python scripts/bench/harness.py [--json FILE] [--documents 20] [--gsm8k FOLDER] [--equal 8] [--rounds 3]

Cost: 28 columns (7 strategies × 4 budgets) on `sums_easy`, replayed from their streams, so that no engine works,
against plain `lm_eval.simple_evaluate` on the same documents with `repeats: 28` and a model that answers a constant.
Both sides find and build the task, ask, filter, score and log; the plain one is given our task folder alone, which
saves it the seconds that lm-eval takes to read its own. Each side runs in fresh processes, by turns; a process warms
up and then tells its best of three, and the figures are medians over processes. The share of the adapter alone is that
of the same grid where every cell is answered at once by a constant, without strategies, streams and run folder.

Equality: the embedded model, greedy at budget 1 in float32 without a chat template, against the command
`lm_eval --model hf`, text for text. Where the length cuts a character in two, transformers writes U+FFFD in place of
its half and we leave it out. gsm8k_cot wants `train.jsonl` and `test.jsonl` in a folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from table import row, show

COLUMNS, LENGTH, REPEATS = 28, 64, 3
STRATEGIES = [
    "self_consistency",
    "best_of_n",
    "weighted_vote",
    "first_finish",
    "beam_search",
    "dvts",
    "particle_filter",
]


def run_plain(folder: Path, documents: int) -> Callable[[], Any]:
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    class Constant(LM):
        def generate_until(self, requests):
            return ["1+2=3"] * len(requests)

        loglikelihood = loglikelihood_rolling = generate_until

    tasks = Path(__file__).parents[2] / "evaluate" / "tasks"

    def work() -> None:
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        task = manager.load(["sums_easy"])["tasks"]["sums_easy"]
        task.set_config("repeats", COLUMNS)
        simple_evaluate(Constant(), tasks=[task], limit=documents, task_manager=manager, bootstrap_iters=0)

    return work


def run_adapter(folder: Path, documents: int) -> Callable[[], Any]:
    from extratime.evaluate.cost import Cost
    from extratime.evaluate.grid import columns
    from extratime.evaluate.harness import Bench, evaluate
    from extratime.evaluate.program import Answer
    from extratime.evaluate.schedule import Result
    from extratime.evaluate.tasks.load import load_tasks, reading
    from extratime.models.request import Completion, Prompt

    recipe = grid(folder, documents)
    said = Completion(Prompt(""), "1+2=3", 5)
    answer = Answer(said, (said,), (1.0,), "constant")

    def work() -> None:
        tasks = load_tasks(recipe)
        readings = {name: reading(task, recipe.reading(name), False) for name, task in tasks.items()}
        numbers = {"sums_easy": list(range(documents))}
        bench = Bench(recipe, columns(recipe), [run_adapter] * COLUMNS, tasks, readings, numbers, Prompt)
        evaluate(bench, lambda cells: [Result(cell, answer, Cost()) for cell in cells])

    return work


def run_replay(folder: Path, documents: int) -> Callable[[], Any]:
    from extratime.evaluate.run import run_recipe

    recipe = grid(folder, documents)
    return lambda: run_recipe(recipe, replay=True)


RUNS = {"plain": run_plain, "adapter": run_adapter, "replay": run_replay}


def grid(folder: Path, documents: int) -> Any:
    from extratime.evaluate.grid import parse

    return parse(
        {
            "model": str(folder / "model"),
            "tasks": ["sums_easy"],
            "strategies": STRATEGIES,
            "budgets": [1, 2, 4, 8],
            "max_tokens": 12,
            "limit": documents,
            "chat": False,
            "engine": {"dtype": "float32", "device": "cpu"},
            "output": str(folder / "grid"),
        }
    )


def draw(folder: Path, documents: int) -> None:
    """The run that is replayed: of a toy model."""
    from extratime.evaluate.run import run_recipe

    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    import tiny

    tiny.save(folder / "model")
    run_recipe(grid(folder, documents))


def measure(side: str, folder: str, documents: int) -> dict[str, float]:
    """The least seconds of a few runs in this process, after one that warms up, and their processor time."""
    logging.disable()
    work = RUNS[side](Path(folder), documents)
    runs = []
    for _ in range(1 + REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        runs.append({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
    return {key: min(run[key] for run in runs[1:]) for key in ("wall", "cpu")}


def costs(folder: Path, documents: int, rounds: int) -> Iterator[dict[str, Any]]:
    command = [sys.executable, __file__, "--one"]
    apart(*command, json.dumps(["draw", str(folder), documents]))
    seen: dict[str, list[dict[str, float]]] = {side: [] for side in RUNS}
    for i in range(rounds):
        for side in list(RUNS)[:: 1 if i % 2 == 0 else -1]:
            said = apart(*command, json.dumps([side, str(folder), documents]))
            seen[side].append(json.loads(said.splitlines()[-1]))
    said = {side: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for side, runs in seen.items()}
    plain = said["plain"]
    for side, name in (("plain", "plain lm-eval"), ("adapter", "constant answers"), ("replay", "replayed run")):
        note = f"CPU {said[side]['cpu']:.2f} s; {documents} documents × {COLUMNS} columns"
        yield row(f"{name}: seconds", said[side]["wall"], note=note)
    for side, name in (("adapter", "the adapter adds: seconds"), ("replay", "the whole replay adds: seconds")):
        more = {key: said[side][key] - plain[key] for key in plain}
        yield row(name, more["wall"], "< 1", more["wall"] < 1, f"CPU {more['cpu']:.2f} s")


def equality(folder: Path, task: str, data: str | None, documents: int) -> dict[str, Any]:
    """The share of documents whose greedy response is that of plain lm-eval."""
    from extratime.evaluate.grid import parse
    from extratime.evaluate.run import run_recipe
    from extratime.models.load import embedded_folder

    said = {
        "model": "embedded",
        "tasks": [task],
        "strategies": ["greedy"],
        "max_tokens": LENGTH,
        "limit": documents,
        "chat": False,
        "engine": {"dtype": "float32", "device": "cpu"},
        "output": str(folder / task),
    }
    run = run_recipe(parse(said | ({"data": {task: data}} if data else {})))
    texts = {line["id"]: line["text"] for line in lines(run / "responses")}
    ours = {line["doc_id"]: (clean(texts[line["response"]]), line["score"]) for line in lines(run / "results")}
    ours_tasks = Path(__file__).parents[2] / "evaluate" / "tasks"
    plain = plainly(embedded_folder(), task, run / "tasks" if data else ours_tasks, documents, folder / "plain" / task)
    same = sum(plain[i][0] == text for i, (text, _) in ours.items())
    scores = sum(plain[i][1] == score for i, (_, score) in ours.items())
    note = f"{same} of {documents} texts and {scores} scores alike; embedded, {LENGTH} tokens, float32"
    return row(f"greedy = plain lm-eval on {task}: share", same / documents, "all", same == documents, note)


def plainly(model: Path, task: str, folder: Path, documents: int, output: Path) -> dict[int, tuple[str, float]]:
    """Text and score of each document from `lm_eval --model hf`, under the task's first filter."""
    words = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"]
    words += ["--batch_size", "1", "--tasks", task, "--include_path", str(folder), "--limit", str(documents)]
    words += ["--gen_kwargs", f"max_gen_toks={LENGTH}", "--log_samples", "--output_path", str(output)]
    apart(sys.executable, "-m", "lm_eval", *words)
    (file,) = output.rglob(f"samples_{task}_*.jsonl")
    said = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    first = said[0]["filter"]
    return {s["doc_id"]: (clean(s["resps"][0][0]), s["exact_match"]) for s in said if s["filter"] == first}


def clean(text: str) -> str:
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("*.jsonl")):
        yield from map(json.loads, file.read_text(encoding="utf-8").splitlines())


def apart(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--documents", type=int, default=20, help="of the grid whose cost is measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--equal", type=int, default=8, help="documents compared with plain lm-eval; 0 for none")
    parser.add_argument("--gsm8k", type=Path, metavar="FOLDER", help="compare on gsm8k_cot, too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        side, *rest = json.loads(arguments.one)
        print(json.dumps(draw(Path(rest[0]), rest[1]) if side == "draw" else measure(side, *rest)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = list(costs(Path(folder), arguments.documents, arguments.rounds)) if arguments.rounds else []
        tasks = [("sums_easy", None), *([("gsm8k_cot", str(arguments.gsm8k))] if arguments.gsm8k else [])]
        rows += [equality(Path(folder), *task, arguments.equal) for task in tasks if arguments.equal]
    show(rows, arguments.json)


if __name__ == "__main__":
    main()
