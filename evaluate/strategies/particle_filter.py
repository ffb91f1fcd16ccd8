"""Particle filtering (Puri et al., arXiv 2502.01618, Alg. 1): a process reward is a likelihood, not a ranking.

    x¹ … xᴺ ← first steps of N = budget responses
    until all have ended:
        p ∝ G(s(xⁱ))^(1/τ)                      s: score of the prefix
        a¹ … aᴺ ~ p                             ancestors
        xⁱ ← x^{aⁱ} and one more step           a copy gets a continuation of its own

Weights are fresh at each step and G is the odds s/(1 − s), as published in code (the paper's text says G = s, and
softmax of rewards: `reading` "score" and "exponential"). So the target is p(x) ∏ G(x_{1:t}), in which a score of whole
prefixes counts at every step; `weighting="ratio"` samples p(x)·G(x) of the final potential alone. The sweep itself is
`particles.sweep`.

Budget law: `budget` particles of at most one full length each. What is dropped counts, too: where that was long and
all others go on to a full length, the last of them are cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from extratime.evaluate.algorithms import smc
from extratime.evaluate.algorithms.particles import Choice, Rule, decide, sweep
from extratime.evaluate.program import Answer, Problem, Program, Verifier
from extratime.evaluate.verifiers.likelihood import likelihood


def particle_filter(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = likelihood,
    tau: float | tuple[float, float] = 1.0,
    reading: smc.Reading = "odds",
    weighting: Literal["fresh", "ratio"] = "fresh",
    resample: smc.Resampler = "multinomial",
    ess: float = 1.0,
    finished: Literal["compete", "absorb", "freeze"] = "compete",
    choose: Choice = "best",
    step: Sequence[str] = ("\n",),
    rounds: int = 40,
) -> Program[Answer]:
    """The final particle of the highest score.

    Args:
        problem: what to answer.
        budget: particles.
        rng: draws the ancestors.
        verify: scores prefixes in [0, 1]; negative scores are read as log-probabilities.
        tau: resampling temperature, > 0 (published 1; 0.1 to 2 tried), or the first and the last of a linear schedule.
        reading: the potential G of a score s: s/(1 − s), s, or exp(s).
        weighting: fresh at each step, or divided by the previous step's.
        resample: resampling scheme.
        ess: resample when the effective sample size is at most this share of the particles; weights add up until then.
            1 resamples at every step, as published.
        finished: finished particles compete with their potential counted again at each step, as published; or counted
            once; or keep their place, and only the others are resampled.
        choose: the best final particle, as published, a weighted vote, or a draw in proportion to the weights.
        step: strings that end a step.
        rounds: steps after which every particle is read to its end.
    """
    rule = Rule(reading, tau, weighting, finished, resample, ess, step=tuple(step), rounds=rounds)
    history = yield from sweep(problem, budget, rng, verify, rule)
    return decide(problem, history[-1:], rng, choose, f"{choose} of {budget} particles, ln Z {history[-1].log_z:.3f}")
