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
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from steps import call, overrides
from table import at_least, at_most, paired, row, show

from extratime.evaluate.grid import EngineSpec
from extratime.evaluate.program import Answer, Problem, sample
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.statistics.calibration import auroc, within_question_auroc
from extratime.evaluate.streams import Streams
from extratime.evaluate.verifiers.self_eval import self_eval
from extratime.models.engines.open import open_engine

TASKS = ["sums_easy", "sums_medium", "sums_hard"]
DRAWS, FRACTIONS, LENGTH = 16, (0.25, 0.5, 1.0), 32
TIE = 0.05
ADAPTERS = {
    "self_eval": [],
    "shuffled": ["--shuffle_labels", "true"],
    "plain": ["--question", "\nStart over?"],
}
RECIPES = Path(__file__).parents[2] / "recipes"


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

    def pass1(self):
        return [float(np.mean(rewards)) for rewards in self.rewards()]

    def rewards(self):
        pools = [self.cells["self", DRAWS][p]["pool"] for p in self.problems]
        return [[self.responses[name]["score"] for name, _ in pool] for pool in pools]

    def first_of_the_best(self, label):
        """The score of the first draw whose weight is within TIE of the highest, for each problem."""
        chosen = zip(self.rewards(), self.weights(label), strict=True)
        return [rewards[next(i for i, w in enumerate(own) if w >= max(own) - TIE)] for rewards, own in chosen]

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


def versus(name, a, b, least=0.0, note=""):
    """A paired difference; holds if it is at least `least` with an interval above 0."""
    d, interval = paired(a, b)
    told = f"95 % {interval}, p {d.p:.4f}, {len(a)} problems{'; ' + note if note else ''}"
    bar = f"≥ {least:+.2f}, interval > 0" if least else "interval > 0"
    return row(name, d.value, bar, d.value >= least and d.low > 0, told)


def against_control(grid, name, label, control, scores=None):
    """A strategy beside its control, whose tokens are told; by the grid's own scores unless others are given."""
    ours, theirs = scores or (grid.scores(label), grid.scores(control))
    tokens = [np.mean(grid.tokens(each)) for each in (label, control)]
    return versus(name, ours, theirs, note="mean tokens {:.1f} and {:.1f}".format(*tokens))


def within(scores, rewards):
    return within_question_auroc(scores, rewards, np.random.default_rng(0)).value


def ranking(grid, parts):
    rewards = grid.rewards()
    quarter, half, whole = (within(g, rewards) for g in parts)
    yield at_least("AUROC within prompts, whole responses", whole, 0.75)
    yield at_least("AUROC within prompts at 50 % of tokens", half, 0.6)
    yield row("AUROC within prompts at 25 % of tokens", quarter, "< that at 50 %", quarter < half)
    yield row("AUROC within prompts, likelihood", within(grid.weights("likelihood"), rewards))
    yield row("AUROC within prompts, shuffled labels", within(grid.weights("shuffled"), rewards))
    yield row("AUROC within prompts, a question that tells nothing", within(grid.weights("plain"), rewards))
    yield row("AUROC over all responses, g", auroc(np.concatenate(parts[-1]), np.concatenate(rewards)))


def selection(grid):
    rewards, pass1 = grid.rewards(), grid.pass1()
    mean, likelihood, g = np.mean(pass1), grid.scores("likelihood"), grid.scores("self")
    yield row("pass@1 at T = 1", mean, "0.4 … 0.6", 0.4 <= mean <= 0.6)
    yield row("oracle best-of-16", np.mean([max(r) for r in rewards]))
    yield versus("best-of-16 by g − pass@1", g, pass1, 0.10)
    yield against_control(grid, "best-of-16 by g − by shuffled labels", "self", "shuffled")
    yield versus("best-of-16 by likelihood − pass@1", likelihood, pass1)
    yield versus("best-of-16 by g − by likelihood", g, likelihood)
    yield versus("best-of-16 by g − where the question tells nothing", g, grid.scores("plain"))
    gain = np.mean(grid.scores("shuffled")) - mean
    yield row("best-of-16 by shuffled labels − pass@1", gain, "within ±0.02", abs(gain) <= 0.02)


def ties(grid):
    """Best-of-16 where a lead of less than TIE counts for nothing, so that what is nearly constant chooses nothing."""
    ours, control, pass1 = grid.first_of_the_best("self"), grid.first_of_the_best("shuffled"), grid.pass1()
    spread = {label: np.median([max(w) - min(w) for w in grid.weights(label)]) for label in ("self", "shuffled")}
    note = f"median spread of g within a problem {spread['shuffled']:.3f}, trained {spread['self']:.3f}"
    gain = np.mean(control) - np.mean(pass1)
    yield row("control: gain by shuffled labels, ties", gain, "within ±0.02", abs(gain) <= 0.02, note)
    yield versus("best-of-16 by g − pass@1, ties", ours, pass1)
    name = "best-of-16 by g − by shuffled labels, ties"
    yield against_control(grid, name, "self", "shuffled", (ours, control))


def voting(grid):
    vote, majority = grid.scores("vote self"), grid.scores("self_consistency")
    note = f"{np.mean(vote):.3f} against {np.mean(majority):.3f}"
    yield at_least("g-weighted vote@16 − majority@16", np.mean(vote) - np.mean(majority), 0, note)
    yield versus("g-weighted vote@16 − pass@1", vote, grid.pass1())
    yield against_control(grid, "g-weighted vote@16 − by shuffled labels", "vote self", "vote shuffled")
    moved = np.mean(grid.scores("vote shuffled")) - np.mean(majority)
    yield row("control: vote@16 by shuffled labels − majority@16", moved, "within ±0.02", abs(moved) <= 0.02)


def allocation(grid):
    rewards, mean = grid.rewards(), np.mean(grid.pass1())
    best, used = np.mean(grid.scores("self")), grid.draws("adaptive self")
    draws, score = np.mean(used), np.mean(grid.scores("adaptive self"))
    fixed = fixed_budget(rewards, grid.weights("self"), draws)
    yield at_least("adaptive: share of the best-of-16 gain", share(score, mean, best), 0.55, f"{draws:.2f} draws")
    yield at_most("adaptive: mean draws", draws, 2.5)
    note = f"{score:.3f} against {fixed:.3f}"
    yield row("adaptive − fixed count at the same mean draws", score - fixed, "> 0", score > fixed, note)
    note = f"{np.mean(grid.draws('adaptive annealed')):.2f} draws"
    yield row("adaptive, annealed − pass@1", np.mean(grid.scores("adaptive annealed")) - mean, note=note)
    yield versus("adaptive − pass@1", grid.scores("adaptive self"), grid.pass1())
    yield against_control(grid, "adaptive − by shuffled labels", "adaptive self", "adaptive shuffled")
    hopeless = [u for u, r in zip(used, rewards, strict=True) if np.mean(r) <= 1 / 16]
    middle = [u for u, r in zip(used, rewards, strict=True) if 0.2 <= np.mean(r) <= 0.6]
    ratio = np.mean(hopeless) / np.mean(middle) if hopeless and middle else math.nan
    note = f"{len(hopeless)} hopeless and {len(middle)} middling problems"
    yield row("draws on hopeless ÷ on middling prompts", ratio, "< 1", ratio < 1, note)


def share(score, least, most):
    """Of the way from `least` to `most`, how much `score` went; NaN where there is none."""
    return (score - least) / (most - least) if most > least else math.nan


def fixed_budget(rewards, weights, mean):
    """Best-of-n by g at a fractional n, between the whole numbers around it."""
    low = int(mean)
    at = [
        np.mean([r[max(range(n), key=lambda i: w[i])] for r, w in zip(rewards, weights, strict=True)])
        for n in (low, low + 1)
    ]
    return float(at[0] + (mean - low) * (at[1] - at[0]))


def pruning(grid):
    best, pruned, chance = (np.mean(grid.scores(label)) for label in ("self", "pruned self", "pruned by chance"))
    saved = 1 - np.mean(grid.tokens("pruned self")) / np.mean(grid.tokens("self"))
    kept = share(pruned, np.mean(grid.pass1()), best)
    yield at_least("pruning half: share of the best-of-16 gain kept", kept, 0.7, f"{saved:.0%} of the tokens saved")
    note = f"{pruned:.3f} against {chance:.3f}"
    yield versus("pruned by g − by chance", grid.scores("pruned self"), grid.scores("pruned by chance"), note=note)


def policy(args):
    """Whether the adapter leaves the policy's draws as they are: both are drawn by one fingerprint."""
    prints = {
        json.loads((args.folder / split / "engine.json").read_text())["roles"]["policy"]["fingerprint"]
        for split in ("rollouts", "validation", "test")
    }
    note = "rollouts, validation, test"
    yield row("policy intact: fingerprints of the drawing weights", len(prints), "1", len(prints) == 1, note)


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
    rows = [*ranking(grid, parts)]
    for part in (selection, ties, voting, allocation, pruning):
        rows += part(grid)
    rows += policy(args)
    show(rows, args.json)
    for each in rows:
        print(json.dumps(each, ensure_ascii=False))


if __name__ == "__main__":
    main()
