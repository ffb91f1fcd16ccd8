"""Run folders for tests of the report: written by hand, to know every number, or drawn by strategies from a toy."""

import json
import time
from pathlib import Path

import yaml
from toy import ToyEngine, ended, told

from extratime.evaluate.cost import Ledger
from extratime.evaluate.grid import bind, columns, parse
from extratime.evaluate.harness import Bench, Scored
from extratime.evaluate.program import Problem
from extratime.evaluate.run import _account, _keep, _plain
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.streams import Streams
from extratime.evaluate.tasks.load import Reading
from extratime.models.engines.open import Opened

COST = dict.fromkeys(("generated", "prefill", "prefill_uncached", "pairs", "decode_pairs", "pairs_uncached"), 10)


def response(id, score=0.0, answer="0", **said):
    return {"id": id, "text": f"={answer}", "n_tokens": 4, "finish": "eos", "logprob": -0.5} | {
        "answer": answer,
        "score": float(score),
        **said,
    }


def result(problem, cell, score, pool=(), **said):
    """A record as a run writes it; `score` None is a failed cell, `cell` is label@budget#replicate."""
    label, _, rest = cell.partition("@")
    budget, _, replicate = rest.partition("#")
    task, _, number = problem.partition("/")
    fields = {"task": task, "doc_id": int(number), "problem": problem, "question": f"{problem}?", "gold": "1"}
    fields |= {"cell": cell, "strategy": label, "budget": int(budget), "replicate": int(replicate)}
    fields |= {"score": score, "metric": "exact_match", "error": "" if score is not None else "no route to host"}
    fields |= {"outcome": "failed" if score is None else "right" if score > 0 else "wrong"}
    fields |= {"response": f"{problem}-{score}", "answer": str(score), "why": "highest score"}
    fields |= {"pool": [list(pair) for pair in pool], "cost": COST | {"sequential": 10, "requests": 1}}
    return fields | said


def grid(**scores):
    """Results of task t from label → scores by document; a list of lists has replicates, "-" is missing."""
    found = []
    for label, given in scores.items():
        replicates = given if isinstance(given[0], list) else [given]
        for k, row in enumerate(replicates):
            name, _, budget = label.rpartition("_")
            cells = [(f"t/{i}", f"{name}@{budget}#{k}", score) for i, score in enumerate(row) if score != "-"]
            found += [result(problem, cell, score) for problem, cell, score in cells]
    return found


def write(folder, results, responses=(), shard="0-of-1", run=True) -> Path:
    """A run folder from records; responses that results name and nobody gives are made up."""
    known = {r["id"]: r for r in responses}
    for r in results:
        known.setdefault(r["response"], response(r["response"], r["score"] or 0, r["answer"]))
    for kind, records in (("results", results), ("responses", known.values())):
        file = Path(folder) / kind / f"{shard}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(r) + "\n" for r in records))
    if run:
        shape = {"parameters": 100, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 3, "dtype_bytes": 2}
        work = {"prefill": 50, "decode": 100, "cached": 0, "pairs": 0, "decode_pairs": 0}
        said = {"model": "toy", "engine": {"policy": "f"}, "shape": shape, "counts": {"policy": work}}
        said |= {"seconds": {"prefill": 1.0, "decode": 20.0, "wall": 30.0}, "device": "cpu", "versions": {}}
        (Path(folder) / f"run-{shard}.json").write_text(json.dumps(said))
    return Path(folder)


def steps(number: int, right: int):
    """A response in a few lines that ends in "=answer"; more often right the lower the number."""
    hit = 0.75 - 0.6 * (number % 10) / 10

    def law(text):
        lines = text.count("\n")
        if "=" in text:
            return {"": 1.0}
        if lines < 2:
            return {f"Let me add the tens, step {lines + 1}.\n": 0.7, "Wait, once more from the start.\n": 0.3}
        if text.endswith("\n"):
            return {"The sum is ": 0.95, "I cannot tell.": 0.05}
        if text.endswith("tell."):
            return {"": 1.0}
        return {f"={right}": hit, f"={right + 10}": (1 - hit) * 0.6, f"={right - 1}": (1 - hit) * 0.4}

    return law


def draw(folder, problems=12, tasks=("sums_easy", "sums_hard"), budgets=(1, 2, 4, 8), strategies=None, shard="0-of-1"):
    """A run folder that real strategies drew from a toy model, written by the code that writes real ones."""
    folder = Path(folder)
    strategies = strategies or [
        "greedy", "self_consistency", {"best_of_n": {"verify": "self_eval"}}, {"best_of_n": {"verify": "oracle"}},
        "best_of_n", "weighted_vote", {"particle_filter": {"verify": "self_eval"}}, "first_finish",
    ]  # fmt: skip
    raw = {"model": "toy/additions-1k", "tasks": list(tasks), "strategies": strategies, "budgets": list(budgets)}
    recipe = parse(raw | {"output": str(folder)})
    began, (i, n) = time.time(), map(int, shard.split("-of-"))
    asked = {f"{task}/{k}": (k + 3 * t, *_sum(k, t)) for t, task in enumerate(tasks) for k in range(problems)[i::n]}
    law = {question: told(steps(number, right)) for number, question, right in asked.values()}
    engine = ToyEngine(lambda prompt, text: law[prompt](prompt, text), slots=16, yes=_belief)
    grid, ledger = columns(recipe), Ledger()
    bound = [bind(column.spec, {"self_eval": [{"adapter": "self_eval"}]}) for column in grid]
    cells, places = [], []
    for name, (_, question, right) in asked.items():
        correct = lambda text, right=right: ended(text) == str(right)  # noqa: E731
        problem = Problem(name, engine.encode(question), ended, correct, 8, {"gold": right})
        for column, strategy in zip(grid, bound, strict=True):
            cells.append(Cell(f"{name}/{column.key}", problem, strategy, column.budget, replicate=column.replicate))
            places.append((name.partition("/")[0], int(name.partition("/")[2]), column, str(right)))
    streams = Streams(folder / "streams", shard)
    drawn = Schedule({"policy": engine, "verifier": engine}, streams, ledger).run(cells)
    streams.close()
    scored = []
    for (task, number, column, gold), done in zip(places, drawn, strict=True):
        score = float(ended(done.answer.response.text) == gold)
        scored.append(Scored(task, number, column, done, "exact_match", score, gold))
    reading = Reading("f", "exact_match", ended, lambda doc, text: float(ended(text) == str(doc["gold"])))
    readings = dict.fromkeys(tasks, reading)
    bench = Bench(recipe, grid, bound, {}, readings, {}, engine.encode)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(_plain(recipe), sort_keys=False))
    _keep(folder, shard, bench, scored)
    account = _account(recipe, Opened(engine, None, {}), ledger, began)
    (folder / f"run-{shard}.json").write_text(json.dumps(account))
    return folder


def _sum(k, t):
    a, b = 17 + 7 * k + 100 * t, 25 + 11 * k + 300 * t
    chat = f"<|im_start|>user\nWhat is {a} + {b}? Think step by step.<|im_end|>\n<|im_start|>assistant\n"
    return chat, a + b


def _belief(completion, adapter):
    """P(yes) of a toy verifier: knows a little."""
    text = completion.text
    noise = (hash_of(text) % 97) / 97
    return min(0.99, max(0.01, 0.35 * noise + 0.5 * ("Wait" not in text)))


def hash_of(text):
    return sum((i + 1) * ord(c) for i, c in enumerate(text))
