"""`extratime tune FILE`: search strategies, options and architectures, without believing the winner's own number.

The file is a recipe in which values may be spaces (`spaces.py`), with a section `tune`. A trial takes
one of the strategies, fills in its spaces and runs on the tuning half of the documents; all trials read the same
draws. Optuna's TPE proposes. The first strategy, every space at its start, is what has to be beaten; what takes more
tokens than it does is no candidate.

The best of many is flattered by the luck that made it best. So the winner is run against the first on a quarter of the
documents that the search never saw, and taken only where it is better by a paired test; and the last quarter is shown
through a guard alone, Thresholdout or on few documents a Ladder (`holdout.py`).

    OUTPUT/study.jsonl     every trial, kept as it goes: the same command goes on from there
    OUTPUT/tuned.json      what was found
    OUTPUT/holdout.json    what the holdout has given away
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from extratime.evaluate.grid import columns, parse, read_raw
from extratime.evaluate.named import RecipeError
from extratime.evaluate.report.leaderboard import cells
from extratime.evaluate.report.read import read
from extratime.evaluate.report.words import p_value, percent, short
from extratime.evaluate.statistics.arrays import Array
from extratime.evaluate.statistics.questions import Difference, paired_difference
from extratime.evaluate.tuning.holdout import Holdout, Told
from extratime.evaluate.tuning.study import (
    Candidate,
    Evaluate,
    Outcome,
    Settings,
    best_of,
    counted,
    open_study,
    search,
)
from extratime.models.manifest import write_json
from extratime.models.paths import digest

PARTS = {"tuning": (0, 2), "tuning-3": (0, 6), "tuning-9": (0, 18), "validation": (1, 4), "holdout": (3, 4)}
"""Documents of each part, as shards: every second one (a third and a ninth of those), and twice every fourth."""
LEVEL = 0.1
"""Two-sided p up to which the winner counts as better: one in twenty searches among equals ends with a change."""


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate, with its accuracy and mean tokens on the tuning part."""

    candidate: Candidate
    accuracy: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search came to.

    Attributes:
        trials, failed: candidates that ran, and those whose options could not be.
        first: what had to be beaten.
        best: of those within its tokens; its accuracy is flattered.
        gain: of the best over the first on the validation part; None where it is the first.
        taken: whether the best is taken in its place.
        holdout: by "first" and "best", accuracy on the holdout as its guard tells it; "best" only if it was taken.
        left: corrections that the holdout still gives; None from a ladder, which has no budget.
    """

    trials: int
    failed: int
    first: Found
    best: Found
    gain: Difference | None
    taken: bool
    holdout: dict[str, Told]
    left: int | None


def tune(file: Path, overrides: Sequence[str] = ()) -> Tuned:
    """Run a search from its file, or go on with it.

    Args:
        file: a recipe with spaces and a section `tune`.
        overrides: `key=value`, as for recipes.

    Raises:
        RecipeError: the file says something that can't be meant, or the output holds another file's search.
    """
    raw = read_raw(file, overrides)
    if "output" not in raw or not isinstance(raw.get("strategies"), list) or not raw["strategies"]:
        raise RecipeError(f"{file}: a recipe with an output and a list of strategies is expected")
    try:
        settings = Settings(**raw.pop("tune", None) or {})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{file}: tune: {error}") from error
    folder = Path(raw.pop("output"))
    study = open_study(folder / "study.jsonl", digest(raw, settings.seed))
    return finish(raw, settings, study, lambda candidates, part: run(candidates, part, folder), folder)


def finish(raw: Mapping[str, Any], settings: Settings, study: optuna.Study, evaluate: Evaluate, folder: Path) -> Tuned:
    """Search, try the best on the validation part, and show the holdout through its guard; see `tune`."""
    trials = search(raw, settings, study, evaluate)
    first, best = (_found(trial) for trial in (trials[0], best_of(trials, settings.tokens)))
    pair = [first.candidate] if best == first else [first.candidate, best.candidate]
    seen = evaluate(pair, "validation")
    gain = better(seen[-1].right, seen[0].right) if len(pair) > 1 else None
    taken = gain is not None and gain.value > 0 and gain.p <= LEVEL
    shown = pair if taken else pair[:1]
    held = evaluate(shown, "holdout")
    holdout = Holdout(Path(settings.holdout) if settings.holdout else folder / "holdout.json")
    told = {
        name: holdout.ask(digest(one), public.right, hidden.right, settings.answers)
        for name, one, public, hidden in zip(("first", "best"), shown, seen, held, strict=False)
    }
    tuned = Tuned(*counted(study), first, best, gain, taken, told, holdout.left)
    write_json(folder / "tuned.json", asdict(tuned))
    return tuned


def _found(trial: FrozenTrial) -> Found:
    return Found(*(trial.user_attrs[key] for key in ("candidate", "accuracy", "tokens")))


def as_text(tuned: Tuned) -> str:
    """What a search came to, in words; no number of the holdout but the guard's."""
    lines = [f"{tuned.trials} candidates tried, {tuned.failed} of them could not be run"]
    for name, found in (("first", tuned.first), ("best ", tuned.best)):
        said = f"{percent(found.accuracy)} % at {short(found.tokens)} tokens on the tuning part"
        lines.append(f"{name}  {said}: {json.dumps(found.candidate['strategies'][0])}")
    lines.append(_verdict(tuned))
    for name, told in tuned.holdout.items():
        lines.append(f"holdout, {name}: {_shown(told)}" + ("" if told.step else f"; corrections left: {tuned.left}"))
    return "\n".join(lines)


def _shown(told: Told) -> str:
    """What the holdout's guard says."""
    if told.value is None:
        return "no answer: its budget is spent"
    value = f"{percent(told.value)} %"
    if told.step:
        steps = f"in steps of {percent(told.step)} points"
        return f"{value}, {steps}" if told.corrected else f"no better than the {value} told before, {steps}"
    by = "corrected by hidden documents" if told.corrected else "the hidden documents agree with the validation part"
    return f"{value} ({by})"


def _verdict(tuned: Tuned) -> str:
    if tuned.gain is None:
        return "nothing was better than the first: keep it"
    gain = tuned.gain
    said = f"{percent(gain.value, gain.low, gain.high, '+')} points on validation (p {p_value(gain.p)})"
    return f"{said}: " + ("take the best" if tuned.taken else "no significant difference, keep the first")


def better(ours: Array, theirs: Array) -> Difference:
    """The paired difference over questions."""
    return paired_difference(ours, theirs, np.random.default_rng(0))


def run(candidates: Sequence[Candidate], part: str, folder: Path) -> list[Outcome]:
    """Evaluate candidates on a part of the documents; those that differ in their strategy alone run together.

    What was right on the holdout is removed when it was read: the guard alone speaks of it.
    """
    from extratime.evaluate.run import run_recipe

    found: dict[str, Outcome] = {}
    for _, group in groupby(sorted(candidates, key=_shared), key=_shared):
        together = list(group)
        strategies = [_labelled(one) for one in together]
        recipe = parse({**together[0], "strategies": strategies, "output": str(folder / part)})
        if len({(column.spec.label, column.budget) for column in columns(recipe)}) > len(strategies):
            raise RecipeError("a candidate is one strategy at one budget: say `budgets: [8]`, or a budget beside each")
        run_recipe(recipe, PARTS[part])
        found |= _outcomes_of(folder / part)
        for kind in ("results", "responses", "lm_eval") if part == "holdout" else ():
            shutil.rmtree(folder / part / kind, ignore_errors=True)
    return [found[digest(one)] for one in candidates]


def _shared(one: Candidate) -> str:
    """All of a candidate but its strategy."""
    return json.dumps({key: value for key, value in one.items() if key != "strategies"}, sort_keys=True)


def _labelled(one: Candidate) -> dict[str, Any]:
    """A candidate's strategy under a label of its own, the same in every run."""
    (entry,) = one["strategies"]
    ((name, options),) = ({entry: {}} if isinstance(entry, str) else entry).items()
    return {name: {**(options or {}), "label": digest(one)}}


def _outcomes_of(folder: Path) -> dict[str, Outcome]:
    """By label, means over replicates; a failed cell counts, and is not right."""
    found = {}
    for (label, _), group in cells(read(folder).results).items():
        right = [np.mean([r.value for r in group[question]]) for question in sorted(group)]
        tokens = [np.mean([r.cost.decoded for r in group[question]]) for question in sorted(group)]
        found[label] = Outcome(np.array(right), np.array(tokens))
    return found
