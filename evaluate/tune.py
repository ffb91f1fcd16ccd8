"""`extratime tune FILE`: search strategies, options and architectures, without believing the winner's own number.

The file is a recipe in which values may be spaces (`extratime.evaluate.spaces`), with a section `tune`. A trial takes
one of the strategies, fills in its spaces and runs on the tuning half of the documents; all trials read the same
draws. Optuna's TPE proposes. The first strategy, every space at its start, is what has to be beaten; what takes more
tokens than it does is no candidate.

The best of many is flattered by the luck that made it best. So the winner is run against the first on a quarter of the
documents that the search never saw, and taken only where it is better by a paired test; and the last quarter is shown
through Thresholdout alone (`extratime.evaluate.holdout`).

    OUTPUT/study.jsonl     every trial, kept as it goes: the same command goes on from there
    OUTPUT/tuned.json      what was found
    OUTPUT/holdout.json    what the holdout has given away
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from extratime.evaluate import stats
from extratime.evaluate.grid import columns, parse, read_raw
from extratime.evaluate.holdout import Holdout, Told
from extratime.evaluate.named import RecipeError
from extratime.evaluate.report.leaderboard import cells
from extratime.evaluate.report.read import read
from extratime.evaluate.report.words import p_value, percent, short
from extratime.evaluate.spaces import asked, fill, starting
from extratime.models.manifest import write_json
from extratime.models.request import digest

Candidate = dict[str, Any]
"""A recipe with one strategy and no space left."""
PARTS = {"tuning": (0, 2), "validation": (1, 4), "holdout": (3, 4)}
"""Documents of each part, as shards: every second one, and twice every fourth."""
STARTUP = 5
"""Random proposals before the model of good ones: few, since a search has tens of trials, not hundreds."""
LEVEL = 0.1
"""Two-sided p up to which the winner counts as better: one in twenty searches among equals ends with a change."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The section `tune`.

    Attributes:
        trials: different candidates in all.
        batch: run together, which saves loading the model; proposals of a batch do not know each other's outcome.
        tokens: mean tokens that a candidate may take; None takes what the first strategy takes.
        seed: of the proposals.
        holdout: file of the holdout's state, for several searches that share one; None keeps it in the output.
        answers: how often the holdout may correct an answer.
    """

    trials: int = 50
    batch: int = 10
    tokens: float | None = None
    seed: int = 0
    holdout: str | None = None
    answers: int = 20

    def __post_init__(self) -> None:
        if min(self.trials, self.batch, self.answers) < 1:
            raise ValueError("trials, batch and answers must be at least 1")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a candidate did: shape (Q,) each, the same questions in the same order for all candidates."""

    right: stats.Array
    tokens: stats.Array


Evaluate = Callable[[Sequence[Candidate], str], list[Outcome]]
"""(candidates, part) → their outcomes."""


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
        trials, failed: that were finished, and those whose options could not be.
        first: what had to be beaten.
        best: of those within its tokens; its accuracy is flattered.
        gain: of the best over the first on the validation part; None where it is the first.
        taken: whether the best is taken in its place.
        holdout: by "first" and "best", accuracy on the holdout as its guard tells it; "best" only if it was taken.
        left: corrections that the holdout still gives.
    """

    trials: int
    failed: int
    first: Found
    best: Found
    gain: stats.Difference | None
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


def open_study(file: Path, name: str) -> optuna.Study:
    """The study in a file, made where there is none.

    Raises:
        RecipeError: the file holds another study.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    _drop_torn(file)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(file)))
    if optuna.get_all_study_names(storage) not in ([], [name]):
        raise RecipeError(f"{file} holds the search of another recipe: choose another output, or remove it")
    return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)


def _drop_torn(file: Path) -> None:
    """Cut off a last line without its end: what is appended to it after a kill could not be read."""
    if file.exists() and not (said := file.read_bytes()).endswith(b"\n"):
        with file.open("r+b") as kept:
            kept.truncate(said.rfind(b"\n") + 1)


def search(raw: Mapping[str, Any], settings: Settings, study: optuna.Study, evaluate: Evaluate) -> list[FrozenTrial]:
    """Try candidates until there are enough; those that failed count, and what was proposed again does not.

    Returns:
        The finished trials, with candidate, accuracy and tokens as user attributes; the first has to be beaten.

    Raises:
        ValueError: the first one's options can't be.
    """
    space = {**raw, "strategies": {"choice": raw["strategies"]}}
    if not study.trials:
        start: dict[str, Any] = {}
        fill(space, starting(start))
        study.enqueue_trial(start)
    while (left := _left(study, settings.trials)) > 0:
        proposed = list(_proposed(study, space, min(left, settings.batch), settings.seed))
        known = _known(study, [one for _, one in proposed], evaluate)
        for trial, one in proposed:
            _tell(study, trial, known[digest(one)], settings.tokens)
    return study.get_trials(states=(TrialState.COMPLETE,))


def _left(study: optuna.Study, trials: int) -> int:
    """How many different candidates are still to be tried; none where proposals come to nothing new any more."""
    done = study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))
    return trials - len({digest(trial.user_attrs["candidate"]) for trial in done}) if len(done) < 4 * trials else 0


def _proposed(study: optuna.Study, space: Mapping[str, Any], n: int, seed: int) -> Iterator[tuple[Trial, Candidate]]:
    """Trials that were begun, then new ones; each hangs on the trials before it and its number, not on when it ran."""
    begun = study.get_trials(states=(TrialState.RUNNING,))
    for i in range(max(n, len(begun))):
        number = begun[i].number if i < len(begun) else len(study.get_trials(states=STARTED))
        study.sampler = _sampler(seed + number)
        trial = Trial(study, begun[i]._trial_id) if i < len(begun) else study.ask()
        filled = fill(space, asked(trial))
        yield trial, {**filled, "strategies": [filled["strategies"]]}


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    """TPE over each branch of the space as a whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True)


STARTED = (TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING)


def _known(study: optuna.Study, candidates: Sequence[Candidate], evaluate: Evaluate) -> dict[str, dict[str, Any]]:
    """By the digest of a candidate what is known of it; what was never evaluated is evaluated now, and once."""
    told = [trial.user_attrs for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))]
    known = {digest(attributes["candidate"]): attributes for attributes in told}
    new = [one for key, one in {digest(one): one for one in candidates}.items() if key not in known]
    for one, outcome in zip(new, _outcomes(new, evaluate), strict=True):
        means = {"error": str(outcome)} if isinstance(outcome, ValueError) else _means(outcome)
        known[digest(one)] = {"candidate": one, **means}
    return known


def _outcomes(candidates: Sequence[Candidate], evaluate: Evaluate) -> list[Outcome | ValueError]:
    """Outcomes of candidates together; one by one where the options of one can't be."""
    try:
        return list(evaluate(candidates, "tuning")) if candidates else []
    except ValueError as error:
        if len(candidates) == 1:
            return [error]
        return [outcome for one in candidates for outcome in _outcomes([one], evaluate)]


def _means(outcome: Outcome) -> dict[str, float]:
    return {"accuracy": float(outcome.right.mean()), "tokens": float(outcome.tokens.mean())}


def _tell(study: optuna.Study, trial: Trial, said: Mapping[str, Any], tokens: float | None) -> None:
    """Keep what is known of a trial; what takes too many tokens loses by its excess, so that proposals turn away."""
    for key, value in said.items():
        trial.set_user_attr(key, value)
    if "error" not in said:
        cap = tokens or study.trials[0].user_attrs["tokens"]
        study.tell(trial, said["accuracy"] - max(0.0, said["tokens"] / cap - 1))
    elif trial.number:
        study.tell(trial, state=TrialState.FAIL)
    else:
        raise ValueError(f"the first strategy, which has to be beaten, cannot be run: {said['error']}")


def best_of(trials: Sequence[FrozenTrial], tokens: float | None = None) -> FrozenTrial:
    """The most accurate trial within the tokens of the first; ties go to the cheaper, then to the earlier."""
    cap = (tokens or trials[0].user_attrs["tokens"]) * (1 + 1e-9)
    within = [trial for trial in trials if trial.user_attrs["tokens"] <= cap] or [trials[0]]
    return min(within, key=lambda t: (-t.user_attrs["accuracy"], t.user_attrs["tokens"], t.number))


def finish(raw: Mapping[str, Any], settings: Settings, study: optuna.Study, evaluate: Evaluate, folder: Path) -> Tuned:
    """Search, try the best on the validation part, and show the holdout through its guard; see `tune`."""
    trials = search(raw, settings, study, evaluate)
    first, best = (Found(**trial.user_attrs) for trial in (trials[0], best_of(trials, settings.tokens)))
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
    tuned = Tuned(len(trials), len(study.trials) - len(trials), first, best, gain, taken, told, holdout.left)
    write_json(folder / "tuned.json", asdict(tuned))
    return tuned


def as_text(tuned: Tuned) -> str:
    """What a search came to, in words; no number of the holdout but the guard's."""
    lines = [f"{tuned.trials} candidates tried, {tuned.failed} of them could not be run"]
    for name, found in (("first", tuned.first), ("best ", tuned.best)):
        said = f"{percent(found.accuracy)} % at {short(found.tokens)} tokens on the tuning part"
        lines.append(f"{name}  {said}: {json.dumps(found.candidate['strategies'][0])}")
    lines.append(_verdict(tuned))
    for name, told in tuned.holdout.items():
        by = (
            "corrected by hidden documents"
            if told.corrected
            else "the hidden documents agree with the validation part"
        )
        value = f"{percent(told.value)} % ({by})" if told.value is not None else "no answer: its budget is spent"
        lines.append(f"holdout, {name}: {value}; corrections left: {tuned.left}")
    return "\n".join(lines)


def _verdict(tuned: Tuned) -> str:
    if tuned.gain is None:
        return "nothing was better than the first: keep it"
    gain = tuned.gain
    said = f"{percent(gain.value, gain.low, gain.high, '+')} points on validation (p {p_value(gain.p)})"
    return f"{said}: " + ("take the best" if tuned.taken else "no significant difference, keep the first")


def better(ours: stats.Array, theirs: stats.Array) -> stats.Difference:
    """The paired difference over questions."""
    return stats.paired_difference(ours, theirs, np.random.default_rng(0))


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
