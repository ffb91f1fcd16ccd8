"""The generative judge's acceptance experiment on the embedded model and held-out sums.

    python scripts/bench/judge.py [--folder runs/bench/judge] [--json FILE]

Pairs of worked solutions to one sum, one right and one wrong, drawn by the warmed-up policy: training problems to learn
from, test problems to measure on, both orders in. The judge learns from traces that a program writes (recompute, then
the verdict), then by reinforcement; its control learns from the same traces with verdicts given out by chance. Every
step goes on where it was. Rows are printed as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

from extratime.evaluate.tasks.sums import document
from extratime.models.judge import Judge
from extratime.models.manifest import write_text
from extratime.train.judge_data import make_pairs

TASKS = ["sums_easy", "sums_medium"]
RECIPES = Path(__file__).parents[2] / "recipes"
JUDGE = Judge(
    pointwise="{problem}\n{response}\nRight?",
    pairwise="{problem}\nA: {first}\nB: {second}\nBetter?",
    opener="\nSo:",
    form="pairwise",
    max_tokens=48,
    chat=False,
)
"""As in recipes/judge/sft-sums.yaml."""


KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Training steps are 1.4 times quicker on a CPU where freed memory is kept; evaluations are not."""


def call(*words, **environment):
    """A step of the experiment, as a user would run it."""
    print("$", *words, flush=True)
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True, env={**os.environ, **environment})


def overrides(sets):
    return [word for key, value in sets.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def rollouts(args):
    """Draws of training problems."""
    split = {task: {"test_split": "train"} for task in TASKS}
    sets = {"model": str(args.model), "tasks": TASKS, "overrides": split, "limit": args.train}
    sets["output"] = str(args.folder / "rollouts")
    call("extratime.train.rollouts", RECIPES / "rollouts/sums.yaml", *overrides(sets))


def solution(question):
    """The right steps of a sum such as "Sum: 3+4-5"."""
    expression = question.removeprefix("Sum: ")
    return document(re.sub(r"(?<=\d)([+-])", r" \1 ", expression))["solution"]


def traces(args, shuffled):
    """Prompt and completion rows: both forms, both orders; a share thinks twice, once from a wrong start.

    What is recomputed is right in the control as well: only its verdicts are given out by chance.
    """
    rng = random.Random(0)
    with open(args.folder / "rollouts/draws.jsonl") as lines:
        pairs = make_pairs(map(json.loads, lines), 2, rng)
    rows = []
    for pair in pairs:
        right, start = solution(pair.question), rng.choice([pair.wrong, pair.right])
        once, twice = f"\n{right}", f"\n{start}{JUDGE.cue}\n{right}"
        for form in ("pairwise", "pairwise", "pointwise"):
            prompt, label = pair.prompts(JUDGE, form)[len(rows) % 2]
            thought = twice if rng.random() < 0.2 else once
            label = rng.randrange(2) if shuffled else label
            rows.append({"prompt": prompt, "completion": thought + JUDGE.opener + JUDGE.verdicts(form)[label]})
    rng.shuffle(rows)
    return rows


def sft(args, name, shuffled=False):
    data = args.folder / f"{name}.jsonl"
    write_text(data, "".join(json.dumps(row) + "\n" for row in traces(args, shuffled)))
    out = ["--model", args.model, "--data", data, "--output_dir", args.folder / name]
    call("extratime.train.judge_sft", "--config", RECIPES / "judge/sft-sums.yaml", *out, **KEEP_MEMORY)


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/judge"))
    parser.add_argument("--model", type=Path, default=Path("runs/sums/sft"), help="the warmed-up policy")
    parser.add_argument("--train", type=int, default=500, help="training problems of each task")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    sft(args, "sft")
    sft(args, "control", shuffled=True)


if __name__ == "__main__":
    main()
