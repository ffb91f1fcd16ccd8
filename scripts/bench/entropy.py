"""What the temperature of rollouts does to reinforcement: sharp, at the target entropy, and flat.

    python scripts/bench/entropy.py [--folder runs/bench/entropy] [--json FILE]

A transformer of 0.8 M parameters learns worked one-digit sums from scratch, half of the way. GRPO goes on from there
at three temperatures: those at which its rollouts have half of the target entropy, the target, and twice the target.
All arms take the same steps of the same problems. Every step goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from scratch import build
from steps import call, overrides
from table import at_least, at_most, paired, row, show
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from extratime.train import grpo, temperature

RECIPES = Path(__file__).parents[2] / "recipes"
TASK = "sums_easy"
LETTERS = "0123456789+-=\nSum: "
ARMS = {"low": 0.5, "target": 1.0, "high": 2.0}
"""With the entropy of rollouts, as a multiple of the target."""
LONGEST = 24


def warm_up(args):
    start = args.folder / "scratch"
    if not start.exists():
        build(start, LETTERS, 64)
    said = ["--config", RECIPES / "sft/sums.yaml", "--model", start, "--tasks", TASK, "--output_dir"]
    said += [args.folder / "warm_up", "--max_steps", args.warm_up, "--learning_rate", "2e-3", "--report_to", "none"]
    call("extratime.train.sft", *said, "--save_steps", args.warm_up, "--logging_steps", 50)


def controller(args):
    """How far fresh rollouts are from the entropies asked for."""
    model, tokenizer = opened(args.folder / "warm_up")
    problems = grpo.load_problems(grpo.Config(output_dir=".", model=str(args.folder / "warm_up"), tasks=[TASK]))
    prompts = [*temperature.encoded([row["prompt"] for row in problems.rows[:128]], tokenizer)]

    def draw(heat):
        return temperature.drawn_logits(model, tokenizer, prompts, heat, LONGEST)

    yield row("entropy of rollouts at temperature 1", temperature.mean_entropy(draw(1.0), 1.0))
    for target in args.targets:
        try:
            found = temperature.choose(draw, target)
        except ValueError as error:
            yield row(f"temperature for {target:g} nats", None, note=str(error))
        else:
            off = abs(found.entropy - target)
            yield at_most(f"|H − {target:g}| of fresh rollouts", off, 0.03, f"temperature {found.temperature:.3f}")


def opened(folder):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)


def learn(args, name, seed):
    said = ["--config", RECIPES / "grpo/sums.yaml", "--model", args.folder / "warm_up", "--tasks", TASK]
    said += ["--entropy", ARMS[name] * args.entropy, "--seed", seed, "--output_dir", args.folder / f"{name}-{seed}"]
    said += ["--max_steps", args.steps, "--learning_rate", args.learning_rate]
    said += [
        "--per_device_train_batch_size",
        64,
        "--max_completion_length",
        LONGEST,
        "--save_steps",
        args.steps,
        "--report_to",
        "none",
    ]
    call("extratime.train.grpo", *said)


def tested(args, name, seed, heat, draws):
    """Rewards of test problems [Q × draws] at a temperature."""
    output = args.folder / "test" / f"{name}-{seed} at {heat}"
    split = {TASK: {"test_split": "test"}}
    sets = {"model": args.folder / f"{name}-{seed}", "output": output, "tasks": [TASK], "overrides": split}
    sets |= {"limit": args.test, "budgets": [draws], "sampling": {"temperature": heat}}
    if not (output / "draws.jsonl").exists():
        call("extratime.train.rollouts", RECIPES / "rollouts/sums.yaml", *overrides(sets))
    found = defaultdict(list)
    for line in (output / "draws.jsonl").open():
        draw = json.loads(line)
        found[draw["problem"]].append(draw["reward"])
    return [found[problem] for problem in sorted(found)]


def log(args, name, seed):
    """What training logged, by step."""
    file = args.folder / f"{name}-{seed}/checkpoint-{args.steps}/trainer_state.json"
    return [line for line in json.loads(file.read_text())["log_history"] if "reward" in line]


def logged(args, name, key, steps):
    """Mean of a logged number over steps and seeds."""
    return float(np.mean([line[key] for seed in args.seeds for line in log(args, name, seed)[steps]]))


def chosen(args, name):
    """Temperature and entropy of an arm's rollouts at their start, means over seeds."""
    said = [json.loads((args.folder / f"{name}-{seed}/temperature.json").read_text()) for seed in args.seeds]
    return [float(np.mean([one[key] for one in said])) for key in ("temperature", "entropy")]


def pooled(args, name, heat, draws, of):
    """A number of each problem's draws, mean over seeds: shape (Q,)."""
    return np.mean([[of(x) for x in tested(args, name, seed, heat, draws)] for seed in args.seeds], axis=0)


def rows(args):
    right = {name: pooled(args, name, 0.6, 4, np.mean) for name in ARMS}
    passed = {name: pooled(args, name, 1.0, 8, max) for name in ARMS}
    for name in ARMS:
        heat, drawn = chosen(args, name)
        note = f"temperature {heat:.2f}, {drawn:.3f} nats; pass@8 at temperature 1: {passed[name].mean():.3f}"
        yield row(f"{name}: accuracy, avg@4 at temperature 0.6", right[name].mean(), note=note)
    best, worst = (pick(ARMS, key=lambda name: right[name].mean()) for pick in (max, min))
    yield at_least("target − best of the three", right["target"].mean() - right[best].mean(), -0.02, best)
    gap, interval = paired(right["target"], right[worst])
    note = f"{worst}; {interval}, p {gap.p:.4f}"
    yield at_least("target − worst of the three", gap.value, 0.03, note)
    end, start = slice(-10, None), slice(0, 10)
    for key, kind in (
        ("entropy", "entropy in the last 10 steps"),
        ("frac_reward_zero_std", "groups without a signal"),
    ):
        low, target = (logged(args, name, key, end) for name in ("low", "target"))
        holds = low < target if key == "entropy" else low > target
        yield row(f"low − target: {kind}", low - target, "< 0" if key == "entropy" else "> 0", holds, f"{target:.3f}")
    yield at_most("low − target: pass@8 at temperature 1", passed["low"].mean() - passed["target"].mean(), 0.0)
    early = [logged(args, name, "reward", start) for name in ("high", "target")]
    yield row("high − target: reward of the first 10 steps", early[0] - early[1], "< 0", early[0] < early[1])


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/entropy"))
    parser.add_argument("--warm_up", type=int, default=150, help="steps")
    parser.add_argument("--steps", type=int, default=120, help="of GRPO, 8 prompts × 8 rollouts each")
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--entropy", type=float, default=0.3, help="the target, nats")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.15, 0.3, 0.5], help="of the controller's rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--test", type=int, default=400, help="problems")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    warm_up(args)
    found = list(controller(args))
    show(found, args.json)
    for name in ARMS:
        for seed in args.seeds:
            learn(args, name, seed)
    show(found + list(rows(args)), args.json)


if __name__ == "__main__":
    main()
