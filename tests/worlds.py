"""Worlds to search: candidates whose accuracy and tokens are known functions of their options."""

import json

import numpy as np
import optuna

from extratime.evaluate.tuning.study import Outcome


def options(candidate):
    (entry,) = candidate["strategies"]
    return {} if isinstance(entry, str) else next(iter(entry.values()))


class World:
    """Candidates whose accuracy and tokens are known functions of their options; one draw a question, the same always.

    With `exact` every question says what `accuracy` says, without draws.
    """

    def __init__(self, accuracy, tokens=lambda o: 10.0, questions=100, seed=0, exact=False):
        self.accuracy, self.tokens, self.questions, self.seed, self.exact = accuracy, tokens, questions, seed, exact
        self.calls, self.draws = [], {}

    def __call__(self, candidates, part):
        self.calls.append((part, [json.dumps(options(one), sort_keys=True) for one in candidates]))
        return [self.outcome(options(one), part) for one in candidates]

    def outcome(self, said, part):
        tokens = np.full(self.questions, self.tokens(said))
        if self.exact:
            return Outcome(np.full(self.questions, self.accuracy(said)), tokens)
        name, _, share = part.partition("-")
        key = (json.dumps(said, sort_keys=True), name)
        if key not in self.draws:
            entropy = [self.seed, ("tuning", "validation", "holdout").index(name), *key[0].encode()]
            self.draws[key] = np.random.default_rng(entropy).random(self.questions)
        draws = self.draws[key][: self.questions // int(share or 1)]
        return Outcome((draws < self.accuracy(said)).astype(float), tokens[: len(draws)])


def study():
    return optuna.create_study(direction="maximize")


ANY = {"uniform": [0.0, 1.0], "default": 0.5}


def space(**spaces):
    return {"strategies": ["first", {"other": spaces}]}


def tried(trials):
    return [options(trial.user_attrs["candidate"]) for trial in trials]
