"""What a search tries: proposals of Optuna's TPE, kept in a study, evaluated in batches and never twice."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from extratime.evaluate.named import RecipeError
from extratime.evaluate.statistics.arrays import Array
from extratime.evaluate.tuning.spaces import asked, fill, starting
from extratime.models.paths import digest

Candidate = dict[str, Any]
"""A recipe with one strategy and no space left."""
RUNGS = {"tuning-9": 1, "tuning-3": 3, "tuning": 9}
"""Parts of successive halving and their relative sizes: a third of a batch goes on from one to the next."""
STARTUP = 5
"""Random proposals before the model of good ones: few, since a search has tens of trials, not hundreds."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True, slots=True)
class Settings:
    """The section `tune`.

    Attributes:
        trials: different candidates in all.
        batch: run together, which saves loading the model; proposals of a batch do not know each other's outcome.
        halving: whether a batch begins with a ninth of the tuning part, of which the best third goes on to a third of
            it and the best third of those to all (arXiv 2411.09238 tunes by 27 candidates so; batches of 9 or 27).
        tokens: mean tokens that a candidate may take; None takes what the first strategy takes.
        seed: of the proposals.
        holdout: file of the holdout's state, for several searches that share one; None keeps it in the output.
        answers: how often the holdout may correct an answer.
    """

    trials: int = 50
    batch: int = 10
    halving: bool = False
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

    right: Array
    tokens: Array


Evaluate = Callable[[Sequence[Candidate], str], list[Outcome]]
"""(candidates, part) → their outcomes."""


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
    if not _trials(study):
        start: dict[str, Any] = {}
        fill(space, starting(start))
        study.enqueue_trial(start)
    while (left := _left(study, settings.trials)) > 0:
        proposed = list(_proposed(study, space, min(left, settings.batch), settings.seed))
        known = _known(study, [one for _, one in proposed], settings, evaluate)
        for trial, one in proposed:
            _tell(study, trial, known[digest(one)], settings.tokens)
    return _trials(study, TrialState.COMPLETE)


def _trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """All trials, or those in these states, to be read only: copies of all for each new one are quadratic work."""
    return study.get_trials(deepcopy=False, states=states or None)


def _candidates(study: optuna.Study, *states: TrialState) -> set[str]:
    """Digests of the different candidates of the trials in these states."""
    return {digest(trial.user_attrs["candidate"]) for trial in _trials(study, *states)}


def counted(study: optuna.Study) -> tuple[int, int]:
    """Different candidates that ran, and those whose options could not be."""
    ran = _candidates(study, TrialState.COMPLETE, TrialState.PRUNED)
    return len(ran), len(_candidates(study, TrialState.FAIL))


def _left(study: optuna.Study, trials: int) -> int:
    """How many different candidates are still to be tried; none where proposals come to nothing new any more."""
    return trials - len(_candidates(study, *ENDED)) if len(_trials(study, *ENDED)) < 4 * trials else 0


def _proposed(study: optuna.Study, space: Mapping[str, Any], n: int, seed: int) -> Iterator[tuple[Trial, Candidate]]:
    """Trials that were begun, then new ones; each hangs on the trials before it and its number, not on when it ran."""
    begun = _trials(study, TrialState.RUNNING)
    for i in range(max(n, len(begun))):
        number = begun[i].number if i < len(begun) else len(_trials(study, *ENDED, TrialState.RUNNING))
        study.sampler = _sampler(seed + number)
        trial = Trial(study, begun[i]._trial_id) if i < len(begun) else study.ask()
        filled = fill(space, asked(trial))
        yield trial, {**filled, "strategies": [filled["strategies"]]}


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    """TPE over each branch of the space as a whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True)


def _known(
    study: optuna.Study, candidates: Sequence[Candidate], settings: Settings, evaluate: Evaluate
) -> dict[str, dict[str, Any]]:
    """By the digest of a candidate what is known of it; what was never evaluated is evaluated now, and once."""
    told = [trial.user_attrs for trial in _trials(study, *ENDED)]
    known = {digest(attributes["candidate"]): attributes for attributes in told}
    new = {key: one for key, one in {digest(one): one for one in candidates}.items() if key not in known}
    first = digest(told[0]["candidate"] if told else candidates[0])
    going = list(new)
    for part in tuple(RUNGS) if settings.halving else ("tuning",):
        outcomes = _outcomes([new[key] for key in going], part, evaluate)
        for key, outcome in zip(going, outcomes, strict=True):
            means = {"error": str(outcome)} if isinstance(outcome, ValueError) else _means(outcome)
            known[key] = {"candidate": new[key], "part": part, **means}
        if "error" in known[first]:
            break
        going = _going_on([key for key in going if "error" not in known[key]], known, first, settings.tokens)
    return known


def _going_on(keys: Sequence[str], known: Mapping[str, Any], first: str, tokens: float | None) -> list[str]:
    """The best third, earlier ones of equals, and the first strategy, which has to be beaten in the end."""
    others = sorted((key for key in keys if key != first), key=lambda key: -_worth(known[key], known[first], tokens))
    return [key for key in keys if key == first] + others[: math.ceil(len(others) / 3)]


def _outcomes(candidates: Sequence[Candidate], part: str, evaluate: Evaluate) -> list[Outcome | ValueError]:
    """Outcomes of candidates together; where the options of one can't be, of one half and the other."""
    half = len(candidates) // 2
    try:
        return list(evaluate(candidates, part)) if candidates else []
    except ValueError as error:
        both = (candidates[:half], candidates[half:])
        return [outcome for some in both for outcome in _outcomes(some, part, evaluate)] if half else [error]


def _means(outcome: Outcome) -> dict[str, float]:
    return {"accuracy": float(outcome.right.mean()), "tokens": float(outcome.tokens.mean())}


def _worth(said: Mapping[str, Any], first: Mapping[str, Any], tokens: float | None) -> float:
    """Accuracy; what takes too many tokens loses by its excess, so that proposals turn away."""
    return float(said["accuracy"] - max(0.0, said["tokens"] / (tokens or first["tokens"]) - 1))


def _tell(study: optuna.Study, trial: Trial, said: Mapping[str, Any], tokens: float | None) -> None:
    """Keep what is known of a trial."""
    for key, value in said.items():
        trial.set_user_attr(key, value)
    if "error" in said and not trial.number:
        raise ValueError(f"the first strategy, which has to be beaten, cannot be run: {said['error']}")
    if "error" in said:
        study.tell(trial, state=TrialState.FAIL)
        return
    worth = _worth(said, _trials(study)[0].user_attrs, tokens)
    if said["part"] == "tuning":
        study.tell(trial, worth)
    else:
        trial.report(worth, RUNGS[said["part"]])
        study.tell(trial, state=TrialState.PRUNED)


def best_of(trials: Sequence[FrozenTrial], tokens: float | None = None) -> FrozenTrial:
    """The most accurate trial within the tokens of the first; ties go to the cheaper, then to the earlier."""
    cap = (tokens or trials[0].user_attrs["tokens"]) * (1 + 1e-9)
    within = [trial for trial in trials if trial.user_attrs["tokens"] <= cap] or [trials[0]]
    return min(within, key=lambda t: (-t.user_attrs["accuracy"], t.user_attrs["tokens"], t.number))
