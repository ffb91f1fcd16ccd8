"""The process reward model's acceptance experiment on the embedded model and held-out sums.

    python scripts/bench/prm.py [--policy runs/sums/sft] [--folder runs/bench/prm] [--json FILE]

Monte-Carlo labels of the policy's own training solutions, the model they teach, its control with shuffled labels, and
one taught by exact labels of one-digit sums, planted errors among them; then best-of-8 and beam search on test
problems. Exact labels come by rule: a step is right if it and all before it are the worked solution's. Every
stage goes on where it was, and a finished one returns at once.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from steps import KEEP_MEMORY, call, overrides
from table import at_least, paired, row, show

from extratime.evaluate.statistics.calibration import adaptive_ece, auroc, auroc_ci, within_question_auroc
from extratime.evaluate.streams import Streams, reply_key
from extratime.evaluate.tasks.sums import documents
from extratime.models.engines.open import open_replay
from extratime.models.request import Score
from extratime.models.steps import split

TASKS = {"sums_easy": (3, 1), "sums_medium": (2, 2), "sums_hard": (3, 2)}
DRAWS, COMPLETIONS, STEPS = 4, 8, 8
POOL, TIE = 8, 0.05
RECIPES = Path(__file__).parents[2] / "recipes"
MODELS = {
    "prm": [],
    "shuffled": ["--shuffle_labels", "true", "--num_train_epochs", "1"],
    "exact": ["--num_train_epochs", "1", "--learning_rate", "2e-4"],
}
EASY = "sums_easy"


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def solutions():
    """The worked solution of each problem of the tasks, by its prompt; splits share no sum."""
    found = {}
    for terms, digits in TASKS.values():
        for split_ in documents(terms, digits).values():
            found |= {f"Sum: {doc['expression']}\n": doc["solution"].split("\n") for doc in split_}
    return found


def exact(steps, worked):
    """1 for each step up to the first that is not the worked solution's."""
    return [float(steps[: t + 1] == worked[: t + 1]) for t in range(len(steps))]


def exactly(args):
    """Solutions of one-digit sums with exact labels: the policy's own, and worked ones without and with an error."""
    rng, made, worked = random.Random(0), [], solutions()
    for each in lines(args.folder / "labels/steps.jsonl"):
        if each["problem"].startswith(EASY):
            made.append(each | {"labels": exact(each["steps"], worked[each["prompt"]])})
    for doc in list(documents(*TASKS[EASY])["train"])[-args.planted :]:
        right = doc["solution"].split("\n")
        for steps in (right, off(right, rng)):
            made.append({"prompt": f"Sum: {doc['expression']}\n", "steps": steps, "labels": exact(steps, right)})
    rng.shuffle(made)
    file = args.folder / "exact.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in made))
    return file


def off(worked, rng):
    """A worked solution with the result of one step wrong by as much as slips are, and right from there."""
    at, shift, steps = rng.randrange(len(worked)), 0, []
    for i, line in enumerate(worked):
        total, operation, result = re.fullmatch(r"(-?\d+)([+-]\d+)=(-?\d+)", line).groups()
        before = int(total) + shift
        shift += rng.choice([-10, -2, -1, 1, 2, 10]) if i == at else 0
        steps.append(f"{before}{operation}={int(result) + shift}")
    return steps


def draw(args):
    sets = {"model": args.policy, "output": args.folder / "labels", "limit": args.train}
    if not (args.folder / "labels/steps.jsonl").exists():
        call("extratime.train.step_labels", RECIPES / "step_labels/sums.yaml", *overrides(sets))


def train(args, name):
    data = exactly(args) if name == "exact" else args.folder / "labels/steps.jsonl"
    said = ["--config", RECIPES / "prm/sums.yaml", "--output_dir", args.folder / name, "--model", args.policy]
    call("extratime.train.prm", *said, "--data", data, *MODELS[name], "--report_to", "none", **KEEP_MEMORY)


def evaluate(args, name):
    """Best-of-8, a vote and beam search by the model `name`, and what needs none, on test problems; its results."""
    folder = args.folder / f"test-{name}"
    by = {"verify": "reward_model"}
    strategies = [{"best_of_n": by | {"label": "best"}}, {"weighted_vote": by | {"label": "vote"}}]
    if name == "prm":
        strategies.append({"beam_search": by | {"width": 2, "label": "beam"}})
    strategies.append("self_consistency")
    strategies += [{"best_of_n": {"verify": v, "label": v}} for v in ("likelihood", "oracle")]
    recipe = {
        "model": str(args.policy),
        "verifier": {"model": str(args.folder / name), "dtype": "float32"},
        "tasks": [EASY] if name == "exact" else list(TASKS),
        "limit": args.easy if name == "exact" else args.test,
        "chat": False,
        "budgets": [POOL],
        "engine": {"slots": 96},
        "strategies": strategies,
        "output": str(folder),
    }
    (folder / "streams").mkdir(parents=True, exist_ok=True)
    drawn = args.folder / "test-prm/streams/0-of-1.jsonl"
    if name != "prm":
        shutil.copy(drawn, folder / "streams/drawn.jsonl")
    file = args.folder / f"test-{name}.yaml"
    file.write_text(json.dumps(recipe))
    if not (folder / "results").exists():
        call("extratime.evaluate.cli", "evaluate", file, "--no-report")
    return Grid(folder)


class Grid:
    """Results of a test run, by strategy label."""

    def __init__(self, folder):
        self.cells = defaultdict(dict)
        self.responses = {line["id"]: line for line in lines(folder / "responses/0-of-1.jsonl")}
        for line in lines(folder / "results/0-of-1.jsonl"):
            self.cells[line["strategy"]][line["problem"]] = line
        self.problems = sorted(self.cells["best"])

    def scores(self, label):
        return [self.cells[label][p]["score"] or 0.0 for p in self.problems]

    def pools(self, label):
        """[problem][draw] of (response, weight)."""
        return [[(self.responses[i], w) for i, w in self.cells[label][p]["pool"]] for p in self.problems]

    def pass1(self):
        return [np.mean([r["score"] for r, _ in pool]) for pool in self.pools("best")]

    def by_chance(self):
        """What the highest of scores that mean nothing chooses: like texts have like scores, so one text of all."""
        texts = [{r["text"]: r["score"] for r, _ in pool if r["finish"] == "eos"} for pool in self.pools("best")]
        return [np.mean(list(each.values())) if each else 0.0 for each in texts]

    def questions(self):
        return [self.cells["best"][p]["question"] for p in self.problems]


def labels(args, worked):
    """Monte-Carlo labels of steps that were continued, beside exact ones and how the responses themselves ended."""
    rows = lines(args.folder / "labels/steps.jsonl")
    inner = [
        (label, right, each["reward"])
        for each in rows
        for label, right in list(zip(each["labels"], exact(each["steps"], worked[each["prompt"]]), strict=True))[:-1]
    ]
    soft, right, end = (np.array(column) for column in zip(*inner, strict=True))
    note = f"{len(inner)} inner steps of {len(rows)} responses, K = {COMPLETIONS}"
    gap, error = (soft - end).mean(), (soft - end).std() / np.sqrt(len(soft))
    name = "Monte-Carlo labels − outcomes of the same responses"
    yield row(name, gap, f"0 ± {3 * error:.3f} (3 SE)", abs(gap) <= 3 * error, note)
    yield row("Monte-Carlo label after a wrong step, mean", soft[right == 0].mean())
    yield row("Monte-Carlo label after a right step, mean", soft[right == 1].mean())
    yield row("Monte-Carlo labels against exact ones, AUROC", auroc(soft, right))
    yield row("hard labels that are the exact ones", np.mean((soft > 0) == (right == 1)))
    missing = sum(label is None for each in rows for label in each["labels"])
    yield row("steps without a label", missing, "0", missing == 0)


def weighed(args, name, grid):
    """Each step of the distinct test draws of a problem: [problem][(reward, exact label, place, last place)]."""
    folder, worked, found = args.folder / f"test-{name}", solutions(), []
    opened, values = open_replay(folder), Streams(folder / "streams").values
    for question, pool in zip(grid.questions(), grid.pools("best"), strict=True):
        found.append([])
        for text in dict.fromkeys(r["text"] for r, _ in pool if r["finish"] == "eos"):
            right = exact(split(text, "\n"), worked[question])
            rewards, _ = values[reply_key(opened.verifier, Score(opened.engine.encode(question), text))]
            steps = zip(rewards, right, strict=True)
            found[-1] += [(reward, label, t, len(right) - 1) for t, (reward, label) in enumerate(steps)]
    return [each for each in found if each]


def tied_auroc(reward, right):
    """AUROC where a lead of less than TIE counts for nothing: what is nearly constant ranks nothing."""
    lead = reward[right == 1][:, None] - reward[right == 0][None]
    return (lead >= TIE).mean() + (np.abs(lead) < TIE).mean() / 2


def ranking(name, found):
    steps = np.array([step for each in found for step in each])
    reward, right, place = steps[:, 0], steps[:, 1], steps[:, 2]
    area = auroc_ci([[s[0] for s in e] for e in found], [[s[1] for s in e] for e in found], np.random.default_rng(0))
    note = f"95 % [{area.low:.3f}, {area.high:.3f}], {len(steps)} steps, {right.mean():.0%} right"
    last = [np.array([(s[0], s[1]) for s in each if s[2] == s[3]]).T for each in found]
    within = within_question_auroc([x[0] for x in last], [x[1] for x in last], np.random.default_rng(0))
    told = f"95 % [{within.low:.3f}, {within.high:.3f}], {within.questions} problems with both kinds"
    if name == "shuffled":
        tied = tied_auroc(reward, right)
        yield row(f"shuffled: AUROC, leads under {TIE} tie", tied, "0.5 ± 0.05", abs(tied - 0.5) <= 0.05)
        holds = within.low <= 0.5 <= within.high
        yield row("shuffled: AUROC within problems, last steps", within.value, "interval around 0.5", holds, told)
        spread = f"standard deviation of rewards {reward.std():.3f}; {note}"
        yield row("shuffled: AUROC of steps, without ties", area.value, note=spread)
        return
    yield at_least(f"{name}: AUROC of steps", area.value, 0.9, note)
    yield row(f"{name}: AUROC, leads under {TIE} tie", tied_auroc(reward, right))
    yield row(f"{name}: AUROC within problems, last steps", within.value, note=told)
    best = max(np.mean((reward >= cut) == right) for cut in np.quantile(reward, np.linspace(0, 1, 101)))
    note = f"{best:.3f} at the best cut"
    yield at_least(f"{name}: step accuracy at ½", np.mean((reward >= 0.5) == right), 0.85, note)
    yield row(f"{name}: expected calibration error", adaptive_ece(reward, right))
    for t in range(2):
        at = place == t
        yield row(f"{name}: AUROC of step {t + 1}", auroc(reward[at], right[at]), note=f"{at.sum()} steps")
    slope = np.polyfit(place, reward - right, 1)[0]
    yield row(f"{name}: slope of (reward − exact) against place", slope, "within ±0.05", abs(slope) <= 0.05)


def versus(name, a, b, bar="interval > 0", least=None, note=""):
    d, interval = paired(a, b)
    told = f"95 % {interval}, p {d.p:.4f}, {len(a)} problems{'; ' + note if note else ''}"
    holds = d.low > 0 if least is None else d.value >= least
    return row(name, d.value, bar, holds, told)


def use(name, grid):
    mine, pass1, chance = grid.scores("best"), grid.pass1(), grid.by_chance()
    if name == "shuffled":
        d, interval = paired(mine, chance)
        told = f"95 % {interval}; {np.mean(mine):.3f}, pass@1 {np.mean(pass1):.3f}"
        yield row(f"shuffled: best-of-{POOL} − by chance", d.value, "interval around 0", d.low <= 0 <= d.high, told)
        moved = np.mean(grid.scores("vote")) - np.mean(grid.scores("self_consistency"))
        name = f"shuffled: weighted vote({POOL}) − majority({POOL})"
        yield row(name, moved, "within ±0.02", abs(moved) <= 0.02)
        return
    majority, likelihood, oracle = (grid.scores(label) for label in ("self_consistency", "likelihood", "oracle"))
    yield row(f"{name}: pass@1 of its test problems", np.mean(pass1), note=f"{len(pass1)} problems")
    yield row(f"{name}: one of the distinct responses by chance", np.mean(chance))
    for label, scores in ((f"majority({POOL})", majority), ("likelihood", likelihood), ("oracle", oracle)):
        yield row(f"{name}: {label}", np.mean(scores))
    yield versus(f"{name}: best-of-{POOL} − majority({POOL})", mine, majority, "≥ 0", 0.0, f"{np.mean(mine):.3f}")
    yield versus(f"{name}: best-of-{POOL} − pass@1", mine, pass1)
    yield versus(f"{name}: best-of-{POOL} − by chance", mine, chance)
    yield versus(f"{name}: best-of-{POOL} − by likelihood", mine, likelihood)
    gap = np.mean(oracle) - np.mean(mine)
    yield row(f"{name}: oracle − best-of-{POOL}", gap, "≥ 0", gap >= 0)
    yield versus(f"{name}: weighted vote({POOL}) − majority({POOL})", grid.scores("vote"), majority, "≥ 0", 0.0)
    if "beam" in grid.cells:
        beam = grid.scores("beam")
        yield versus(f"{name}: beam({POOL}, 2) − pass@1", beam, pass1, note=f"{np.mean(beam):.3f}")
        yield versus(f"{name}: beam({POOL}, 2) − majority({POOL})", beam, majority, "≥ 0", 0.0)


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", type=Path, default=Path("runs/sums/sft"))
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/prm"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--train", type=int, default=100, help="training problems of each of the three tasks")
    parser.add_argument("--planted", type=int, default=600, help="worked one-digit sums for the exact labels")
    parser.add_argument("--test", type=int, default=70, help="test problems of each task")
    parser.add_argument("--easy", type=int, default=120, help="test problems of the model of exact labels")
    return parser.parse_args()


def main():
    args = arguments()
    args.folder, args.policy = args.folder.resolve(), args.policy.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    draw(args)
    rows = [*labels(args, solutions())]
    for name in args.models:
        train(args, name)
        grid = evaluate(args, name)
        rows += [*ranking(name, weighed(args, name, grid)), *use(name, grid)]
    show(rows, args.json)


if __name__ == "__main__":
    main()
