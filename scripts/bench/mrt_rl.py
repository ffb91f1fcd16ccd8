"""MRT's acceptance experiment by reinforcement: branches from frozen prefixes beside outcome-only GRPO, on signs.

    python scripts/bench/mrt_rl.py [--folder runs/bench/mrt_rl] [--json FILE]

A transformer of 0.8 M parameters, one character a token, learns traces of attempts from scratch; branches begin in its
own traces. Both arms take as many steps of as many rollouts, in two seeds each; they differ in alpha alone.
Every step goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from mrt import RECIPES, Arm, accuracies, beside, prefixes, rollouts
from scratch import build
from steps import call
from table import row, show

ARMS = {"grpo": 0.0, "branches": 1.0}
"""With alpha, the weight of progress."""


LETTERS = "0123456789+-= \nSigns:Wait,Answeryo"
LONGEST = 144


def warm_up(args):
    f = args.folder
    if not (f / "scratch").exists():
        build(f / "scratch", LETTERS, 256)
    said = ["--config", RECIPES / "sft/signs.yaml", "--model", f / "scratch", "--output_dir", f / "warm_up"]
    said += ["--max_steps", args.warm_up, "--per_device_train_batch_size", 48, "--learning_rate", "2e-3"]
    call("extratime.train.sft", *said, "--save_steps", args.warm_up, "--logging_steps", 50, "--report_to", "none")
    rollouts(f / "warm_up", f / "rollouts", args.train, "train")


def learn(args, name, seed):
    f = args.folder
    said = ["--config", RECIPES / "mrt/signs.yaml", "--model", f / "warm_up", "--rollouts", f / "rollouts"]
    said += ["--output_dir", f / f"{name}-{seed}", "--alpha", ARMS[name], "--seed", seed, "--max_steps", args.steps]
    said += ["--per_device_train_batch_size", 64, "--learning_rate", args.learning_rate, "--save_steps", args.steps]
    call("extratime.train.mrt", *said, "--max_completion_length", LONGEST, "--report_to", "none")


def test(args, name):
    """Traces of test problems, and forced answers on those of the first few."""
    rollouts(args.folder / name, args.folder / "test" / name, args.test, "test")
    prefixes(args.folder / "test" / name, args.folder / "test" / name / "forced", traces=4 * args.curves)


def drawn(args, name):
    """Mean length of a rollout in training, in tokens, by TRL's count."""
    logs = [args.folder / f"{name}-{seed}/checkpoint-{args.steps}/trainer_state.json" for seed in args.seeds]
    lines = [line for log in logs for line in json.loads(log.read_text())["log_history"]]
    return float(np.mean([line["completions/mean_length"] for line in lines if "completions/mean_length" in line]))


class Seeds:
    """Arms of the same kind, by problem: means over seeds."""

    def __init__(self, arms):
        self.arms = arms

    def __getattr__(self, name):
        return lambda *given: np.mean([getattr(arm, name)(*given) for arm in self.arms], axis=0)


def rows(args):
    arms = {name: Seeds([Arm(args.folder / "test" / f"{name}-{s}") for s in args.seeds]) for name in ARMS}
    start = Arm(args.folder / "test/warm_up")
    for name in ARMS:
        yield row(f"tokens of a rollout in training, {name}", drawn(args, name))
    yield from accuracies({"warm_up": start, **arms}, LONGEST)
    yield from beside("MRT ÷ GRPO", arms["branches"], arms["grpo"], start, LONGEST, np.random.default_rng(0))


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/mrt_rl"))
    parser.add_argument("--warm_up", type=int, default=300, help="steps")
    parser.add_argument("--train", type=int, default=400, help="problems with four traces each")
    parser.add_argument("--steps", type=int, default=150, help="of 64 rollouts")
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--test", type=int, default=200, help="problems with four traces each")
    parser.add_argument("--curves", type=int, default=100, help="test problems whose traces get forced answers")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    warm_up(args)
    test(args, "warm_up")
    for name in (f"{arm}-{seed}" for arm in ARMS for seed in args.seeds):
        learn(args, *name.split("-"))
        test(args, name)
    show(list(rows(args)), args.json)


if __name__ == "__main__":
    main()
