"""What a temperature network does to a task: held-out sums, against a constant temperature of the same mean entropy.

    python scripts/bench/tempnet_task.py --network runs/sums/tempnet [--folder runs/bench/tempnet_task] [--json FILE]

The constant is the one at which worked validation sums have the mean next-token entropy that the network gives them.
Both then answer the same test problems, in several replicates of eight draws. Each step goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from table import paired, row, show
from transformers import DataCollatorForSeq2Seq

from extratime.evaluate.grid import Recipe
from extratime.evaluate.statistics.at_k import pass_at_k
from extratime.evaluate.tasks.load import load_tasks
from extratime.models import manifest, tempnet
from extratime.models.load import load
from extratime.train import temperature
from extratime.train.tempnet import positions, tokens

TASKS = ["sums_easy", "sums_medium", "sums_hard"]
DRAWS = 8


@torch.no_grad()
def constant(args, said):
    """The matched constant temperature, and the mean entropy of both."""
    loaded = load(said.base, dtype=torch.float32)
    batch = [tokens(each, loaded.tokenizer, None) for each in worked(args, said)]
    logits, _ = positions(loaded.model, DataCollatorForSeq2Seq(loaded.tokenizer)(batch))
    tau = tempnet.load(said.temperatures, args.network)(logits)
    target = tempnet.entropy(logits, tau).mean().item()
    return temperature.solve(logits, target), target, tau


def worked(args, said):
    """Prompts and worked solutions of validation problems."""
    splits = {task: {"training_split": "validation"} for task in TASKS}
    for task in load_tasks(Recipe(said.base, tuple(TASKS), (), args.folder, overrides=splits)).values():
        for document in itertools.islice(task.training_docs(), 40):
            yield {"prompt": task.doc_to_text(document), "completion": document["solution"]}


def evaluate(args, name, model, heat):
    """Draw and vote; scores by problem: of draws [replicates × 8] and of votes [replicates]."""
    folder = args.folder / name
    recipe = {
        "model": str(model),
        "tasks": TASKS,
        "limit": args.limit,
        "chat": False,
        "budgets": [DRAWS],
        "replicates": args.replicates,
        "sampling": {"temperature": heat},
        "engine": {"slots": 96},
        "strategies": ["self_consistency"],
        "output": str(folder),
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / f"{name}.yaml"
    file.write_text(json.dumps(recipe))
    subprocess.run([sys.executable, "-m", "extratime.evaluate.cli", "evaluate", file, "--no-report"], check=True)
    scored = {line["id"]: line["score"] for line in lines(folder, "responses")}
    draws, votes = defaultdict(list), defaultdict(list)
    for line in lines(folder, "results"):
        draws[line["problem"]] += [scored[each] or 0.0 for each, _ in line["pool"]]
        votes[line["problem"]].append(line["score"] or 0.0)
    names = sorted(draws)
    return [draws[each] for each in names], [votes[each] for each in names]


def lines(folder, kind):
    return [json.loads(line) for file in sorted((folder / kind).glob("*.jsonl")) for line in file.open()]


def compare(name, ours, theirs):
    found, interval = paired(ours, theirs)
    values = f"{np.mean([np.mean(x) for x in ours]):.3f} against {np.mean([np.mean(x) for x in theirs]):.3f}"
    return row(name, found.value, note=f"{interval}, {values}")


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", type=Path, required=True, help="folder of the temperature network")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/tempnet_task"))
    parser.add_argument("--limit", type=int, default=70, help="problems of each task")
    parser.add_argument("--replicates", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    said = manifest.read(args.network)
    heat, target, tau = constant(args, said)
    note = f"mean entropy {target:.3f} nats; τ {tau.mean():.2f} ± {tau.std():.2f} from the network"
    rows = [row("constant temperature of the same mean entropy", heat, note=note)]
    ours, votes = evaluate(args, "network", args.network, 1.0)
    theirs, their_votes = evaluate(args, "constant", said.base, round(heat, 4))
    rows.append(compare("accuracy of a draw, network − constant", ours, theirs))
    for k in (2, 4, 8):
        sides = [[pass_at_k(len(x), round(sum(x)), k) for x in side] for side in (ours, theirs)]
        rows.append(compare(f"pass@{k}, network − constant", *sides))
    rows.append(compare(f"self-consistency@{DRAWS}, network − constant", votes, their_votes))
    show(rows, args.json)


if __name__ == "__main__":
    main()
