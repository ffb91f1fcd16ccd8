"""Learning-rate schedules on a transformer from scratch: the annealing law's predictions, and the refined schedule.

    python scripts/bench/schedules.py [--data sums] [--folder runs/bench/schedules] [--json FILE]

A model of 0.2 M parameters reads, character by character, lines of sums drawn afresh for every step, or windows of
Python's own library, none twice. Within a seed all schedules see the same characters from the same weights and peak.
The law is fitted to held-out losses along the constant and the cosine run of a seed and weighed on schedules that it
has not seen. The refined schedule follows the gradient norms of the linear run; since the peak is a setting of its
own, both are run at twice the peak, too. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from table import at_most, row, show
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from extratime.evaluate.statistics.annealing import Curve, fit, schedule
from extratime.train.refinement import multipliers, norms_of, smooth

LETTERS = "0123456789+-*=\n"
LENGTH = 64
WSD = "constant, then linear over 20 %"
TWICE = "{}, twice the peak"


@dataclass
class Outcome:
    """What a run left: its log, L1 norms of its gradients, and the held-out loss at its end."""

    curve: Curve
    norms: np.ndarray
    final: float


def sums(rng):
    """Batches of token ids of lines such as 37+85=122."""

    def batch(count):
        text = []
        while len(text) < count * (LENGTH + 1):
            a, b, sign = rng.integers(100), rng.integers(100), rng.integers(3)
            text += f"{a}{'+-*'[sign]}{b}={(a + b, a - b, a * b)[sign]}\n"
        ids = [LETTERS.index(letter) for letter in text[: count * (LENGTH + 1)]]
        return torch.tensor(ids).view(count, LENGTH + 1)

    return batch


def text(rng):
    """Batches of ASCII codes of windows of Python's library, in a random order."""
    windows = library()
    order = iter(rng.permutation(len(windows)))
    return lambda count: torch.from_numpy(windows[list(itertools.islice(order, count))]).long()


@functools.cache
def library():
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    codes = np.frombuffer(b"".join(file.read_bytes() for file in files), dtype=np.uint8)
    codes = codes[codes < 128]
    return codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)


DATA = {"sums": sums, "text": text}


def build(seed):
    torch.manual_seed(seed)
    shape = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=128, max_position_embeddings=LENGTH, **shape))


def nll(model, ids):
    logits = model(ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def kept(args, name, rates, seed, held):
    """The outcome of a run, trained unless the folder has it."""
    file = args.folder / f"{args.data}, seed {seed}, {name}.npz"
    if file.is_file() and np.array_equal((told := np.load(file))["rates"], rates):
        return Outcome(Curve(rates, told["at"], told["losses"]), told["norms"], float(told["losses"][-1]))
    made = train(args, rates, seed, held)
    args.folder.mkdir(parents=True, exist_ok=True)
    np.savez(file, rates=rates, at=made.curve.at, losses=made.curve.losses, norms=made.norms)
    return made


def train(args, rates, seed, held):
    model, batch = build(seed), DATA[args.data](np.random.default_rng(seed))
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(0.9, 0.95))
    at, losses, norms = [], [], []
    for step, rate in enumerate(rates):
        optimiser.zero_grad()
        nll(model, batch(args.batch)).backward()
        norms.append(norms_of(model.parameters())[0])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        if (step + 1) % args.every == 0 or step + 1 == len(rates):
            at.append(step)
            with torch.no_grad():
                losses.append(nll(model, held).item())
    return Outcome(Curve(rates, np.array(at), np.array(losses)), np.array(norms), losses[-1])


def schedules(args):
    warm = args.steps // 20
    made = {shape: schedule(shape, args.steps, args.peak, warm) for shape in ("constant", "cosine", "linear", WSD)}
    made["cosine of half the length"] = schedule("cosine", args.steps // 2, args.peak, warm)
    made["drop to a tenth at 60 %"] = np.where(np.arange(args.steps) < 0.6 * args.steps, 1, 0.1) * made["constant"]
    return made


def runs(args):
    for seed in range(args.seeds):
        # The last windows of the seed's order: no run comes that far.
        held = DATA[args.data](np.random.default_rng(seed))(20_000)[-128:]
        found = {}
        for name, rates in tqdm(schedules(args).items(), desc=f"seed {seed}"):
            found[name] = kept(args, name, rates, seed, held)
        refined = args.peak * multipliers(found["linear"].norms, -1)
        more = {"refined": refined, TWICE.format("refined"): 2 * refined}
        more[TWICE.format("linear")] = 2 * found["linear"].curve.rates
        found |= {name: kept(args, name, rates, seed, held) for name, rates in more.items()}
        yield found


def law(args, found):
    """How far the law and two baselines are off on the schedules of each seed that they were not fitted to."""
    # The law knows one peak and one warm-up, and the refined schedule has a warm-up of its own.
    found = [{name: one[name] for name in schedules(args)} for one in found]
    off = {"law": [], "C = 0": [], "mean": []}
    ends = {}
    for one in found:
        known = [one[name].curve for name in ("constant", "cosine")]
        full, flat = fit(known), fit(known, annealing=False)
        mean = (known[0].losses + known[1].losses) / 2
        for name in one:
            ends.setdefault(name, []).append(full(one[name].curve.rates)[-1])
            if name in ("constant", "cosine"):
                continue
            curve = one[name].curve
            late = curve.at > 0.15 * len(curve.rates)
            off["law"].append(full.error(curve))
            off["C = 0"].append(flat.error(curve))
            off["mean"].append(np.mean(np.abs(mean[: len(late)] / curve.losses - 1)[late]))
    said = f"{full}"
    errors = {name: float(np.mean(values)) for name, values in off.items()}
    yield at_most("law: mean relative error on unseen schedules", errors["law"], 0.015, f"last seed: {said}")
    for name, words in (("C = 0", "the law without annealing"), ("mean", "the mean of the two curves")):
        yield at_most(
            f"law: error ÷ that of {words}", errors["law"] / errors[name], 0.5, f"{errors[name]:.4f} with it"
        )
    yield order(found, ends)


def order(found, ends):
    right, wrong = 0, []
    for a, b in itertools.combinations(found[0], 2):
        gap = np.array([one[a].final - one[b].final for one in found])
        if abs(gap.mean()) > 2 * standard_error(gap):
            agrees = gap.mean() * np.mean(np.subtract(ends[a], ends[b])) > 0
            right, wrong = right + agrees, wrong + [f"{a} and {b}"] * (not agrees)
    name, pairs = "law: final losses over 2 SE apart that it ranks rightly", right + len(wrong)
    if not pairs:
        return row(name, None, "all", note="none are, or there is one seed")
    return row(name, right / pairs, "all", not wrong, f"{pairs} pairs; wrong: {'; '.join(wrong) or 'none'}")


def refinement(args, found):
    """Final held-out losses by schedule, paired by seed."""
    final = {name: np.array([one[name].final for one in found]) for name in found[0]}
    for name in ("constant", "cosine", "linear", "refined", TWICE.format("linear"), TWICE.format("refined")):
        yield row(
            f"held-out loss at the end: {name}", final[name].mean(), note=f"SE {standard_error(final[name]):.4f}"
        )
    yield gap("constant − linear", final["constant"] - final["linear"], "≥", 2)
    yield gap("refined − linear, same peak", final["refined"] - final["linear"], "≤", 0.5)
    best = {name: np.minimum(final[name], final[TWICE.format(name)]) for name in ("linear", "refined")}
    yield gap("refined − linear, each at its better peak", best["refined"] - best["linear"], "≤", 0.5)
    for seed, one in enumerate(found):
        norms = smooth(one["linear"].norms, 0.1)
        large = norms[0] > 1.5 * np.median(norms)
        peak = multipliers(one["linear"].norms, -1).argmax() / args.steps
        note = f"L1 norm at first ÷ median {norms[0] / np.median(norms):.2f}"
        yield row(
            f"refined schedule's peak, share of the run, seed {seed}",
            peak,
            "> 0.02 if large",
            not large or peak > 0.02,
            note,
        )


def standard_error(values):
    return values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan


def gap(name, values, side, bar):
    """A mean difference over seeds, and whether it is on the right side of `bar` standard errors."""
    error = standard_error(values)
    if np.isnan(error):
        return row(name, values.mean(), f"{side} {bar} SE", note="one seed")
    holds = values.mean() >= bar * error if side == "≥" else values.mean() <= bar * error
    return row(name, values.mean(), f"{side} {bar} SE", holds, f"SE {error:.4f}")


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", choices=DATA, default="sums")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak", type=float, default=3e-3)
    parser.add_argument("--every", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/schedules"))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    found = list(runs(args))
    show([*law(args, found), *refinement(args, found)], args.json)


if __name__ == "__main__":
    main()
