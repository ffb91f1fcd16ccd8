"""The generative judge's acceptance experiment on the embedded model and held-out sums.

    python scripts/bench/judge.py [--folder runs/bench/judge] [--json FILE]

Pairs of worked solutions to one sum, one right and one wrong, drawn by the warmed-up policy: of training problems to
learn from, of test problems to measure on, both orders in. The judge learns from traces that a program writes
(recompute, then the verdict), then by reinforcement; its control learns from the same traces with verdicts given out
by chance. Every step goes on where it was. Rows are printed as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import numpy as np
from steps import KEEP_MEMORY, call, overrides
from table import at_least, paired, row, show

from extratime.evaluate.cost import Ledger
from extratime.evaluate.grid import EngineSpec
from extratime.evaluate.program import Answer, Problem, gather
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.statistics.calibration import auroc
from extratime.evaluate.statistics.position_bias import position_bias
from extratime.evaluate.streams import Streams
from extratime.evaluate.tasks.sums import documents
from extratime.evaluate.verifiers.generative import Bench, opinion
from extratime.models.engines.open import open_engine
from extratime.models.judge import Judge
from extratime.models.manifest import write_text
from extratime.models.request import Completion, Prompt, Work
from extratime.train.judge_data import make_pairs, read_graded

TASKS = {"sums_easy": (3, 1), "sums_medium": (2, 2)}
"""With terms and digits."""
WAYS = {"direct": 0, "reasoned": 1}
"""How a greedy verdict comes about, as votes: read at once, or after reasoning."""
RECIPES = Path(__file__).parents[2] / "recipes"
JUDGE = Judge(
    pointwise="Check: {response}\n{problem}",
    pairwise="A: {first}\nB: {second}\n{problem}",
    opener="\nSo:",
    form="pairwise",
    max_tokens=72,
    chat=False,
)
"""As in recipes/judge_sft/sums.yaml."""


def draws(args, split, limit, name):
    """Of problems of a split, into the folder of that name."""
    sets = {"model": str(args.model), "tasks": list(TASKS), "limit": limit, "output": str(args.folder / name)}
    sets["overrides"] = {task: {"test_split": split} for task in TASKS}
    call("extratime.train.rollouts", RECIPES / "rollouts/sums.yaml", *overrides(sets))


def terms(question):
    """The terms of a sum such as "Sum: 13+4-5": 13, +4, -5."""
    return re.findall(r"[+-]?\d+", question.removeprefix("Sum: "))


def worked(question):
    """A sum worked out digit by digit: no line of a candidate is like it, so that there is nothing to copy."""
    first, *rest = terms(question)
    total, lines = int(first), []
    for term in rest:
        result = total + int(term)
        lines.append(f"{total}{term}: {digits(total, int(term))} = {result}")
        total = result
    return "\n".join(lines)


def digits(x, y):
    """Sum of x and y from the last digit on: 98 and 87 make "8+7=15 9+8+1=18", 31 and -36 make "6-1=5 3-3=0"."""
    a, b, step = abs(x), abs(y), added
    if (x < 0) != (y < 0):
        a, b, step = max(a, b), min(a, b), taken
    said, carry = [], 0
    while a or b or not said:
        text, carry = step(a % 10, b % 10, carry)
        said.append(text)
        a, b = a // 10, b // 10
    return " ".join(said)


def added(a, b, carry):
    total = a + b + carry
    return f"{a}+{b}{'+1' * carry}={total}", total // 10


def taken(a, b, borrowed):
    lent = int(a - borrowed < b)
    return f"{a + 10 * lent}-{b}{'-1' * borrowed}={a + 10 * lent - b - borrowed}", lent


def learn_digits(args):
    """The model that judge and control begin with."""
    docs = [doc for shape in TASKS.values() for doc in documents(*shape)["train"]]
    rows = [{"prompt": f"Sum: {d['expression']}", "completion": f"\n{worked(d['expression'])}"} for d in docs]
    learn(args, "sft", RECIPES / "sft/digits.yaml", args.model, "digits", rows)


def traces(args, shuffled):
    """Prompt and completion rows, both forms and both orders: work it out, hold the candidates to it, decide.

    What is worked out is right in the control as well: only its verdicts are given out by chance.
    """
    rng = random.Random(0)
    pairs = make_pairs(read_graded(args.folder / "rollouts/draws.jsonl"), 2, rng)
    rows = []
    for number, pair in enumerate(pairs):
        for place, form in enumerate(("pairwise", "pairwise", "pairwise", "pointwise")):
            prompt, label = pair.prompts(JUDGE, form)[(number + place) % 2]
            texts = (pair.right, pair.wrong) if label == 0 else (pair.wrong, pair.right)
            thought = f"\n{worked(pair.question)}{held(worked(pair.question), texts, form)}"
            label = rng.randrange(2) if shuffled else label
            rows.append({"prompt": prompt, "completion": thought + JUDGE.opener + JUDGE.verdicts(form)[label]})
    rng.shuffle(rows)
    return rows


def held(working, texts, form):
    """What each candidate ends with beside what was worked out, and whether they agree."""
    names, result = {"pairwise": "AB", "pointwise": ["Told"]}[form], working.rpartition(" ")[2]
    told = [text.rpartition("=")[2].strip() for text in texts]
    return "".join(f"\n{n} {t} {result} {'yes' if t == result else 'no'}" for n, t in zip(names, told, strict=False))


def sft(args, name, shuffled=False):
    learn(args, "judge_sft", RECIPES / "judge_sft/sums.yaml", args.folder / "digits", name, traces(args, shuffled))


def learn(args, recipe, config, model, name, rows):
    data = args.folder / f"{name}.jsonl"
    write_text(data, "".join(json.dumps(row) + "\n" for row in rows))
    out = ["--model", model, "--data", data, "--output_dir", args.folder / name]
    call(f"extratime.train.{recipe}", "--config", config, *out, **KEEP_MEMORY)


def grpo(args):
    pairs = ["--draws", args.folder / "rollouts/draws.jsonl", "--output_dir", args.folder / "pairs", "--samples", 0]
    call("extratime.train.judge_data", "--config", RECIPES / "judge_data/sums.yaml", *pairs)
    out = ["--model", args.folder / "sft", "--data", args.folder / "pairs/pairs.jsonl"]
    out += ["--config", RECIPES / "judge_grpo/sums.yaml", "--output_dir", args.folder / "grpo"]
    call("extratime.train.judge_grpo", *out, **KEEP_MEMORY)


def held_out(args):
    """One pair of each test problem that was answered both rightly and wrongly; a random choice of them."""
    rng = random.Random(0)
    made = make_pairs(read_graded(args.folder / "test/draws.jsonl"), 1, rng)
    return rng.sample(made, min(args.pairs, len(made)))


class Judged:
    """What one judge says of test pairs; everything drawn is kept, so asking again costs nothing.

    Args:
        folder: where its draws are kept.
        model: the judge, asked as JUDGE says, whatever its manifest tells.
        pairs: of the test problems.
    """

    def __init__(self, folder, model, pairs):
        self.pairs, self.model, self.folder = pairs, model, folder
        self.opened = open_engine(str(model), {}, EngineSpec(slots=96))
        self.ledger = Ledger()

    def __enter__(self):
        self.streams = Streams(self.folder / self.model.name, "judged")
        return self

    def __exit__(self, *_):
        self.streams.close()
        self.opened.engine.close()

    def opinions(self, form, pairs, votes=0, cues=0, soft=False, temperature=0.0):
        """For each pair, the weights of the first verdict on both prompts: [pair][order][judgement]."""
        bench = Bench(JUDGE, votes, cues, soft, temperature)

        def ask(problem, budget, rng):
            prompts = problem.doc["prompts"]
            found = yield from gather(opinion(prompt, form, bench) for prompt in prompts)
            return Answer(Completion(problem.prompt, "", 0), (), (), json.dumps(found))

        cells = []
        for i, pair in enumerate(pairs):
            doc = {"prompts": [text for text, _ in pair.prompts(JUDGE, form)]}
            cells.append(Cell(str(i), Problem(str(i), Prompt("?", ()), str, doc=doc), ask, 1))
        results = Schedule(self.opened.roles, self.streams, self.ledger).run(cells)
        return [json.loads(result.answer.why) for result in results]

    def verdicts(self, form, pairs, **asked):
        """0, 1 or None for each pair and order; K votes are counted."""
        return [[lean(votes) for votes in orders] for orders in self.opinions(form, pairs, **asked)]


def lean(votes):
    balance = sum(vote - 0.5 for vote in votes)
    return None if balance == 0 else int(balance < 0)


def accuracy(verdicts):
    """The share of right verdicts of each pair; one that is missing counts one half, as a coin would."""
    return [float(np.mean([0.5 if v is None else v == label for label, v in enumerate(pair)])) for pair in verdicts]


def consistent(verdicts):
    return [float(pair == [0, 1]) for pair in verdicts]


def difference(name, a, b, note="", must=None):
    """A paired difference over pairs; `must`: "gain" if its interval is to lie above 0, "none" if it must not."""
    d, interval = paired(a, b)
    told = f"95 % {interval}, {np.mean(a):.3f} against {np.mean(b):.3f}, {len(a)} pairs"
    bar = {"gain": "interval > 0", "none": "interval not > 0", None: ""}[must]
    holds = {"gain": d.low > 0, "none": d.low <= 0, None: None}[must]
    return row(name, d.value, bar, holds, told + (f"; {note}" if note else ""))


def greedy(args, pairs, *names):
    """Verdicts of judges on pairs in both orders, by (judge, way): read at once, or written after reasoning."""
    found = {}
    for name in names:
        with Judged(
            args.folder / "judged", args.model if name == "untrained" else args.folder / name, pairs
        ) as judged:
            for way, votes in WAYS.items():
                found[name, way] = judged.verdicts("pairwise", pairs, votes=votes)
    return found


def supervised(found):
    """The trained judge beside the untrained one, and its control beside a coin."""
    right = {key: accuracy(verdicts) for key, verdicts in found.items()}
    for way in WAYS:
        ours, plain = right["sft", "reasoned"], right["untrained", way]
        yield difference(f"trained judge − untrained, {way}", ours, plain, must="gain")
    for way in WAYS:
        control = right["control", way]
        yield difference(f"control − a coin, {way}", control, [0.5] * len(control), must="none")
    yield difference("trained judge − control, both reasoned", right["sft", "reasoned"], right["control", "reasoned"])
    ours, plain = consistent(found["sft", "reasoned"]), consistent(found["untrained", "direct"])
    yield difference("right in both orders: trained judge − untrained, direct", ours, plain, must="gain")
    for key, verdicts in found.items():
        yield from bias(", ".join(key), verdicts)


def bias(name, verdicts):
    """Position bias and parse rate of one judge."""
    told = position_bias(*zip(*verdicts, strict=True))
    note = f"right first {told.accuracy_first:.3f}, right second {told.accuracy_second:.3f}"
    yield row(f"{name}: consistent accuracy", told.consistent, note=note)
    yield row(f"{name}: flip rate", told.flips)
    yield row(f"{name}: parse rate", told.parsed)


def reinforcement(args, pairs, before):
    """What reinforcement made of verdicts, and of forced thinking."""
    grpo(args)
    after = greedy(args, pairs, "grpo")["grpo", "reasoned"]
    yield from bias("grpo, reasoned", after)
    yield from reinforced(before, after)
    yield from thinking(args, pairs[: args.some])


def reinforced(before, after):
    d = difference("consistent accuracy, SFT → + RL", consistent(after), consistent(before), must="gain")
    yield d | {"bar": "≥ +0.08, interval > 0", "holds": d["holds"] and d["value"] >= 0.08}
    old, new = (position_bias(*zip(*verdicts, strict=True)) for verdicts in (before, after))
    yield row("flip rate, SFT → + RL", new.flips - old.flips, "< 0", new.flips < old.flips)
    yield at_least("parse rate after RL", new.parsed, 0.98)


def thinking(args, pairs):
    """Forced thinking: accuracy after n cues, and which verdicts each further cue turned."""
    slopes = {}
    for name in ("sft", "grpo"):
        with Judged(args.folder / "judged", args.folder / name, pairs) as judged:
            steps = {n: judged.verdicts("pairwise", pairs, votes=1, cues=n) for n in (0, 1, 2, 4)}
        for n, verdicts in steps.items():
            turned = [(steps[0][i][k], verdicts[i][k], k) for i in range(len(verdicts)) for k in (0, 1)]
            lost, won = sum(a == k != b for a, b, k in turned), sum(a != k == b for a, b, k in turned)
            note = f"against no cue: {lost} right → not right, {won} not right → right, of {len(turned)}"
            yield row(f"{name}: accuracy after {n} cues", np.mean(accuracy(verdicts)), note=note)
        slopes[name] = np.subtract(accuracy(steps[2]), accuracy(steps[0])).tolist()
    d = difference("slope of forced thinking (2 cues − none), RL − SFT", slopes["grpo"], slopes["sft"], must="gain")
    yield d | {"note": d["note"] + "; a miss is not replicated at this size"}


def votes(args, pairs, best):
    """K votes, pairwise and pointwise; AUROC of P(Yes)."""
    most = args.votes
    with Judged(args.folder / "judged", args.folder / best, pairs) as judged:
        told = {n: judged.verdicts("pairwise", pairs, votes=n, temperature=1.0, soft=True) for n in (1, most)}
        yield difference(f"{best}, pairwise: {most} votes − 1", *map(accuracy, (told[most], told[1])), must="gain")
        scores = {n: judged.opinions("pointwise", pairs, votes=n, temperature=1.0, soft=True) for n in (0, 1, most)}
        found = {n: area(said) for n, said in scores.items()}
        yield at_least(f"AUROC of P(Yes), {most} reasoned votes", found[most], 0.8)
        yield row("AUROC of P(Yes), one reasoned vote", found[1])
        yield row("AUROC of P(Yes), direct", found[0])
        yield at_least(f"AUROC, {most} votes − direct", found[most] - found[0], 0.03)
        work = judged.ledger.computed.get("judge", Work())
        yield row("judge tokens drawn for these rows", work.decode, note=f"{work.prefill} read, {work.cached} cached")


def area(said):
    """AUROC of mean weights on right against wrong texts; no verdict counts as ½."""
    scores = [np.mean(votes) if votes else 0.5 for orders in said for votes in orders]
    return auroc(np.array(scores), np.array([1.0, 0.0] * len(said)))


def grid(args, best):
    """Best-of-8 by the judge beside likelihood, majority, and majority at the judge's compute."""
    folder = args.folder / "grid"
    many = f"{args.votes} votes"
    ways = {"direct": {}, "1 vote": {"votes": 1}, many: {"votes": args.votes}}
    found = [{"self_consistency": {"budgets": [8, 16, 32]}}]
    found += [{"best_of_n": {"verify": v, "label": v}} for v in ("likelihood", "oracle")]
    found += [
        {"best_of_n": {"verify": {"generative": {"form": "pointwise", **more}}, "label": f"judge, {way}"}}
        for way, more in ways.items()
    ]
    duel = {"form": "pairwise", "votes": 1, "tournament": "knockout", "temperature": 0.0}
    found.append({"best_of_n": {"verify": {"generative": duel}, "label": "judge, knockout"}})
    recipe = {"model": str(args.model), "judge": {"model": str(args.folder / best), "slots": 96}, "tasks": list(TASKS)}
    recipe |= {"limit": args.grid, "chat": False, "budgets": [8], "engine": {"slots": 96}, "strategies": found}
    recipe["output"] = str(folder)
    write_text(args.folder / "grid.yaml", json.dumps(recipe))
    call("extratime.evaluate.cli", "evaluate", args.folder / "grid.yaml", "--no-report")
    lines = [json.loads(line) for line in (folder / "results/0-of-1.jsonl").open()]
    cells = {}
    for line in lines:
        cells.setdefault((line["strategy"], line["budget"]), {})[line["problem"]] = line
    problems = sorted(cells["likelihood", 8])
    scores = {key: [own[p]["score"] or 0.0 for p in problems] for key, own in cells.items()}
    for key, own in cells.items():
        policy, judge = (np.mean([own[p]["cost"][name] for p in problems]) for name in ("generated", "judged"))
        note = f"tokens a problem: {policy:.1f} of the policy, {judge:.1f} of the judge; {len(problems)} problems"
        yield row(f"accuracy, {key[0]} at {key[1]}", np.mean(scores[key]), note=note)
    for key in (("likelihood", 8), ("self_consistency", 8), ("self_consistency", 32)):
        yield difference(
            f"best-of-8 by {many} − {key[0]} at {key[1]}", scores[f"judge, {many}", 8], scores[key], must="gain"
        )
    gain = np.mean(scores[f"judge, {many}", 8]) - np.mean(scores["judge, 1 vote", 8])
    yield at_least(f"best-of-8: {many} − 1 vote", gain, 0.02)


def arguments():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/judge"))
    parser.add_argument("--model", type=Path, default=Path("runs/sums/sft"), help="the warmed-up policy")
    parser.add_argument("--train", type=int, default=500, help="training problems of each task")
    parser.add_argument("--test", type=int, default=240, help="test problems of each task")
    parser.add_argument("--pairs", type=int, default=200, help="test pairs")
    parser.add_argument("--some", type=int, default=100, help="test pairs for votes and forced thinking")
    parser.add_argument("--grid", type=int, default=40, help="test problems of each task for best-of-8")
    parser.add_argument("--votes", type=int, default=8, help="judgements of each response in best-of-8")
    parser.add_argument(
        "--best", choices=["sft", "grpo"], default="grpo", help="the judge to use; sft: no reinforcement"
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = arguments()
    draws(args, "train", args.train, "rollouts")
    learn_digits(args)
    sft(args, "sft")
    sft(args, "control", shuffled=True)
    draws(args, "test", args.test, "test")
    pairs = held_out(args)
    found = greedy(args, pairs, "untrained", "sft", "control")
    rows = list(supervised(found))
    show(rows, args.json)
    for more in (
        reinforcement(args, pairs, found["sft", "reasoned"]) if args.best == "grpo" else (),
        grid(args, args.best),
        votes(args, pairs[: args.some], args.best),
    ):
        rows += more
        show(rows, args.json)


if __name__ == "__main__":
    main()
