"""The self-evaluation token's acceptance experiment on the embedded model and held-out sums.

    python scripts/bench/self_eval.py [--folder runs/bench/self_eval] [--json FILE]

Warm-up, rollouts of training problems, the adapter, its control with shuffled labels, one whose question tells
nothing, thresholds set on validation problems, then the grid on test problems. Every step goes on where it was. Rows
are printed as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from extratime.evaluate import stats
from extratime.evaluate.calibration import within_question_auroc
from extratime.evaluate.grid import EngineSpec
from extratime.evaluate.program import Answer, Problem, sample
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.streams import Streams
from extratime.evaluate.verifiers.self_eval import self_eval
from extratime.models.engines.open import open_engine

TASKS = ["sums_easy", "sums_medium", "sums_hard"]
DRAWS, FRACTIONS, LENGTH = 16, (0.25, 0.5, 1.0), 32
ADAPTERS = {
    "self_eval": [],
    "shuffled": ["--shuffle_labels", "true"],
    "plain": ["--question", "\nStart over?"],
}
RECIPES = Path(__file__).parents[2] / "recipes"


def call(*words):
    """A step of the experiment, as a user would run it."""
    print("$", *words, flush=True)
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)


def train(args):
    f = args.folder
    warm_up = ["--config", RECIPES / "sft/sums.yaml", "--output_dir", f / "sft", "--max_steps", args.steps]
    call("extratime.train.sft", *warm_up)
    sets = {"model": f / "sft", "output": f / "rollouts", "limit": args.train}
    call("extratime.train.rollouts", RECIPES / "rollouts/sums.yaml", *overrides(sets))
    for name, difference in ADAPTERS.items():
        said = ["--config", RECIPES / "self_eval/sums.yaml", "--output_dir", f / name, *difference]
        said += ["--model", f / "sft", "--data", f / "rollouts/draws.jsonl"]
        call("extratime.train.self_eval", *said, *(["--max_steps", args.adapter_steps] if args.adapter_steps else []))


def overrides(sets):
    return [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]


def verify(adapter):
    return {"self_eval": {"adapter": adapter}}


def evaluate(args, split, limit, strategies):
    """Run strategies on a split; returns lines of results and responses by id."""
    folder = args.folder / split
    recipe = {
        "model": str(args.folder / "sft"),
        "adapters": {name: str(args.folder / name) for name in ADAPTERS},
        "tasks": TASKS,
        "overrides": {task: {"test_split": split} for task in TASKS},
        "limit": limit,
        "chat": False,
        "budgets": [DRAWS],
        "engine": {"slots": 96},
        "strategies": strategies,
        "output": str(folder),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (args.folder / f"{split}.yaml").write_text(json.dumps(recipe))
    call("extratime.evaluate.cli", "evaluate", args.folder / f"{split}.yaml", "--no-report")
    return folder


def lines(folder, kind):
    return [json.loads(line) for file in sorted((folder / kind).glob("*.jsonl")) for line in file.open()]


class Grid:
    """Results of one split, by strategy label and budget."""

    def __init__(self, folder):
        self.responses = {line["id"]: line for line in lines(folder, "responses")}
        self.cells = defaultdict(dict)
        for line in lines(folder, "results"):
            self.cells[line["strategy"], line["budget"]][line["problem"]] = line
        self.problems = sorted(self.cells["self", DRAWS])

    def scores(self, label, budget=DRAWS):
        return [self.cells[label, budget][p]["score"] or 0.0 for p in self.problems]

    def tokens(self, label, budget=DRAWS):
        return [self.cells[label, budget][p]["cost"]["generated"] for p in self.problems]

    def draws(self, label, budget=DRAWS):
        return [len(self.cells[label, budget][p]["pool"]) for p in self.problems]

    def rewards(self):
        pools = [self.cells["self", DRAWS][p]["pool"] for p in self.problems]
        return [[self.responses[name]["score"] for name, _ in pool] for pool in pools]

    def weights(self, label):
        return [
            [w if w is not None else -math.inf for _, w in self.cells[label, DRAWS][p]["pool"]] for p in self.problems
        ]


def stop_after(weights, threshold):
    """Draws until one reaches the threshold, for each problem."""
    return [next((i + 1 for i, w in enumerate(pool) if w >= threshold), len(pool)) for pool in weights]


def threshold_for(weights, mean):
    """The highest of the validation scores whose mean number of draws is at most `mean`."""
    for candidate in sorted({w for pool in weights for w in pool}, reverse=True):
        if np.mean(stop_after(weights, candidate)) <= mean:
            return candidate
    return -math.inf


def entries(real, shuffled, look):
    """The grid: the trained verifier, its control with shuffled labels, and what needs no training."""
    found = ["greedy", {"self_consistency": {"budgets": [1, 2, 4, 8, 16]}}]
    found += [{"best_of_n": {"verify": v, "label": v, "budgets": [1, 2, 4, 8, 16]}} for v in ("likelihood", "oracle")]
    for label, adapter, threshold in (("self", "self_eval", real), ("shuffled", "shuffled", shuffled)):
        found += [
            {"best_of_n": {"verify": verify(adapter), "label": label, "budgets": [1, 2, 4, 8, 16]}},
            {"weighted_vote": {"verify": verify(adapter), "label": f"vote {label}"}},
            {
                "adaptive_best_of_n": {
                    "verify": verify(adapter),
                    "threshold": threshold,
                    "schedule": None,
                    "label": f"adaptive {label}",
                }
            },
            {"pruned_best_of_n": {"verify": verify(adapter), "look": look, "drop": 0.5, "label": f"pruned {label}"}},
        ]
    found.append({"best_of_n": {"verify": verify("plain"), "label": "plain"}})
    annealed = {"verify": verify("self_eval"), "threshold": real, "label": "adaptive annealed"}
    by_chance = {"verify": verify("self_eval"), "look": look, "drop": 0.5, "random": True, "label": "pruned by chance"}
    return [*found, {"adaptive_best_of_n": annealed}, {"pruned_best_of_n": by_chance}]


def readings(args, split):
    """The score of every draw of a split at each of FRACTIONS of its tokens: [fraction][problem][draw]."""
    folder = args.folder / split
    opened = open_engine(str(args.folder / "sft"), {"self_eval": str(args.folder / "self_eval")}, EngineSpec(slots=96))
    (ask,) = opened.known["self_eval"]

    def read(problem, budget, rng):
        responses = yield from sample(problem.prompt, budget)
        parts = [prefix(r, f, opened.tokenizer) for f in FRACTIONS for r in responses]
        scores = yield from self_eval(problem, parts, **ask)
        return Answer(responses[0], tuple(parts), tuple(scores), "")

    grid = Grid(folder)
    questions = {p: grid.cells["self", DRAWS][p]["question"] for p in grid.problems}
    cells = [
        Cell(f"{p}/readings", Problem(p, opened.engine.encode(q), str, max_tokens=LENGTH), read, DRAWS)
        for p, q in questions.items()
    ]
    streams = Streams(folder / "streams", "readings")
    results = Schedule({"policy": opened.engine}, streams).run(cells)
    streams.close()
    return [[list(r.answer.weights[k * DRAWS : (k + 1) * DRAWS]) for r in results] for k in range(len(FRACTIONS))]


def prefix(response, fraction, tokenizer):
    tokens = response.tokens[: math.ceil(fraction * len(response.tokens))]
    if len(tokens) == len(response.tokens):
        return response
    text = tokenizer.decode(tokens)
    logprobs = response.logprobs[: len(tokens)]
    return replace(
        response,
        tokens=tokens,
        n_tokens=len(tokens),
        text=text,
        finish="length",
        logprobs=logprobs,
        tempered=logprobs,
    )


def row(name, value, bar="", holds=None, note=""):
    said = {
        "name": name,
        "value": value if isinstance(value, str) else round(float(value), 4),
        "bar": bar,
        "holds": holds,
        "note": note,
    }
    print(json.dumps(said, ensure_ascii=False), flush=True)
    return said


def versus(name, a, b, least, note=""):
    """A paired difference; holds if it is at least `least` with an interval above 0."""
    d = stats.paired_difference(a, b, np.random.default_rng(0))
    told = f"95 % [{d.low:+.3f}, {d.high:+.3f}], p {d.p:.4f}, {len(a)} problems{'; ' + note if note else ''}"
    bar = f"≥ {least:+.2f}, interval above 0" if least else "interval above 0"
    return row(name, d.value, bar, bool(d.value >= least and d.low > 0), told)


def within(scores, rewards):
    return within_question_auroc(scores, rewards, np.random.default_rng(0)).value


def selection(grid, parts):
    rewards = grid.rewards()
    quarter, half, whole = (within(g, rewards) for g in parts)
    pass1 = [float(np.mean(r)) for r in rewards]
    yield row("pass@1 at T = 1", np.mean(pass1), "0.4 … 0.6", bool(0.4 <= np.mean(pass1) <= 0.6))
    yield row("oracle best-of-16", np.mean([max(r) for r in rewards]))
    yield row("within-prompt AUROC, whole responses", whole, "≥ 0.75", bool(whole >= 0.75))
    yield row(
        "within-prompt AUROC at 50 % of tokens", half, "≥ 0.60 and above 25 %", bool(half >= 0.6 and half > quarter)
    )
    yield row("within-prompt AUROC at 25 % of tokens", quarter)
    for label, name in (
        ("likelihood", "likelihood"),
        ("shuffled", "shuffled labels"),
        ("plain", "a question that tells nothing"),
    ):
        yield row(f"within-prompt AUROC, {name}", within(grid.weights(label), rewards))
    yield versus("best-of-16 by g − pass@1", grid.scores("self"), pass1, 0.10)
    yield versus(
        "best-of-16 by g − shuffled-label control",
        grid.scores("self"),
        grid.scores("shuffled"),
        0,
        same(grid, "self", "shuffled"),
    )
    yield versus("best-of-16 by g − by likelihood", grid.scores("self"), grid.scores("likelihood"), 0)
    yield versus(
        "best-of-16 by g − by g where the question tells nothing", grid.scores("self"), grid.scores("plain"), 0
    )
    vote, majority = np.mean(grid.scores("vote self")), np.mean(grid.scores("self_consistency"))
    yield row(
        "g-weighted vote@16 − majority@16",
        vote - majority,
        "≥ 0",
        bool(vote >= majority),
        f"{vote:.3f} against {majority:.3f}",
    )
    yield versus("g-weighted vote@16 − pass@1", grid.scores("vote self"), pass1, 0)
    yield versus(
        "g-weighted vote@16 − the same by shuffled labels",
        grid.scores("vote self"),
        grid.scores("vote shuffled"),
        0,
        same(grid, "vote self", "vote shuffled"),
    )
    gain = np.mean(grid.scores("shuffled")) - np.mean(pass1)
    yield row("control: gain of best-of-16 by shuffled labels", gain, "within ±0.02", bool(abs(gain) <= 0.02))


def same(grid, a, b):
    return f"mean tokens {np.mean(grid.tokens(a)):.1f} and {np.mean(grid.tokens(b)):.1f}"


def allocation(grid):
    rewards = grid.rewards()
    pass1, best = np.mean([np.mean(r) for r in rewards]), np.mean(grid.scores("self"))
    draws, score = np.mean(grid.draws("adaptive self")), np.mean(grid.scores("adaptive self"))
    share = (score - pass1) / (best - pass1) if best > pass1 else math.nan
    fixed = fixed_budget(rewards, grid.weights("self"), draws)
    yield row(
        "adaptive: share of the best-of-16 gain",
        share,
        "≥ 0.55 at ≤ 2.5 draws",
        bool(share >= 0.55 and draws <= 2.5),
        f"{draws:.2f} draws a problem",
    )
    yield row(
        "adaptive − fixed count at the same mean draws",
        score - fixed,
        "> 0",
        bool(score > fixed),
        f"{score:.3f} against {fixed:.3f}",
    )
    annealed = np.mean(grid.scores("adaptive annealed"))
    yield row(
        "adaptive with annealed temperature − pass@1",
        annealed - pass1,
        note=f"{np.mean(grid.draws('adaptive annealed')):.2f} draws",
    )
    yield versus(
        "adaptive − shuffled-label adaptive",
        grid.scores("adaptive self"),
        grid.scores("adaptive shuffled"),
        0,
        same(grid, "adaptive self", "adaptive shuffled"),
    )
    chance = [np.mean(r) for r in rewards]
    used = grid.draws("adaptive self")
    hopeless = [u for u, p in zip(used, chance, strict=True) if p <= 1 / 16]
    middle = [u for u, p in zip(used, chance, strict=True) if 0.2 <= p <= 0.6]
    if hopeless and middle:
        note = f"{len(hopeless)} hopeless and {len(middle)} middling problems"
        ratio = np.mean(hopeless) / np.mean(middle)
        yield row("draws on hopeless ÷ on middling prompts", ratio, "< 1", bool(ratio < 1), note)


def fixed_budget(rewards, weights, mean):
    """Best-of-n by g at a fractional n, between the whole numbers around it."""
    low = int(mean)
    at = [
        np.mean([r[max(range(n), key=lambda i: w[i])] for r, w in zip(rewards, weights, strict=True)])
        for n in (low, low + 1)
    ]
    return float(at[0] + (mean - low) * (at[1] - at[0]))


def pruning(grid):
    pass1 = np.mean([np.mean(r) for r in grid.rewards()])
    best, pruned, chance = (np.mean(grid.scores(label)) for label in ("self", "pruned self", "pruned by chance"))
    kept = (pruned - pass1) / (best - pass1) if best > pass1 else math.nan
    saved = 1 - np.mean(grid.tokens("pruned self")) / np.mean(grid.tokens("self"))
    yield row(
        "pruning half: share of the best-of-16 gain kept",
        kept,
        "≥ 0.70",
        bool(kept >= 0.7),
        f"{saved:.0%} of the tokens saved",
    )
    yield versus(
        "pruned by g − pruned by chance",
        grid.scores("pruned self"),
        grid.scores("pruned by chance"),
        0,
        f"{pruned:.3f} against {chance:.3f}",
    )


def policy(args):
    """Whether the adapter leaves the policy's draws as they are: both are drawn by one fingerprint."""
    prints = {
        json.loads((args.folder / split / "engine.json").read_text())["roles"]["policy"]["fingerprint"]
        for split in ("rollouts", "validation", "test")
    }
    yield row(
        "policy intact: fingerprints of the drawing weights",
        len(prints),
        "1",
        len(prints) == 1,
        "rollouts, validation, test",
    )


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/self_eval"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=60, help="warm-up steps")
    parser.add_argument("--adapter-steps", type=int, help="adapter steps; by default the recipe's epochs")
    parser.add_argument("--train", type=int, default=200, help="training problems of each of the three tasks")
    parser.add_argument("--validation", type=int, default=67)
    parser.add_argument("--test", type=int, default=100)
    return parser.parse_args()


def main():
    args = arguments()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    train(args)
    pools = [
        {"best_of_n": {"verify": verify(adapter), "label": label}}
        for label, adapter in (("self", "self_eval"), ("shuffled", "shuffled"))
    ]
    tuning = Grid(evaluate(args, "validation", args.validation, pools))
    real = threshold_for(tuning.weights("self"), 2.4)
    mean = float(np.mean(stop_after(tuning.weights("self"), real)))
    shuffled = threshold_for(tuning.weights("shuffled"), mean)
    lengths = [
        tuning.responses[name]["n_tokens"]
        for p in tuning.problems
        for name, _ in tuning.cells["self", DRAWS][p]["pool"]
    ]
    look = max(1, int(np.median(lengths)) // 2)
    grid = Grid(evaluate(args, "test", args.test, entries(real, shuffled, look)))
    parts = readings(args, "test")
    rows = [*selection(grid, parts), *allocation(grid), *pruning(grid), *policy(args)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
