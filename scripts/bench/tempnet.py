"""TempNet's acceptance experiment on the embedded model's own logits of worked sums.

    python scripts/bench/tempnet.py [--model embedded] [--json FILE]

Logits of the completions' positions are read once and restricted to the likeliest tokens. The network learns from two
thirds of the problems and is weighed on the others, beside the exact solver, the best constant temperature, and itself
fed with the logits of another position.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from scipy.stats import spearmanr
from table import at_least, at_most, row, show
from tqdm import trange
from transformers import DataCollatorForSeq2Seq

from extratime.models.load import load
from extratime.models.tempnet import Temperatures, TempNet, best_constant, entropy, loss, solve
from extratime.train import sft, tempnet

TASKS = ["sums_easy", "sums_medium", "sums_hard"]


def cached(args):
    """Logits [N, K] and labels [N] of training and of held-out positions, over the K likeliest tokens."""
    loaded = load(args.model, dtype=torch.float32)
    settings = sft.Config(output_dir=".", model=args.model, tasks=TASKS, problems=args.problems, report_to="none")
    rows = [tempnet.tokens(each, loaded.tokenizer, None) for each in sft.rows(settings)]
    found, collate = [], DataCollatorForSeq2Seq(loaded.tokenizer)
    for begin in trange(0, len(rows), 32, desc="logits"):
        found.append(tempnet.positions(loaded.model, collate(rows[begin : begin + 32])))
    mass = sum(logits.softmax(-1).sum(0) for logits, _ in found)
    mass.index_add_(0, torch.cat([labels for _, labels in found]), torch.full((sum(len(y) for _, y in found),), 1e3))
    kept = mass.topk(args.vocabulary).indices.sort().values
    held = [i for i in range(len(found)) if i % 3 == 2]
    parts = [[i for i in range(len(found)) if i not in held], held]
    return [
        (
            torch.cat([found[i][0][:, kept] for i in part]),
            torch.searchsorted(kept, torch.cat([found[i][1] for i in part])),
        )
        for part in parts
    ]


def train(args, said, logits, labels):
    torch.manual_seed(0)
    net = TempNet(said, logits.shape[1])
    net.settle(logits[:4096])
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in trange(args.steps, desc="steps"):
        at = torch.randint(len(logits), (512,))
        optimiser.zero_grad()
        loss(logits[at], labels[at], net(logits[at]), said.entropy).mean().backward()
        optimiser.step()
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


@torch.no_grad()
def held_out(said, net, logits, labels):
    best, oracle, tau = best_constant(logits, said), solve(logits, said), net(logits)
    constant = torch.full_like(tau, best)

    def mean(at):
        return loss(logits, labels, at.float(), said.entropy).mean().item()

    def closed(at):
        return (mean(constant) - mean(at)) / (mean(constant) - mean(oracle))

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


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--problems", type=int, default=1000, help="of each of the three tasks")
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--entropy", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--plain", action="store_true", help="keep the scale of the logits (normalise: false)")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    said = Temperatures(entropy=args.entropy, normalise=not args.plain)
    (logits, labels), held = cached(args)
    net = train(args, said, logits, labels)
    show([*gradient(said, logits, labels), *held_out(said, net, *held)], args.json)


if __name__ == "__main__":
    main()
