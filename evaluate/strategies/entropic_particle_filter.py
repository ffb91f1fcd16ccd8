"""Entropic particle filtering (arXiv 2510.05825): a particle filter that does not believe early certainty.

Entropic annealing: in the early steps, while few particles have all the weight, ancestors are drawn at a temperature

    a ~ p^(1/T),   T = max(1, (N/ESS)(1 − t/horizon))   if ESS < N/2 and t < horizon/2, else T = 1

so that the others survive until later scores tell. The published rule forgets what it flattened, and then the filter
samples another law than p(x) ∏ G; `corrected` keeps the rest of each weight and stays with that law.

Look-ahead modulation: ancestors are drawn by the weight times that of one more step, drawn for the purpose and thrown
away, and the weight of this guess is taken back afterwards (the auxiliary particle filter of Pitt & Shephard 1999; the
paper's own formula is not published in code). A particle costs up to twice as many tokens then.

It cures spikes of a noisy score, not a lasting bias: once a wrong branch has the majority the weights are even, and
nothing is annealed. Compare with a constant `tau` of `particle_filter` and with `by="base"`.

Budget law: `budget` particles of at most one full length each; half as many with `look_ahead`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from extratime.evaluate.algorithms import smc
from extratime.evaluate.algorithms.particles import Choice, Rule, decide, sweep
from extratime.evaluate.program import Answer, Problem, Program, Verifier
from extratime.evaluate.verifiers.likelihood import likelihood


def entropic_particle_filter(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = likelihood,
    by: Literal["ess", "entropy", "base"] = "ess",
    horizon: int = 40,
    below: float = 0.5,
    early: float = 0.5,
    corrected: bool = False,
    look_ahead: bool = False,
    reading: smc.Reading = "odds",
    weighting: Literal["fresh", "ratio"] = "fresh",
    resample: smc.Resampler = "systematic",
    finished: Literal["compete", "absorb", "freeze"] = "compete",
    choose: Choice = "best",
    step: Sequence[str] = ("\n",),
    rounds: int = 40,
) -> Program[Answer]:
    """The final particle of the highest score.

    Args:
        problem: what to answer.
        budget: particles, or twice as many as there are.
        rng: draws the ancestors.
        verify: scores prefixes in [0, 1]; negative scores are read as log-probabilities.
        by: what the temperature follows; see `smc.annealed`.
        horizon: steps of a usual response. Published is the limit on steps, with which the early part never ends where
            responses are short.
        below: share of the particles below which the effective sample size is too small; published 0.5.
        early: share of the horizon in which ancestors are annealed; published 0.5.
        corrected: whether the flattened part of a weight is kept; published is not.
        look_ahead: whether particles are also weighed by a guess at their next step.
        reading: as in `particle_filter`.
        weighting: as in `particle_filter`.
        resample: resampling scheme; published systematic.
        finished: as in `particle_filter`.
        choose: as in `particle_filter`.
        step: strings that end a step.
        rounds: steps after which every particle is read to its end.
    """

    def anneal(weights: smc.Floats, t: int) -> float:
        return smc.annealed(weights, t / horizon, by, below, early)

    n = max(1, budget // 2) if look_ahead else budget
    rule = Rule(reading, 1.0, weighting, finished, resample, step=tuple(step), rounds=rounds)
    rule = replace(rule, anneal=anneal, corrected=corrected, ahead=look_ahead and n > 1)
    history = yield from sweep(problem, n, rng, verify, rule)
    return decide(problem, history[-1:], rng, choose, f"{choose} of {n} particles, ln Z {history[-1].log_z:.3f}")
