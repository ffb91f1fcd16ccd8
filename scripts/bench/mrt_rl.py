"""MRT's acceptance experiment by reinforcement: branches from frozen prefixes beside outcome-only GRPO, on signs.

    python scripts/bench/mrt_rl.py --folder runs/bench/mrt [--json FILE]

Goes on from the warm-up and the traces of `scripts/bench/mrt.py` in the same folder. Both arms take the same number of
steps of as many rollouts of the same problems; they differ in alpha alone. Every step goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from mrt import RECIPES, Arm, budgets, prefixes, ratio, reach, rollouts
from steps import KEEP_MEMORY, call
from table import at_least, at_most, row, show

from extratime.evaluate import stats

ARMS = {"grpo": 0.0, "branches": 1.0}
"""With alpha, the weight of progress."""


def learn(args, name):
    f = args.folder
    said = ["--config", RECIPES / "mrt/signs.yaml", "--model", f / "warm_up", "--rollouts", f / "rollouts"]
    said += ["--output_dir", f / name, "--alpha", ARMS[name], "--max_steps", args.steps]
    said += ["--learning_rate", args.learning_rate, "--report_to", "none"]
    call("extratime.train.mrt", *said, **KEEP_MEMORY)


def test(args, name):
    model = args.folder / name
    rollouts(model, args.folder / "test" / name, args.test, "test")
    prefixes(args.folder / "test" / name, args.folder / "test" / name / "forced", traces=4 * args.curves)


def drawn(folder):
    """Tokens that an arm's training drew, by TRL's own count of completions' lengths."""
    state = json.loads(max(folder.glob("checkpoint-*/trainer_state.json"), key=step).read_text())
    logged = [line for line in state["log_history"] if "completions/mean_length" in line]
    return sum(line["completions/mean_length"] for line in logged) / len(logged)


def step(state):
    return int(state.parent.name.rpartition("-")[2])


def rows(args):
    arms = {name: Arm(args.folder / "test" / name) for name in ("warm_up", *ARMS)}
    grpo, mrt, rng = arms["grpo"], arms["branches"], np.random.default_rng(0)
    for name in ARMS:
        yield row(f"tokens of a rollout in training, {name}", drawn(args.folder / name))
    for name, arm in arms.items():
        note = f"{np.mean(arm.tokens()):.1f} tokens, nR {np.mean(arm.regret(budgets())):.3f}"
        yield row(f"accuracy of a whole trace, {name}", np.mean(arm.accuracy()), note=note)
    value, low, high = ratio(mrt.tokens(), grpo.tokens(), rng)
    yield at_most("mean tokens, MRT ÷ GRPO", value, 0.8, f"[{low:.3f}, {high:.3f}]")
    gap = stats.paired_difference(mrt.accuracy(), grpo.accuracy(), rng)
    yield at_least("accuracy, MRT − GRPO", gap.value, -0.02, f"[{gap.low:+.3f}, {gap.high:+.3f}], p {gap.p:.3f}")
    yield reach(mrt, grpo, "MRT ÷ GRPO")
    value, low, high = ratio(mrt.regret(budgets()), grpo.regret(budgets()), rng)
    yield at_most("normalised regret, MRT ÷ GRPO", value, 1.05, f"[{low:.3f}, {high:.3f}]; a win below 1")
    share = {name: np.divide(*np.mean(arm.redundant(), axis=0)) for name, arm in arms.items()}
    note = f"{share['branches']:.3f} against {share['grpo']:.3f}; warm-up {share['warm_up']:.3f}"
    yield at_most("attempts after a right one, MRT ÷ GRPO", share["branches"] / share["grpo"], 0.7, note)


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/mrt"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    parser.add_argument("--test", type=int, default=100, help="problems with four traces each")
    parser.add_argument("--curves", type=int, default=40, help="test problems whose traces get forced answers")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    for name in ARMS:
        learn(args, name)
        test(args, name)
    show(list(rows(args)), args.json)


if __name__ == "__main__":
    main()
