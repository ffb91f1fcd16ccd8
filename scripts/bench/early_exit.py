"""Early exit's acceptance experiment: lines whose words are easy, whose sums are less so, and whose rest nobody knows.

    python scripts/bench/early_exit.py [--model runs/sums/sft] [--folder runs/bench/early_exit] [--json FILE]

A model learns the lines. States of its layers at the completions' positions are read once; a controller, and its
control with shuffled labels, learn from them as in `extratime.train.early_exit`, but for a head cut to the likeliest
tokens. The threshold of leaving keeps the share `--kept` of the tokens of other lines, that of stopping is right nine
times in ten there. Then the engine writes test lines: all layers, leaving, leaving or stopping. `--model scratch`
takes a small model of one character a token. Every step goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import string
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scratch import build
from steps import call
from table import at_least, at_most, row, show
from tqdm import tqdm, trange
from transformers import DataCollatorForSeq2Seq

from extratime.evaluate.cost import flops
from extratime.evaluate.grid import EngineSpec
from extratime.evaluate.statistics.calibration import auroc
from extratime.models import early_exit, manifest
from extratime.models.early_exit import EXIT, STOP, Controller, EarlyExit, labels, loss
from extratime.models.engines.open import open_engine
from extratime.models.load import load
from extratime.models.request import Draw, Sampling, Shape
from extratime.train.early_exit import right, states, translators_loss
from extratime.train.tempnet import tokens

NAMES = ("Robin", "Anna", "Peter", "Maria", "Thomas", "Laura", "Simon", "Julia", "Martin", "Helen", "Oscar", "Clara")
LETTERS = string.ascii_letters + string.digits + " +*?,."
SWEEP = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
"""Thresholds as published."""


def line(rng):
    """Prompt, completion and kind; half of the lines can be known from the prompt."""
    kind = rng.choice(("sum", "sums", "product", "key"))
    a, b, c, d = (rng.randrange(10) for _ in range(4))
    if kind == "sum":
        return kind, f"What is {a} + {b}?", f" The answer is {a + b}. I worked it out with care, as you asked."
    if kind == "sums":
        said = f" The answers are {a + b} and {c + d}. I worked them out with care."
        return kind, f"What is {a} + {b}, and what is {c} + {d}?", said
    if kind == "product":
        x, y = (rng.randrange(100_000, 1_000_000) for _ in range(2))
        return kind, f"What is {x} * {y}?", f" The answer is {x * y}. I worked it out with care, as you asked."
    name, key = rng.choice(NAMES), "".join(rng.choices(string.ascii_uppercase + string.digits, k=6))
    return kind, f"What is the key of {name}?", f" The key of {name} is {key}. I looked it up in the book."


def lines(count, seed):
    """So many different lines as rows of kind, prompt and completion."""
    rng = random.Random(seed)
    return [dict(zip(("kind", "prompt", "completion"), line(rng), strict=True)) for _ in range(count)]


# --- what is learned


def base(args):
    """The model that has learned the lines."""
    folder = args.folder / "base"
    if args.warm_up == 0:
        return Path(args.model)
    if args.model == "scratch" and not (args.folder / "scratch").exists():
        build(args.folder / "scratch", LETTERS, 256, num_hidden_layers=args.layers)
    start = args.folder / "scratch" if args.model == "scratch" else args.model
    manifest.write_lines(args.folder / "lines.jsonl", lines(4000, 1))
    said = ["--data", args.folder / "lines.jsonl", "--model", start, "--output_dir", folder]
    said += ["--max_steps", args.warm_up, "--per_device_train_batch_size", args.batch, "--warmup_steps", 5]
    said += ["--learning_rate", args.rate, "--weight_decay", 0, "--adam_beta2", 0.95, "--bf16", "false"]
    call("extratime.train.sft", *said, "--save_steps", 35, "--logging_steps", 5, "--report_to", "none")
    return folder


def cached(args, model):
    """By split: states [exits + 1, N, hidden], next tokens [N], and whether a position is its line's first [N]."""
    file = args.folder / "states.pt"
    if file.exists():
        return torch.load(file)
    loaded, found = load(model, dtype=torch.float32), {}
    collate = DataCollatorForSeq2Seq(loaded.tokenizer)
    for seed, (split, count) in enumerate({"train": args.train, "dev": args.dev, "test": args.test}.items(), 2):
        rows = [tokens(each, loaded.tokenizer, None) for each in lines(count, seed)]
        parts = []
        for begin in trange(0, len(rows), 25, desc=f"states, {split}"):
            batch = collate(rows[begin : begin + 25])
            real = batch["labels"][:, 1:] != -100
            parts.append((*states(loaded.model, batch, args.exits), ((real.cumsum(1) == 1) & real)[real]))
        hidden, wanted, first = zip(*parts, strict=True)
        found[split] = torch.cat(hidden, 1), torch.cat(wanted), torch.cat(first)
    torch.save(found, file)
    return found


def head_of(args, model, wanted):
    """The model's own norm and head, the head of the likeliest tokens, and where a token stands among those."""
    loaded = load(model, dtype=torch.float32).model
    weight = loaded.lm_head.weight.detach()
    count = min(args.vocabulary, len(weight))
    with torch.no_grad():
        mass = loaded.lm_head(args.states["train"][0][-1, ::20]).softmax(-1).sum(0)
    mass[wanted.unique()] = torch.inf
    kept = mass.topk(count).indices.sort().values
    return loaded.model.norm, loaded.lm_head, lambda h: h @ weight[kept].T, lambda at: torch.searchsorted(kept, at)


def learn(args, model):
    """Train the controller, and the control on the same translators; leave folders as the recipe would."""
    folders = [args.folder / name for name in ("controller", "shuffled")]
    if all((folder / manifest.NAME).exists() for folder in folders):
        return folders
    hidden, wanted, _ = args.states["train"]
    norm, head, few, place = head_of(args, model, wanted)
    torch.manual_seed(0)
    said = EarlyExit(tuple(args.exits), args.rank)
    made = Controller(said, hidden.shape[2])

    def translators(at):
        return translators_loss(few, made(hidden[:-1, at], norm)[0], place(wanted[at]))

    descend(args, made, "translators", translators, len(wanted))
    truth = labels(verdicts(made, norm, head, hidden, wanted))
    for folder, order in zip(folders, (torch.arange(len(wanted)), torch.randperm(len(wanted))), strict=True):
        told = truth[:, order]
        torch.nn.init.zeros_(made.classifier.weight)
        descend(
            args, made, folder.name, lambda at, t=told: loss(made(hidden[:-1, at], norm)[1], t[:, at]), len(wanted)
        )
        folder.mkdir(exist_ok=True)
        save_file({key: value.contiguous() for key, value in made.state_dict().items()}, folder / "model.safetensors")
        beside = {"base": str(model), "base_sha256": manifest.hash_weights(model), "early_exit": said}
        manifest.write(folder, manifest.Manifest("early_exit", "early_exit", **beside))
    return folders


def descend(args, made, name, loss_at, count):
    optimiser = torch.optim.AdamW(made.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in trange(args.steps, desc=name):
        optimiser.zero_grad()
        loss_at(torch.randint(count, (128,))).backward()
        optimiser.step()


@torch.no_grad()
def verdicts(made, norm, head, hidden, wanted):
    """Whether each exit point, and last the model's own end, is right."""
    parts = zip(hidden.split(2000, 1), wanted.split(2000), strict=True)
    return torch.cat([right(head, [*made(h[:-1], norm)[0], h[-1]], w) for h, w in parts], 1)


# --- on known text


class Known:
    """What a controller says at positions of lines that it never saw, each after the text as it should be.

    Attributes:
        chances: [exits, N, 3].
        same: [exits + 1, N], whether an exit point's token is the model's own.
        right: [exits + 1, N].
        sure: [exits + 1, N], the probability of the likeliest token.
    """

    @torch.no_grad()
    def __init__(self, args, model, folder, split):
        hidden, wanted, self.first = args.states[split]
        self.layers = torch.tensor([*args.exits, args.depth])
        norm, head, _, _ = head_of(args, model, args.states["train"][1])
        made = early_exit.load(EarlyExit(tuple(args.exits), args.rank), folder)
        read, told = made(hidden[:-1], norm)
        best = [surest(head, each) for each in (*read, hidden[-1])]
        self.sure, likeliest = (torch.stack(column) for column in zip(*best, strict=True))
        self.chances = told.softmax(-1)
        self.same, self.right = likeliest == likeliest[-1], likeliest == wanted
        self.hopeless = ~self.right.any(0)

    def leaves(self, threshold):
        """Which exit point each position leaves at, and whether it has; the first of a line never does."""
        acts = self._acts(EXIT, threshold)
        return torch.where(acts.any(0), acts.int().argmax(0), len(acts)), acts.any(0)

    def stops(self, leave, threshold):
        """Which positions are stopped before they leave."""
        where, _ = self.leaves(leave)
        acts = self._acts(STOP, threshold)
        return (acts & (torch.arange(len(acts))[:, None] < where)).any(0)

    def _acts(self, action, threshold):
        told = (self.chances.argmax(-1) == action) & (self.chances[..., action] > threshold)
        return told & ~self.first

    def kept(self, threshold):
        """Share of layers run, and of tokens that are the model's own."""
        where, _ = self.leaves(threshold)
        return (self.layers[where].float().mean() / self.layers[-1]).item(), self._at(self.same, where)

    def _at(self, table, where):
        return table.gather(0, where[None])[0].float().mean().item()

    def precision(self, leave, threshold):
        """Precision and recall of stops for positions where no layer is right."""
        flagged, truth = self.stops(leave, threshold), self.hopeless & ~self.first
        hit = (flagged & truth).sum().item()
        return hit / max(1, flagged.sum().item()), hit / max(1, truth.sum().item())


def surest(head, states):
    """The largest probability [N] of a head at states [N, hidden], and its token."""
    found = []
    for part in states.split(500):
        logits = head(part)
        value, token = logits.max(-1)
        found.append(((value - logits.logsumexp(-1)).exp(), token))
    return tuple(map(torch.cat, zip(*found, strict=True)))


def thresholds(args, dev):
    """Of leaving, and of stopping."""
    leave = next((t for t in SWEEP if dev.kept(t)[1] >= args.kept), 1.0)
    stop = next((t for t in SWEEP if dev.precision(leave, t)[0] >= 0.9), 1.0)
    return leave, stop


def on_known_text(args, dev, test, control, leave, stop):
    note = f"{len(test.first)} positions; chosen on {len(dev.first)} others: {leave:g}"
    shares = [(test.right.int().cummax(0).values[i].float().mean().item()) for i in range(len(test.right))]
    for layer, share in zip(test.layers.tolist(), shares, strict=True):
        yield row(f"positions right by layer {layer}", share)
    ran, same = test.kept(leave)
    yield row("known text: layers run ÷ all", ran, note=note)
    yield row("known text: tokens that are the model's own", same)
    curve = sorted(control.kept(t / 400) for t in range(401))
    there = float(np.interp(ran, *zip(*curve, strict=True)))
    note = f"{there:.3f} with a controller of shuffled labels"
    yield at_least("4 tokens lost by the control at equal layers, in points", 100 * (same - there), 10, note)
    precision, recall = test.precision(leave, stop)
    note = f"{test.hopeless.float().mean():.1%} of positions; threshold {stop:g} chosen on others"
    yield at_least("3 stop: precision", precision, 0.8, note)
    yield at_least("3 stop: recall", recall, 0.3)
    for bar in SWEEP:
        precision, recall = test.precision(leave, bar)
        yield row(f"stop above {bar:g}: precision", precision, note=f"recall {recall:.3f}")
    yield from ranked(args, test)


def ranked(args, test):
    """How well positions where no layer is right are told from others: the controller, and the largest probability."""
    later = ~test.first
    truth = test.hopeless[later].numpy()
    ours = [auroc(test.chances[i, later, STOP].numpy(), truth) for i in range(len(args.exits))]
    theirs = [auroc(-test.sure[i, later].numpy(), truth) for i in range(len(args.exits) + 1)]
    for i, layer in enumerate(args.exits):
        note = f"{ours[i]:.3f}; largest probability of that exit {theirs[i]:.3f}, of the last layer {theirs[-1]:.3f}"
        bar = at_least if i == len(args.exits) - 1 else row
        more = (0.05, note) if i == len(args.exits) - 1 else ("", None, note)
        yield bar(f"3 AUROC − that of the last layer's probability, layer {layer}", ours[i] - theirs[-1], *more)
        yield row(f"AUROC − that of the same exit's probability, layer {layer}", ours[i] - theirs[i])


# --- free running


def written(args, name, folder, **spec):
    """What an engine writes after the test prompts, greedily, kept by name; with its work and seconds."""
    file = args.folder / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text())
    opened = open_engine(str(folder), {}, EngineSpec(dtype=args.dtype, device="cpu", **spec))
    on, prompts = opened.engine, [each["prompt"] for each in lines(args.test, 4)]
    for i, prompt in enumerate(prompts):
        on.submit(i, Draw(on.encode(prompt), 0, Sampling(0), args.tokens))
    replies = {}
    with tqdm(total=len(prompts), desc=name) as bar:
        while found := on.poll():
            replies.update(found)
            bar.update(len(found))
    told = {"work": asdict(on.counts), "seconds": on.seconds, "shape": asdict(on.profile.shape)}
    file.write_text(json.dumps(told | {"replies": [asdict(replies[i]) for i in range(len(prompts))]}))
    return json.loads(file.read_text())


def spent(told):
    """FLOPs of a run."""
    work = told["work"]
    shape = Shape(**told["shape"])
    passes = work["prefill"] + work["decode"]
    return flops(shape, passes, work["pairs"], work["skipped"], work["skipped_pairs"])


def correct(told, args):
    """Of each test line whether the text is the line's own, as far as it was written."""
    said = [reply["text"] for reply in told["replies"]]
    golden = [each["completion"] for each in lines(args.test, 4)]
    return np.array([bool(s) and g.startswith(s) and len(s) > 12 for s, g in zip(said, golden, strict=True)])


def agreement(one, other):
    """Share of tokens, end tokens included, that are the same at the same place, of the longer response."""
    shares = []
    for a, b in zip(one["replies"], other["replies"], strict=True):
        x, y = ([*r["tokens"], *["end"] * r["eos"]] for r in (a, b))
        shares += [i < len(x) and i < len(y) and x[i] == y[i] for i in range(max(len(x), len(y)))]
    return float(np.mean(shares))


def layers(told, args):
    """Layers run ÷ all, over generated tokens."""
    skipped = [s for reply in told["replies"] for s in reply["skipped"][: len(reply["ends"])]]
    return 1 - float(np.mean(skipped)) / args.depth


def free_running(args, runs):
    off, leaving, both = runs["off"], runs["exit"], runs["both"]
    plain = [reply["tokens"] for reply in runs["hf"]["replies"]]
    same = [list(reply["tokens"]) == list(tokens) for reply, tokens in zip(off["replies"], plain, strict=True)]
    note = f"{len(plain)} responses of {args.tokens} tokens, {args.dtype}"
    yield at_least("1 thresholds off: responses that are the hf engine's", float(np.mean(same)), 1.0, note)
    yield at_most("2 layers run ÷ all, generated tokens", layers(leaving, args), 0.85)
    yield at_least("2 tokens that are the full model's", agreement(off, leaving), 0.98)
    yield row("FLOPs ÷ all layers', prompts included", spent(leaving) / spent(off))
    yield row("decoding seconds ÷ all layers'", leaving["seconds"]["decode"] / off["seconds"]["decode"])
    hit = {name: correct(told, args) for name, told in runs.items()}
    lost = 100 * (hit["off"].mean() - hit["exit"].mean())
    yield at_most("5 completions right, points lost by leaving", lost, 1.5, f"{hit['off'].mean():.1%} with all layers")
    yield from stopping(args, runs, hit)
    yield row("FLOPs ÷ all layers', leaving and stopping", spent(both) / spent(off))


def stopping(args, runs, hit):
    """What stops are worth: words not written after a mistake, and right responses given up."""
    off, both = runs["off"], runs["both"]
    stopped = np.array([len(r["skipped"]) > len(r["ends"]) for r in both["replies"]])
    spared = [len(a["ends"]) - len(b["ends"]) for a, b in zip(off["replies"], both["replies"], strict=True)]
    yield row(
        "responses given up", stopped.mean(), note=f"{(stopped & ~hit['off']).sum()} of {(~hit['off']).sum()} wrong"
    )
    lost = (stopped & hit["off"]).sum()
    yield row("right responses given up", lost / max(1, hit["off"].sum()), note=f"{lost} of {hit['off'].sum()}")
    wrong = sum(s for s, gone, right in zip(spared, stopped, hit["off"], strict=True) if gone and not right)
    written_wrong = sum(len(r["ends"]) for r, right in zip(off["replies"], hit["off"], strict=True) if not right)
    yield row("tokens of wrong responses not written", wrong / max(1, written_wrong), note=f"of {written_wrong}")


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="runs/sums/sft", help="what learns the lines; or scratch")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/early_exit"))
    parser.add_argument("--layers", type=int, default=8, help="of a model from scratch")
    parser.add_argument("--exits", type=int, nargs="+", default=[6, 12, 18, 24])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--warm_up", type=int, default=300, help="steps in which the model learns the lines; 0: none")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--train", type=int, default=1200, help="lines whose states the controller learns from")
    parser.add_argument("--dev", type=int, default=200)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--steps", type=int, default=500, help="of the translators, and then of the classifier")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--kept", type=float, default=0.999, help="share of other lines' tokens that leaving keeps")
    parser.add_argument("--dtype", default="float32", help="of the engine")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    model = base(args)
    args.depth = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    args.states = cached(args, model)
    controller, shuffled = learn(args, model)
    dev, test = (Known(args, model, controller, split) for split in ("dev", "test"))
    leave, stop = thresholds(args, dev)
    rows = list(on_known_text(args, dev, test, Known(args, model, shuffled, "test"), leave, stop))
    show(rows)
    runs = {
        "hf": written(args, "hf", model, slots=1),  # in bfloat16 a batch breaks ties otherwise
        "off": written(args, "off", controller, exit=1, stop=1),
        "exit": written(args, f"exit-{leave:g}", controller, exit=leave, stop=1),
        "both": written(args, f"both-{leave:g}-{stop:g}", controller, exit=leave, stop=stop),
    }
    show(rows + list(free_running(args, runs)), args.json)


if __name__ == "__main__":
    main()
