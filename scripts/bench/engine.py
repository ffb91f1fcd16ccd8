"""How quick the `hf` engine is, beside what it replaces, in one run.

    python scripts/bench/engine.py [--model embedded] [--json rows.json]

Four rows have a bar: decoding rows of even length against `model.generate`; draws of ragged length (three quarters 16
tokens, one quarter 128) against static batches of `model.generate`; step search after a 512-token prompt against
reading prompt and path again at each step; one self-evaluation read-out as a share of a 256-token sample's seconds.
Both sides run the same model with ends disabled, so that lengths are exact, in this process, by turns, with the same
number of rows at a time, and each figure is the best of `--repeats`. Static batches are all alike, so two of them are
timed and stand for the rest. On a CPU the clock is the processor time of this process over its threads: on an idle
machine the same as seconds, and on a shared one not a measurement of the neighbours.
"""

import argparse
import os
import sys
from pathlib import Path
from time import perf_counter, process_time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from extratime.models.engines.hf import HFEngine
from extratime.models.load import Loaded, load
from extratime.models.request import Completion, Draw, Probe, Prompt, Sampling

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import tiny
from table import at_least, at_most, row, show

GREEDY, WARM = Sampling(0.0), Sampling(1.0)
QUESTION = "<|im_end|>\n<|im_start|>user\nWould you do better if you started over?<|im_end|>\n<|im_start|>assistant\n"


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    loaded = model_of(args)
    rows = []
    for measure in (even, ragged, step_search, read_out):
        if args.only in ("", measure.__name__):
            rows += measure(loaded, args)
    show(rows, args.json)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="embedded", help="'tiny' (8 M random parameters), 'embedded', or a folder")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="rows decoded at a time, on both sides")
    parser.add_argument("--many", type=int, default=12, help="ragged draws, in batches")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", default="", help="one of even, ragged, step_search, read_out")
    parser.add_argument("--json", type=Path, help="write the rows there")
    return parser.parse_args()


def model_of(args):
    dtype = getattr(torch, args.dtype)
    if args.model == "tiny":
        made = tiny.model("qwen2", hidden=256, layers=8, context=2048, vocabulary=8192, scale=0.02, eos=False)
        loaded = Loaded(made.to(args.device, dtype), tiny.tokenizer(), "tiny", "tiny")
    else:
        loaded = load(args.model, dtype=dtype, device=args.device)
    loaded.model.generation_config.eos_token_id = None
    loaded.tokenizer.eos_token = None
    size = sum(p.numel() for p in loaded.model.parameters())
    print(f"{args.model}: {size / 1e6:.1f} M parameters, {args.dtype}, {args.device}, {args.threads} thread(s)")
    return loaded


def seconds(args, *works):
    """The least seconds that each of `works` took, run by turns."""
    took = [[timed(work, args) for work in works] for _ in range(args.repeats)]
    return [min(column) for column in zip(*took, strict=True)]


def timed(work, args):
    begin = clock(args)
    work()
    return clock(args) - begin


def clock(args):
    return process_time() / args.threads if args.device == "cpu" else perf_counter()


def generate(model, prompts, tokens):
    width = max(len(p.ids) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p.ids)) + list(p.ids) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=model.device)
    with torch.inference_mode():
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
        )


def even(loaded, args):
    asks, tokens = [tiny.prompt(64, i) for i in range(args.batch)], 96
    draws = [Draw(p, i, WARM, tokens) for i, p in enumerate(asks)]
    ours, theirs = seconds(
        args, lambda: tiny.serve(fresh(loaded, args), draws), lambda: generate(loaded.model, asks, tokens)
    )
    many = args.batch * tokens
    note = f"hf {many / ours:.0f} tok/s, generate {many / theirs:.0f} tok/s"
    return [at_least("even lengths: hf / model.generate, tok/s", theirs / ours, 0.95, note)]


def ragged(loaded, args):
    lengths = [128 if i % 4 == 3 else 16 for i in range(args.many * args.batch)]
    asks = [tiny.prompt(32, i) for i in range(len(lengths))]
    draws = [Draw(p, i, WARM, n) for i, (p, n) in enumerate(zip(asks, lengths, strict=True))]
    timed = min(2, args.many)

    def static():
        for begin in range(0, timed * args.batch, args.batch):
            generate(loaded.model, asks[begin : begin + args.batch], 128)

    ours, theirs = seconds(args, lambda: tiny.serve(fresh(loaded, args), draws), static)
    theirs *= args.many / timed
    note = f"{len(draws)} draws, useful tok/s: hf {sum(lengths) / ours:.0f}, static {sum(lengths) / theirs:.0f}"
    return [at_least("ragged lengths: hf / static batches, useful tok/s", theirs / ours, 3, note)]


def step_search(loaded, args, beams=8, steps=4, size=16):
    ask = tiny.prompt(512)

    def ours():
        engine = fresh(loaded, args)
        paths = [()] * beams
        for step in range(steps):
            read = tiny.serve(engine, [Draw(ask, i, WARM, (step + 1) * size, have=p) for i, p in enumerate(paths)])
            paths = [p + r.tokens for p, r in zip(paths, read, strict=True)]
            paths = [paths[i // 2] for i in range(beams)]  # the better half is kept, twice

    def theirs():
        paths = [ask] * beams
        for _ in range(steps):
            out = generate(loaded.model, paths, size)[:, -size:].tolist()
            paths = [Prompt("", p.ids + tuple(o)) for p, o in zip(paths, out, strict=True)]

    quick, slow = seconds(args, ours, theirs)
    note = f"{beams} beams × {steps} steps × {size} tokens: hf {quick:.2f} s, reading again {slow:.2f} s"
    return [at_least("step search, 512-token prompt: hf / re-prefill", slow / quick, 5, note)]


def read_out(loaded, args):
    rows = []
    for many in (1, args.batch):
        ask, took = tiny.prompt(64), []
        for _ in range(args.repeats):
            engine = fresh(loaded, args)
            begin = clock(args)
            drawn = tiny.serve(engine, [Draw(ask, i, WARM, 256) for i in range(many)])
            sampled = clock(args)
            for i, d in enumerate(drawn):
                engine.submit(i, Probe(Completion(ask, d.text, 256, d.tokens), QUESTION, ("a", "b")))
            while engine.poll():
                pass
            took.append((clock(args) - sampled, sampled - begin))
        probe, sample = min(took)[0] / many, min(t for _, t in took) / many
        asked = len(loaded.tokenizer(QUESTION, add_special_tokens=False).input_ids)
        note = f"{1e3 * probe:.1f} ms for {asked} question tokens, {1e3 * sample:.0f} ms for 256 tokens"
        name = "read-out / 256-token sample, seconds"
        alone = at_most(f"{name}, alone", probe / sample, 0.03, note)
        rows.append(alone if many == 1 else row(f"{name}, each of {many} together", probe / sample, note=note))
    return rows


def fresh(loaded, args):
    return HFEngine(loaded, slots=args.batch)


if __name__ == "__main__":
    main()
