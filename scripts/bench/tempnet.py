"""TempNet's acceptance experiment on the embedded model's own logits of worked sums.

    python scripts/bench/tempnet.py [--model embedded] [--json FILE]

Logits of the completions' positions are read once and restricted to the likeliest tokens. The network learns from two
thirds of the problems and is weighed on the others, beside the exact solver, the best constant temperature, and itself
fed with the logits of another position; in the published form, and with the scale of the logits kept. Intervals
resample problems. iSogCLR gives positions temperatures of their own without a network, and unseen positions none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from table import at_least, at_most, row, show
from tqdm import tqdm, trange
from transformers import DataCollatorForSeq2Seq

from extratime.evaluate.statistics.questions import clustered_ci
from extratime.models.load import load
from extratime.models.tempnet import Temperatures, TempNet, best_constant, entropy, loss, solve
from extratime.train import sft, tempnet
from extratime.train.isogclr import individual

TASKS = ["sums_easy", "sums_medium", "sums_hard"]


def cached(args):
    """Logits [N, K], labels [N], problems [N] of training and of held-out positions, over the K likeliest tokens."""
    loaded = load(args.model, dtype=torch.float32)
    settings = sft.Config(output_dir=".", model=args.model, tasks=TASKS, problems=args.problems, report_to="none")
    rows = [tempnet.tokens(each, loaded.tokenizer, None) for each in sft.rows(settings)]
    collate = DataCollatorForSeq2Seq(loaded.tokenizer)
    batches = [collate(rows[begin : begin + 32]) for begin in range(0, len(rows), 32)]
    kept = likeliest(loaded.model, batches, args.vocabulary)
    found = []
    for number, batch in enumerate(tqdm(batches, desc="logits")):
        logits, labels = tempnet.positions(loaded.model, batch)
        problems = (batch["labels"][:, 1:] != -100).nonzero()[:, 0] + 32 * number
        found.append((logits[:, kept], torch.searchsorted(kept, labels), problems))
    parts = [[each for i, each in enumerate(found) if (i % 3 == 2) == held] for held in (False, True)]
    return [tuple(torch.cat(column) for column in zip(*part, strict=True)) for part in parts]


def likeliest(policy, batches, count):
    """The tokens, sorted, that are most probable on every tenth batch, all labels among them."""
    mass = sum(tempnet.positions(policy, batch)[0].softmax(-1).sum(0) for batch in batches[::10])
    labels = torch.cat([batch["labels"].flatten() for batch in batches])
    mass[labels[labels != -100].unique()] = torch.inf
    return mass.topk(count).indices.sort().values


def train(args, said, logits, labels):
    torch.manual_seed(0)
    net = TempNet(said, logits.shape[1])
    net.settle(logits[:4096])
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, args.steps)
    for _ in trange(args.steps, desc="steps"):
        at = torch.randint(len(logits), (512,))
        optimiser.zero_grad()
        loss(logits[at], labels[at], net(logits[at]), said.entropy).mean().backward()
        optimiser.step()
        decay.step()
    return net.eval()


def gradient(said, logits, labels):
    """The largest error of dℓ/dτ = H − T_H, and the largest change of the network's gradient with other labels."""
    tau = torch.empty(256).uniform_(0.3, 2).requires_grad_()
    (slope,) = torch.autograd.grad(loss(logits[:256], labels[:256], tau, said.entropy).sum(), tau)
    error = (slope - (entropy(logits[:256], tau.detach()) - said.entropy)).abs().max().item()
    net = TempNet(said, logits.shape[1]).eval()
    slopes = []
    for told in (labels[:256], labels[:256].roll(1)):
        net.zero_grad()
        loss(logits[:256], told, net(logits[:256]), said.entropy).mean().backward()
        slopes.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    yield at_most("largest error of dℓ/dτ = H − T_H", error, 1e-4, "float32")
    moved = (slopes[0] - slopes[1]).abs().max().item()
    yield at_most("largest change of the gradient with other labels", moved, 1e-5)


def gap(said, logits, labels, constant):
    """The share of the gap from the best constant to the exact solver that temperatures close."""

    def mean(at):
        return loss(logits, labels, at.float(), said.entropy).mean().item()

    ends = mean(torch.full((len(labels),), constant)), mean(solve(logits, said))
    return lambda at: (ends[0] - mean(at)) / (ends[0] - ends[1])


@torch.no_grad()
def held_out(said, net, logits, labels, problems):
    best, oracle, tau = best_constant(logits, said), solve(logits, said), net(logits)
    constant, closed = torch.full_like(tau, best), gap(said, logits, labels, best)
    note = f"{len(tau)} positions, K = {logits.shape[1]}, T_H = {said.entropy}, best constant {best:.3f}"
    yield at_least("share of the gap to the exact solver closed", closed(tau), 0.6, note)
    yield at_least("Spearman of τ and the solver's", spearmanr(tau, oracle).statistic, 0.8)
    yield at_least("standard deviation of τ", tau.std().item(), 0.1)
    far = (entropy(logits, 1.0) - said.entropy).abs() > 0.5
    agree = ((tau > 1) == (entropy(logits, 1.0) < said.entropy))[far].float().mean().item()
    yield at_least("sign of τ − 1 where H is over 0.5 nat off", agree, 0.9, f"{far.float().mean():.0%} of positions")
    wrong = net(logits.roll(len(logits) // 2, 0))
    yield row("control: logits of another position, gap closed", closed(wrong), "< 0.1", closed(wrong) < 0.1)
    inner = (oracle > said.low * 1.01) & (oracle < said.high * 0.99)
    ours, theirs = ((entropy(logits, at) - said.entropy).abs()[inner].mean().item() for at in (tau, constant))
    yield at_most(
        "mean |H − T_H| of positions within the bounds", ours, 0.25, f"{inner.float().mean():.0%} of positions"
    )
    yield at_most("the same ÷ with the best constant", ours / theirs, 0.5, f"{theirs:.3f} with it")
    measures = {
        "|H − T_H|": lambda at: (entropy(logits, at) - said.entropy).abs(),
        "ℓ": lambda at: loss(logits, labels, at, said.entropy),
    }
    for name, measure in measures.items():
        for words, at, wanted in (("", tau, True), ("control, logits of another position: ", wrong, False)):
            yield gain(f"{words}{name}, best constant − network", measure(constant) - measure(at), problems, wanted)


def gain(name, values, problems, wanted):
    """A mean over problems with its 95 % interval, which is to lie above 0 or not to."""
    sums, counts = torch.zeros(2, int(problems.max()) + 1).double()
    sums.index_add_(0, problems, values.double())
    counts.index_add_(0, problems, torch.ones(len(problems)).double())
    means = (sums / counts)[counts > 0].numpy()
    found = clustered_ci(means, np.random.default_rng(0))
    note = f"[{found.low:+.3f}, {found.high:+.3f}] over {len(means)} problems"
    bar = "interval > 0" if wanted else "interval not > 0"
    return row(name, found.value, bar, (found.low > 0) == wanted, note)


@torch.no_grad()
def without_network(said, net, seen, held):
    """What iSogCLR's temperatures give on the positions that it has seen, and what is left of them on others."""
    logits, labels = (each[:4096] for each in seen[:2])
    tau = individual(logits, said, passes=300)
    closed = gap(said, logits, labels, best_constant(logits, said))
    yield at_least("iSogCLR: gap closed on positions it has seen", closed(tau), 0.9, f"{len(tau)} positions")
    yield row("the network: gap closed on the same positions", closed(net(logits)))
    best = best_constant(held[0], said)
    left = gap(said, *held[:2], best)(torch.full((len(held[1]),), tau.mean().item()))
    note = f"none is its own: all get the mean of what it learned, {tau.mean():.3f}; best constant {best:.3f}"
    yield row("iSogCLR: gap closed on held-out positions", left, "< 0.1", left < 0.1, note)


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--problems", type=int, default=1000, help="of each of the three tasks")
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--entropy", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    seen, held = cached(args)
    logits, labels, _ = seen
    rows = list(gradient(Temperatures(entropy=args.entropy), logits, labels))
    for normalise in (True, False):
        said = Temperatures(entropy=args.entropy, normalise=normalise)
        net = train(args, said, logits, labels)
        form = "as published" if normalise else "scale kept"
        rows += [each | {"name": f"{form}: {each['name']}"} for each in held_out(said, net, *held)]
    rows += without_network(said, net, seen, held)
    show(rows, args.json)


if __name__ == "__main__":
    main()
