"""HEX's acceptance experiment: a vote over block schedules of a small masked-diffusion model, on sums of two digits.

    python scripts/bench/hex.py [--folder runs/bench/hex] [--json FILE]

A transformer without a causal mask, one character a token, learns worked sums from scratch by LLaDA's loss. Held-out
sums are then decoded greedily under each block schedule, which vote; and at a temperature, where as many decodes of a
single schedule are the control. The length of the work as one block is the published baseline. Every step goes on
where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from own_task import answered, columns
from scratch import build
from table import at_least, paired, row, show
from torch.nn.functional import cross_entropy
from tqdm import trange
from transformers import AutoModelForCausalLM, AutoTokenizer

LETTERS = "0123456789+=,"
LENGTH = 16
BLOCKS = (1, 2, 4, 8, 16)
SHAPE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2}
"""Of 0.4 M parameters."""


def sums(args):
    """All sums of two two-digit numbers in a random order: the first are for tests, the others to learn from."""
    order = np.random.default_rng(0).permutation(90 * 90)
    told = [(10 + int(k) // 90, 10 + int(k) % 90) for k in order]
    return told[: args.test], told[args.test :]


def worked(a, b):
    """Sum of the units, sum of the tens with what is carried, sum."""
    units = a % 10 + b % 10
    return f"{units},{a // 10 + b // 10 + units // 10},{a + b}"


def learn(args):
    """By LLaDA's loss (arXiv 2502.09992, eq. 3): each token of a response is masked with probability p, weight 1/p."""
    folder = args.folder / "model"
    if (folder / "model.safetensors").exists():
        return folder
    build(args.folder / "scratch", LETTERS, 32, masked=True, **SHAPE)
    model, reads = (kind.from_pretrained(args.folder / "scratch") for kind in (AutoModelForCausalLM, AutoTokenizer))
    rows = [reads(f"{a}+{b}=").input_ids + padded(reads, worked(a, b)) for a, b in sums(args)[1]]
    data, every = torch.tensor(rows), torch.zeros(args.batch, 1, len(rows[0]), len(rows[0]))
    optimiser = torch.optim.AdamW(model.parameters(), args.rate, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.rate, total_steps=args.steps, pct_start=0.05)
    for _ in (bar := trange(args.steps, desc="steps")):
        ids = data[torch.randint(len(data), (args.batch,))]
        p = 1e-3 + (1 - 1e-3) * torch.rand(args.batch, 1).expand_as(ids)
        hidden = torch.rand(ids.shape) < p
        hidden[:, :-LENGTH] = False
        asked = ids.masked_fill(hidden, reads.mask_token_id)
        logits = model(input_ids=asked, attention_mask=every, use_cache=False).logits
        each = cross_entropy(logits[hidden], ids[hidden], reduction="none") / p[hidden]
        loss = each.sum() / (LENGTH * args.batch)
        loss.backward()
        optimiser.step()
        decay.step()
        optimiser.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.save_pretrained(folder)
    reads.save_pretrained(folder)
    return folder


def padded(reads, text):
    """Ends fill a response up, and are learned."""
    ids = reads(text).input_ids
    return ids + [reads.eos_token_id] * (LENGTH - len(ids))


def decode(args, model, name, temperature, strategies):
    """Results by label and votes, and the scores [sums] of each."""
    recipe = {
        "model": str(model),
        "strategies": strategies,
        "budgets": [1],
        "max_tokens": LENGTH,
        "engine": {"kind": "diffusion", "device": "cpu", "slots": 256},
        "sampling": {"temperature": temperature, "length": LENGTH, "block": LENGTH}
        | ({"steps": LENGTH} if args.one_by_one else {}),
    }
    told = [(f"{a}+{b}=", str(a + b)) for a, b in sums(args)[0]]
    name = f"{name}-one-by-one" if args.one_by_one else name
    results = columns(answered(args.folder / name, told, ",(\\d+)$", recipe))
    return results, {key: np.array([result.value for result in each]) for key, each in results.items()}


def column(blocks, label, budgets):
    return {"hex": {"blocks": list(blocks), "label": label, "budgets": list(budgets)}}


def greedy(args, model):
    """Each schedule once, and the vote over them."""
    alone = [column([b], f"block {b}", [1]) for b in BLOCKS]
    results, scores = decode(args, model, "greedy", 0, [*alone, column(BLOCKS, "hex", [len(BLOCKS)])])
    singles, vote = np.array([scores[f"block {b}", 1] for b in BLOCKS]), scores["hex", len(BLOCKS)]
    for block, each in zip(BLOCKS, singles, strict=True):
        yield row(f"greedy: accuracy in blocks of {block}", each.mean(), note=f"{each.size} sums")
    best, mean = singles[singles.mean(1).argmax()], singles.mean(0)
    ties = np.mean([r.why.startswith("tie") for r in results["hex", len(BLOCKS)]])
    yield row("greedy: accuracy of the vote over schedules", vote.mean(), note=f"ties {ties:.3f}")
    error = max(vote.std(ddof=1) / np.sqrt(vote.size), 1e-9)
    told = f"SE {error:.3f}; {between(vote, mean)}"
    yield at_least("vote − mean of the schedules, in standard errors", (vote - mean).mean() / error, 1, told)
    yield at_least("vote − best schedule", (vote - best).mean(), -0.02, between(vote, best))
    covered = singles.max(0)
    note = f"some schedule is right in {covered.mean():.3f}; {between(covered, best)}"
    yield at_least("coverage by any schedule − best schedule", (covered - best).mean(), 0.03, note)
    yield row("vote − the whole length as one block", (vote - singles[-1]).mean(), note=between(vote, singles[-1]))


def warm(args, model):
    """As many decodes at a temperature: of all schedules, and of a single one."""
    alone = [column([b], f"block {b}", args.votes) for b in BLOCKS]
    _, scores = decode(args, model, "warm", args.temperature, [*alone, column(BLOCKS, "hex", args.votes)])
    for n in args.votes:
        vote, singles = scores["hex", n], {b: scores[f"block {b}", n] for b in BLOCKS}
        note = ", ".join(f"{b}: {each.mean():.3f}" for b, each in singles.items())
        yield row(f"{n} votes at {args.temperature:g}: all schedules", vote.mean(), note=f"one schedule of {note}")
        best = max(singles, key=lambda b: singles[b].mean())
        name = f"control: {n} votes, all schedules − the best single one"
        yield row(name, (vote - singles[best]).mean(), note=f"{between(vote, singles[best])}, blocks of {best}")


def between(ours, theirs):
    """The 95 % interval of a paired difference."""
    return paired(ours, theirs)[1]


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/hex"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--test", type=int, default=500, help="sums, which are not learned from")
    parser.add_argument("--votes", type=int, nargs="*", default=[5, 10], help="decodes at the temperature")
    parser.add_argument("--one_by_one", action="store_true", help="one token a step; two are published")
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    torch.manual_seed(0)
    model = learn(args)
    show([*greedy(args, model), *(warm(args, model) if args.votes else ())], args.json)


if __name__ == "__main__":
    main()
