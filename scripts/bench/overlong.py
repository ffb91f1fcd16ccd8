"""What a filter of overlong responses does to reinforcement: under a cap below the median length, and above it.

    python scripts/bench/overlong.py [--folder runs/bench/mrt_rl] [--json FILE]

A response that the cap cuts off has no answer, so that its reward is 0; with the filter it is left out of the loss.
The policy is the small transformer of `mrt_rl.py`, whose folder this goes on from: its traces of signs differ much in
length. Arms take the same steps of the same problems; test traces may be longer than both caps.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from mrt import RECIPES, lines
from mrt_rl import warm_up
from steps import call, overrides
from table import paired, row, show

CAPS = {"short": 0.6, "long": 1.5}
"""As multiples of the median length of the policy's own traces."""
LONGEST = 144


def median(args):
    """Of the training traces' lengths, tokens."""
    return float(np.median([len(draw["logprobs"]) for draw in lines(args.folder / "rollouts/draws.jsonl")]))


def learn(args, cap, filtered, seed):
    output = args.folder / name(cap, filtered, seed)
    said = ["--config", RECIPES / "grpo/sums.yaml", "--model", args.folder / "warm_up", "--tasks", "signs"]
    said += ["--output_dir", output, "--seed", seed, "--max_completion_length", round(CAPS[cap] * median(args))]
    said += ["--mask_truncated_completions", filtered, "--max_steps", args.steps, "--save_steps", args.steps]
    said += ["--per_device_train_batch_size", 64, "--learning_rate", args.learning_rate, "--report_to", "none"]
    call("extratime.train.grpo", *said)


def name(cap, filtered, seed):
    return f"overlong/{cap}-{'filter' if filtered else 'plain'}-{seed}"


def tested(args, model):
    """Traces of test problems, by problem: (reward, tokens) of each."""
    output = args.folder / "overlong/test" / model
    sets = {"model": args.folder / model, "output": output, "limit": args.test, "max_tokens": LONGEST}
    sets["overrides.signs.test_split"] = "test"
    if not (output / "draws.jsonl").exists():
        call("extratime.train.rollouts", RECIPES / "rollouts/signs.yaml", *overrides(sets))
    found = defaultdict(list)
    for draw in lines(output / "draws.jsonl"):
        found[draw["problem"]].append((draw["reward"], len(draw["logprobs"])))
    return np.array([found[problem] for problem in sorted(found)])


def arm(args, cap, filtered):
    """Mean over seeds: reward and tokens by problem, shape (Q, 2)."""
    return np.mean([tested(args, name(cap, filtered, seed)).mean(axis=1) for seed in args.seeds], axis=0)


def cut(args, cap, filtered):
    """Share of training rollouts that the cap cuts off, in the first and the last ten steps."""
    told = []
    for seed in args.seeds:
        file = args.folder / name(cap, filtered, seed) / f"checkpoint-{args.steps}/trainer_state.json"
        log = [line for line in json.loads(file.read_text())["log_history"] if "reward" in line]
        ratios = [line["completions/clipped_ratio"] for line in log]
        told.append((np.mean(ratios[:10]), np.mean(ratios[-10:])))
    return np.mean(told, axis=0)


def rows(args):
    start = tested(args, "warm_up").mean(axis=1)
    yield row("before: accuracy", start[:, 0].mean(), note=f"{start[:, 1].mean():.1f} tokens")
    for cap, times in CAPS.items():
        arms = {filtered: arm(args, cap, filtered) for filtered in (True, False)}
        for filtered, own in arms.items():
            first, last = cut(args, cap, filtered)
            note = f"{own[:, 1].mean():.1f} tokens; cut off in training: {first:.2f} at first, {last:.2f} at last"
            said = f"cap of {round(times * median(args))}, {'filter' if filtered else 'no filter'}: accuracy"
            yield row(said, own[:, 0].mean(), note=note)
        on, off = arms[True], arms[False]
        more, less = (on, off) if cap == "short" else (off, on)
        gap, interval = paired(more[:, 0], less[:, 0])
        note = f"{interval}, p {gap.p:.4f}, {len(on)} problems"
        yield row(f"{cap} cap: {'on − off' if cap == 'short' else 'off − on'}", gap.value, "≥ 0", gap.value >= 0, note)
    yield row("long cap: tokens, off − on", (off - on)[:, 1].mean(), "< 0", (off - on)[:, 1].mean() < 0)


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/mrt_rl"))
    parser.add_argument("--warm_up", type=int, default=300, help="steps")
    parser.add_argument("--train", type=int, default=400, help="problems with four traces each, whose median counts")
    parser.add_argument("--steps", type=int, default=100, help="of GRPO, 8 problems × 8 rollouts each")
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--test", type=int, default=200, help="problems with four traces each")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    warm_up(args)
    for cap in CAPS:
        for filtered in (True, False):
            for seed in args.seeds:
                learn(args, cap, filtered, seed)
    show(list(rows(args)), args.json)


if __name__ == "__main__":
    main()
