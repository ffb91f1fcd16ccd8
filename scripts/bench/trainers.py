"""What our trainers add to the time of a step of the libraries' trainers that they go over, on the same shapes.

    python scripts/bench/trainers.py [--rounds 12] [--steps 6] [--json FILE]

A small random model; the two trainers take turns, a few steps each, and the first step of a turn does not count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import trl
from datasets import Dataset
from table import at_most, show
from transformers import TrainerCallback

from extratime.train import grpo, mrt
from extratime.train.guard import guarded

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import tiny

ROWS = [{"prompt": f"{i}+{i}=", "prefix": "", "problem": i} for i in range(64)]
PAIRS = {
    "GRPO under guard ÷ TRL's": guarded(grpo.GRPOTrainer),
    "MRT under guard, alpha = 0 ÷ TRL's GRPO": guarded(mrt.MRTTrainer),
}


class Clock(TrainerCallback):
    """Seconds of each step: rollouts, forward, backward and update."""

    def __init__(self):
        self.seconds, self.began = [], 0.0

    def on_step_begin(self, *_, **__):
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.perf_counter() - self.began)


def reward(completions, **_):
    return [float(len(set(text))) for text in completions]


def turn(kind, args, folder):
    """Seconds of the steps of one turn, but for the first."""
    settings = mrt.Config(
        output_dir=folder,
        end="!",
        form="episodes",
        alpha=0.0,
        num_generations=8,
        per_device_train_batch_size=16,
        max_completion_length=32,
        max_steps=args.steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
        use_cpu=True,
    )
    clock = Clock()
    model = tiny.model(hidden=128, layers=4, eos=False)
    parts = {"model": model, "processing_class": tiny.tokenizer(), "reward_funcs": reward}
    kind(args=settings, train_dataset=Dataset.from_list(ROWS), callbacks=[clock], **parts).train()
    return clock.seconds[1:]


def compare(name, kind, args, folder):
    told = {trl.GRPOTrainer: [], kind: []}
    for i in range(args.rounds):
        for one in sorted(told, key=lambda each: (each is kind) == bool(i % 2)):
            told[one].append(np.median(turn(one, args, folder)))
    base, ours = (np.asarray(times) for times in told.values())
    rng = np.random.default_rng(0)
    draws = np.median((ours / base)[rng.integers(0, len(base), (4000, len(base)))], axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    note = f"[{low:.3f}, {high:.3f}]; {1000 * np.median(base):.0f} ms a step, {args.rounds} turns each"
    return at_most(name, float(np.median(ours / base)), 1.05, note)


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        show([compare(name, kind, args, folder) for name, kind in PAIRS.items()], args.json)


if __name__ == "__main__":
    main()
