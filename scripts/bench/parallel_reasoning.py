"""Adaptive parallel reasoning beside one line of thought, both taught from scratch: APR's acceptance experiment.

    python scripts/bench/parallel_reasoning.py [--folder runs/bench/parallel_reasoning] [--json FILE]

Countdown: three numbers from 1 to 20 make a target from 5 to 60; what is made on the way is 1 to 99, and a number is
one token. From traces of the same depth-first solver on the same puzzles two small transformers learn, in as many
steps of about as many tokens: a serial one that writes all of the search, and one that spawns a child for each first
move and joins what is found. Both then solve unseen puzzles in a window of so many tokens a thread. Controls: children
that tell nothing, as many tokens of serial draws that vote, and a window that holds a whole serial search. Every step
goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
from own_task import answered, columns
from scratch import build
from steps import KEEP_MEMORY, call
from table import at_least, at_most, paired, row, show

NAMES = [*map(str, range(100)), *"+-*/:;,> =?{}[]\n", *"none"]
SHAPE = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 2}
"""Of 0.3 M parameters."""
BATCH = {"serial": 20, "apr": 48}
"""Traces and threads of a step, which are about as many tokens."""
LONGEST = 400
SIGNS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else None,
}
TASK = re.compile(r"(\d+)([-+*/])(\d+):(\d+),(\d+)>(\d+)")


def moves(numbers, pairs):
    """Each way to make one number of two: (words, what is left)."""
    for i, j in pairs:
        a, b = sorted((numbers[i], numbers[j]), reverse=True)
        for sign, made in SIGNS.items():
            if made(a, b) in range(1, 100):
                value = int(made(a, b))
                yield f"{a}{sign}{b}:{value}", [value, *(n for k, n in enumerate(numbers) if k not in (i, j))]


def firsts(numbers, rng):
    """First moves, pairs in a random order, each with the second moves up to the one that comes to the target."""
    pairs = list(itertools.combinations(range(3), 2))
    rng.shuffle(pairs)
    return list(moves(numbers, pairs))


def seconds(left, target):
    """Second moves up to the one that comes to the target, and whether one does."""
    tried = []
    for words, (value,) in moves(left, [(0, 1)]):
        tried.append(words)
        if value == target:
            return tried, True
    return tried, False


def serial(numbers, target, rng):
    """The whole search in one line, and the path it finds."""
    said = ""
    for first, left in firsts(numbers, rng):
        tried, found = seconds(left, target)
        said += f"{first},{left[1]};" + "".join(f"{words} " for words in tried)
        if found:
            return f"{said.rstrip()}={first} {tried[-1]}"
    return f"{said}=none"


def threads(numbers, target, rng):
    """Prompt and completion of the parent's two calls and of each child."""
    question, tasks, told = asked(numbers, target), [], []
    for first, left in firsts(numbers, rng):
        tried, found = seconds(left, target)
        tasks.append(f"{first},{left[1]}>{target}")
        told.append(f"{first} {tried[-1]}" if found else "")
        yield f"{tasks[-1]}?", " ".join(tried) + (f"[{told[-1]}]" if found else "")
    joined = "".join(f"\n{i}: {path or '-'}" for i, path in enumerate(told, 1))
    yield question, "{" + "\n".join(tasks) + "}"
    yield f"{question}[{joined}\n]", f"={next(filter(None, told), 'none')}"


def asked(numbers, target):
    return ",".join(map(str, numbers)) + f">{target}?"


@functools.cache
def puzzles(train, test):
    """Puzzles with a solution, for training and for tests; none is in both, whatever the order of its numbers."""
    rng, seen, found = random.Random(0), set(), []
    while len(found) < train + test:
        numbers, target = sorted(rng.randint(1, 20) for _ in range(3)), rng.randint(5, 60)
        key = (*numbers, target)
        if key not in seen and not serial(numbers, target, rng).endswith("none"):
            seen.add(key)
            found.append((rng.sample(numbers, 3), target))
    return found[:train], found[train:]


def rows_of(name, args):
    rng = random.Random(1)
    for numbers, target in puzzles(args.train, args.test)[0]:
        if name == "serial":
            yield asked(numbers, target), serial(numbers, target, rng)
        else:
            yield from threads(numbers, target, rng)


def learn(args, name):
    """The model that learns to think so, from all of its traces."""
    f = args.folder
    f.mkdir(parents=True, exist_ok=True)
    if not (f / "scratch").exists():
        build(f / "scratch", NAMES, LONGEST, **SHAPE)
    data = f / f"{name}.jsonl"
    told = [{"prompt": prompt, "completion": completion} for prompt, completion in rows_of(name, args)]
    data.write_text("".join(json.dumps(each) + "\n" for each in told))
    said = ["--model", f / "scratch", "--data", data, "--output_dir", f / name, "--max_steps", args.steps]
    said += ["--per_device_train_batch_size", BATCH[name], "--learning_rate", args.rate, "--save_steps", args.steps]
    said += ["--warmup_steps", 20, "--lr_scheduler_type", "cosine", "--adam_beta2", 0.95, "--max_length", LONGEST]
    call("extratime.train.sft", *said, "--logging_steps", 25, "--report_to", "none", **KEEP_MEMORY)


def solve(args, model, name, window, temperature, strategies):
    """What a model says to test puzzles, by strategy and budget."""
    told = [(asked(*puzzle), "none") for puzzle in puzzles(args.train, args.test)[1]]
    recipe = {
        "model": str(args.folder / model),
        "strategies": strategies,
        "budgets": [1],
        "max_tokens": window,
        "engine": {"device": "cpu", "slots": 128},
        "sampling": {"temperature": temperature},
    }
    run = answered(args.folder / "test" / name, told, "=(\\d.*)$", recipe)
    return {key: Column(puzzles(args.train, args.test)[1], run, results) for key, results in columns(run).items()}


class Column:
    """What one strategy says at one budget, by puzzle."""

    def __init__(self, told, run, results):
        pools = [[run.responses[name] for name in (r.response, *(name for name, _ in r.pool))] for r in results]
        right = [[float(solves(puzzle, each)) for each in pool] for puzzle, pool in zip(told, pools, strict=True)]
        self.texts = [pool[0].text for pool in pools]
        self.right, self.any = [each[0] for each in right], [max(each) for each in right]
        self.generated = np.mean([result.cost.generated for result in results])
        self.sequential = np.mean([result.cost.sequential for result in results])

    def row(self, name, note=""):
        told = f"{self.generated:.0f} tokens, {self.sequential:.0f} in sequence"
        return row(name, np.mean(self.right), note=f"{told}{note}")


def solves(puzzle, response):
    """Whether a response ended in a path from the numbers to the target."""
    numbers, target = list(puzzle[0]), puzzle[1]
    _, equals, path = response.text.rpartition("=")
    steps = [re.fullmatch(r"(\d+)([-+*/])(\d+):(\d+)", step) for step in path.split(" ")]
    if response.standing < 2 or not equals or not all(steps):
        return False
    for step in steps:
        a, b, value = int(step[1]), int(step[3]), int(step[4])
        if a not in numbers or SIGNS[step[2]](a, b) != value:
            return False
        numbers.remove(a)
        if b not in numbers:
            return False
        numbers.remove(b)
        numbers.append(value)
    return numbers == [target]


def spawned(text):
    """Of a spawn block: whether all of its lines parse, and the share of those whose arithmetic is right."""
    block = re.fullmatch(r"\{([^{}]*)\}", text)
    lines = [TASK.fullmatch(line) for line in block[1].split("\n")] if block else [None]
    right = [bool(line) and SIGNS[line[2]](int(line[1]), int(line[3])) == int(line[4]) for line in lines]
    return all(lines), np.mean(right)


def rows(args):
    window = args.window
    votes = [{"self_consistency": {"budgets": [1, 2, 4, 8]}}]
    one = solve(args, "serial", "serial", window, 0, ["greedy"])["greedy", 1]
    wide = solve(args, "serial", "wide", LONGEST - 20, 0, ["greedy"])["greedy", 1]
    many = solve(args, "serial", "votes", window, 1, votes)
    protocol = {"spawn": ["{", "}"], "join": ["[", "]"], "child": "{task}?", "nothing": "-", "children": 12}
    spawning = [{"parallel_reasoning": protocol | {"label": "apr", "budgets": [1, 2, 4, 8]}}, "greedy"]
    apr = solve(args, "apr", "apr", window, 0, spawning)
    threads, mute = apr["apr", 8], apr["apr", 1]
    parsed, exact = zip(*map(spawned, apr["greedy", 1].texts), strict=True)
    yield at_least(
        "share of spawn blocks that parse", np.mean(parsed), 0.95, f"lines that calculate {np.mean(exact):.3f}"
    )
    yield one.row(f"serial, greedy, a window of {window}")
    for n in (2, 4, 8):
        yield apr["apr", n].row(f"parallel reasoning, budget {n}")
    yield at_least("parallel − serial in this window", *gap(threads, one, 0.1))
    share = threads.sequential / threads.generated
    yield at_most("tokens in sequence ÷ all, parallel", share, 0.7)
    lost = np.mean(threads.right) - np.mean(mute.right)
    note = f"{np.mean(mute.right):.3f} without what they tell"
    yield at_least("control: lost without messages ÷ accuracy", lost / max(np.mean(threads.right), 1e-9), 0.5, note)
    for n in (1, 2, 4, 8):
        told = many["self_consistency", n]
        yield told.row(f"serial, draws that vote: {n}", f"; some draw is right in {np.mean(told.any):.3f}")
    same = min((1, 2, 4, 8), key=lambda n: abs(many["self_consistency", n].generated - threads.generated))
    value, _, note = gap(threads, many["self_consistency", same], 0)
    yield row(f"parallel − {same} serial draws, of about as many tokens", value, note=note)
    yield wide.row("serial, greedy, a window for all of its search")
    value, _, note = gap(threads, wide, 0)
    yield row("parallel − serial in a wide window", value, note=note)


def gap(ours, theirs, bar):
    found, interval = paired(ours.right, theirs.right)
    return found.value, bar, interval


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/parallel_reasoning"))
    parser.add_argument("--train", type=int, default=10_000, help="puzzles to learn from")
    parser.add_argument("--test", type=int, default=200, help="puzzles")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--window", type=int, default=128, help="tokens of a thread")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    for name in ("serial", "apr"):
        learn(args, name)
    show(list(rows(args)), args.json)


if __name__ == "__main__":
    main()
