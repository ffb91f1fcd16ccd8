"""MRT-STaR's acceptance experiment on the embedded model and held-out problems of signs.

    python scripts/bench/mrt.py [--folder runs/bench/mrt] [--json FILE]

Warm-up, traces of training problems, three sets of rows (whole right traces, the earliest best prefix, a prefix by
shuffled Ĵ), one supervised run on each, then traces and forced answers on test problems. Every step goes on where it
was. The baseline learns from more traces: as many as make up for the tokens of MRT's forced answers.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import pearsonr
from steps import KEEP_MEMORY, call, overrides
from table import at_least, at_most, row, show

from extratime.evaluate.algorithms.forcing import force
from extratime.evaluate.schedule import Schedule
from extratime.evaluate.statistics.questions import paired_difference
from extratime.evaluate.statistics.regret import normalised_regret, success_at
from extratime.evaluate.statistics.resampling import resampled
from extratime.evaluate.streams import Streams
from extratime.models.engines.open import open_recipe
from extratime.train import mrt_star

RECIPES = Path(__file__).parents[2] / "recipes"
ARMS = {"star": "outcome", "mrt": "progress", "shuffled": "shuffle"}
LONGEST = 96
SIGNS = re.compile(r"\d[+-]\d[+-]\d")


def lines(file):
    return [json.loads(line) for line in file.open()]


def rollouts(model, output, limit, split):
    sets = {"model": model, "output": output, "limit": limit, "overrides.signs.test_split": split}
    if not (output / "draws.jsonl").exists():
        call("extratime.train.rollouts", RECIPES / "rollouts/signs.yaml", *overrides(sets))


def prefixes(folder, output, select="progress", traces=None):
    words = ["--config", RECIPES / "mrt_star/signs.yaml", "--rollouts", folder, "--output_dir", output]
    if not (output / "rows.jsonl").exists():
        call("extratime.train.mrt_star", *words, "--select", select, *(["--traces", traces] if traces else []))


def warm_up(args):
    f = args.folder
    said = ["--config", RECIPES / "sft/signs.yaml", "--output_dir", f / "warm_up", "--report_to", "none"]
    call("extratime.train.sft", *said, "--max_steps", args.warm_up, **KEEP_MEMORY)
    rollouts(f / "warm_up", f / "rollouts", args.train, "train")


def generated(draws):
    return sum(len(draw["logprobs"]) for draw in draws)


def same_tokens(args):
    """Traces for the baseline, their tokens, and those of MRT's traces and answers: the same, if there are enough."""
    folder = args.folder / "rollouts"
    draws, told = lines(folder / "draws.jsonl"), lines(args.folder / "mrt/prefixes.jsonl")
    asked, again = ({(r["problem"], r["prefix"]): r["drawn"] for r in told if r["kept"] >= kept} for kept in (0, 1))
    spent = generated(draws[: args.traces]) + sum(asked.values()) + sum(again.values())
    most = int(np.searchsorted(np.cumsum([len(draw["logprobs"]) for draw in draws]), spent)) + 1
    most = min(most, len(draws))
    return most, generated(draws[:most]), spent


def learn(args):
    f = args.folder
    for name in ("mrt", "shuffled"):
        prefixes(f / "rollouts", f / name, ARMS[name], args.traces)
    most, _, _ = same_tokens(args)
    prefixes(f / "rollouts", f / "star", ARMS["star"], most)
    for name in ARMS:
        said = ["--config", RECIPES / "sft/mrt_star.yaml", "--model", f / "warm_up", "--report_to", "none"]
        said += ["--data", f / name / "rows.jsonl", "--output_dir", f / name / "sft", "--max_steps", args.steps]
        call("extratime.train.sft", *said, **KEEP_MEMORY)


def test(args):
    for name in ("warm_up", *ARMS):
        model = args.folder / ("warm_up" if name == "warm_up" else f"{name}/sft")
        rollouts(model, args.folder / "test" / name, args.test, "test")
        prefixes(args.folder / "test" / name, args.folder / "test" / name / "forced", traces=4 * args.curves)


class Arm:
    """What one policy says on the test problems, by problem."""

    def __init__(self, folder):
        self.draws, self.curves = defaultdict(list), defaultdict(list)
        for draw in lines(folder / "draws.jsonl"):
            self.draws[draw["problem"]].append(draw)
        for record in lines(folder / "forced/prefixes.jsonl"):
            if record["j"] == 0:
                self.curves[record["problem"]].append([])
            curve = self.curves[record["problem"]][-1]  # answers differ in length, so a short episode may end earlier
            curve.append((max(record["tokens"], curve[-1][0] if curve else 0), record["success"]))

    def accuracy(self):
        return [np.mean([draw["reward"] for draw in own]) for own in self.draws.values()]

    def tokens(self):
        return [np.mean([len(draw["logprobs"]) for draw in own]) for own in self.draws.values()]

    def redundant(self):
        """Attempts after a right one, and all attempts, by problem."""
        return [np.mean([repeats(draw) for draw in own], axis=0) for own in self.draws.values()]

    def first(self):
        return [np.mean([attempts(draw)[0] for draw in own]) for own in self.draws.values()]

    def regret(self, budgets):
        return [np.mean([normalised_regret(c, b) for c in own for b in budgets]) for own in self.curves.values()]

    def success_at(self, tokens):
        return float(np.mean([np.mean([success_at(c, tokens) for c in own]) for own in self.curves.values()]))


def attempts(draw):
    """Which attempts of a trace have the right signs."""
    *tried, _ = draw["response"].split("\n\n") if "Answer:" in draw["response"] else [draw["response"], ""]
    target = int(draw["prompt"].rpartition("=")[2])
    return [bool(found := SIGNS.search(attempt)) and eval(found[0]) == target for attempt in tried] or [False]


def repeats(draw):
    right = attempts(draw)
    after = len(right) - right.index(True) - 1 if True in right else 0
    return after, len(right)


def ratio(a, b, rng):
    """Mean of a ÷ mean of b over the same questions, with its 95 % bootstrap interval."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    draws = np.concatenate([(counts @ a) / (counts @ b) for counts in resampled(len(a), 10_000, rng)])
    return a.mean() / b.mean(), *np.quantile(draws, (0.025, 0.975))


def noise(args):
    """Correlation of Ĵ from 8 and from 64 forced answers, drawn apart, on contexts of the training traces."""
    folder = args.folder / "rollouts"
    tasks = mrt_star.open_tasks(folder)
    opened, streams = open_recipe(tasks.recipe), Streams(args.folder / "noise", "0")
    settings = mrt_star.parse(["--config", str(RECIPES / "mrt_star/signs.yaml"), "--rollouts", str(folder)])
    found = {}
    for draw in mrt_star.read_draws(folder):
        for context in mrt_star.contexts(draw, tasks, settings, opened):
            found.setdefault(context.key, context)
    rng = np.random.default_rng(0)
    chosen = [list(found.values())[i] for i in rng.choice(len(found), args.contexts, replace=False)]
    schedule, law = Schedule(opened.roles, streams), (settings.max_tokens, tasks.recipe.sampling)
    told = []
    for replicate, k in enumerate((8, 64)):
        answers = force(schedule, chosen, k, *law, replicate=replicate)
        told.append([context.success(said) for context, said in zip(chosen, answers, strict=True)])
    streams.close()
    return pearsonr(*told).statistic, len(chosen)


def rows(args):
    arms = {name: Arm(args.folder / "test" / name) for name in ("warm_up", *ARMS)}
    rng = np.random.default_rng(0)
    yield row("first attempt right, warm-up", np.mean(arms["warm_up"].first()), "0.35–0.5")
    yield at_least("Ĵ (K = 8) against Ĵ (K = 64), Pearson", *noise_row(args))
    most, tokens, spent = same_tokens(args)
    note = f"{args.traces} traces and their forced answers; the baseline has {most} traces of {tokens} tokens"
    yield row("tokens generated for MRT-STaR's rows", spent, note=note)
    yield from accuracies(arms, LONGEST)
    yield from beside("MRT-STaR ÷ STaR", arms["mrt"], arms["star"], arms["warm_up"], LONGEST, rng)
    yield control(arms["shuffled"], arms["star"], rng)


def budgets(longest):
    return longest / 4, longest / 2, longest


def accuracies(arms, longest):
    for name, arm in arms.items():
        note = f"{np.mean(arm.tokens()):.1f} tokens, nR {np.mean(arm.regret(budgets(longest))):.3f}"
        yield row(f"accuracy of a whole trace, {name}", np.mean(arm.accuracy()), note=note)


def beside(pair, mrt, base, start, longest, rng):
    """MRT beside what learns from outcomes alone, both from the same start; traces have `longest` tokens at most."""
    value, low, high = ratio(mrt.tokens(), base.tokens(), rng)
    yield at_most(f"mean tokens, {pair}", value, 0.8, f"[{low:.3f}, {high:.3f}]")
    gap = paired_difference(mrt.accuracy(), base.accuracy(), rng)
    told = f"[{gap.low:+.3f}, {gap.high:+.3f}], p {gap.p:.3f}"
    yield at_least(f"accuracy, {pair.replace('÷', '−')}", gap.value, -0.02, told)
    yield reach(mrt, base, pair, longest)
    value, low, high = ratio(*(arm.regret(budgets(longest)) for arm in (mrt, base)), rng)
    yield at_most(f"normalised regret, {pair}", value, 1.05, f"[{low:.3f}, {high:.3f}]; a win below 1")
    ours, theirs, before = (np.divide(*np.mean(arm.redundant(), axis=0)) for arm in (mrt, base, start))
    note = f"{ours:.3f} against {theirs:.3f}; warm-up {before:.3f}"
    yield at_most(f"attempts after a right one, {pair}", ours / theirs, 0.7, note)


def noise_row(args):
    value, count = noise(args)
    return value, 0.8, f"{count} contexts"


def reach(mrt, star, pair, longest):
    """Tokens at which the forced-answer curve comes to the baseline's accuracy less a point."""
    bar = star.success_at(longest) - 0.01
    needed = [next((x for x in range(1, 4 * longest) if arm.success_at(x) >= bar), None) for arm in (mrt, star)]
    name = f"tokens to the baseline's accuracy − 0.01, {pair}"
    if needed[0] is None:
        return row(name, None, "≤ 0.8", False, f"never reaches {bar:.3f}")
    return at_most(name, needed[0] / needed[1], 0.8, f"{needed[0]} and {needed[1]} tokens to {bar:.3f}")


def control(shuffled, star, rng):
    tokens, _, _ = ratio(shuffled.tokens(), star.tokens(), rng)
    gap = paired_difference(shuffled.accuracy(), star.accuracy(), rng)
    note = f"{tokens:.3f} of the tokens; accuracy {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
    met = tokens <= 0.8 and gap.value >= -0.02
    return row("control: shuffled Ĵ saves tokens at equal accuracy", float(met), "0", not met, note)


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/mrt"))
    parser.add_argument("--warm_up", type=int, default=70, help="steps")
    parser.add_argument("--train", type=int, default=320, help="problems with four traces each")
    parser.add_argument("--traces", type=int, default=400, help="that MRT cuts")
    parser.add_argument("--steps", type=int, default=20, help="of each supervised run")
    parser.add_argument("--test", type=int, default=100, help="problems with four traces each")
    parser.add_argument("--curves", type=int, default=40, help="test problems whose traces get forced answers")
    parser.add_argument("--contexts", type=int, default=100)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    warm_up(args)
    learn(args)
    test(args)
    show(list(rows(args)), args.json)


if __name__ == "__main__":
    main()
