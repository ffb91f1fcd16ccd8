"""Particle filtering (Puri et al., arXiv 2502.01618, Alg. 1): a process reward is a likelihood, not a ranking.

`budget` particles are extended by one step, weighted by their verifier and resampled in proportion, until all have
finished. Weights are fresh at each step, p = softmax(logit(s)/τ), as published in code (the odds of the score; the
paper's text says softmax of rewards); `weighting="ratio"` divides by the previous step's weight, which targets
p(x)·G(x) of the final potential alone. Finished particles take part in resampling, or are frozen.
Budget law: `budget` particles of at most one full length each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from extratime.evaluate import smc
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, extend, growing, sample
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.models.request import Completion


def particle_filter(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = likelihood,
    tau: float = 1.0,
    resample: Literal["multinomial", "systematic", "stratified", "residual"] = "multinomial",
    weighting: Literal["fresh", "ratio"] = "fresh",
    frozen: bool = False,
    step: Sequence[str] = ("\n",),
    rounds: int = 40,
) -> Program[Answer]:
    """The final particle of the highest weight.

    Args:
        problem: what to answer.
        budget: particles.
        rng: draws the ancestors.
        verify: scores prefixes in [0, 1]; negative scores are read as log-probabilities.
        tau: resampling temperature, > 0.
        resample: resampling scheme.
        weighting: fresh at each step, or divided by the previous step's.
        frozen: whether finished particles are left out of the resampling.
        step: strings that end a step.
        rounds: steps after which every particle is read to its end.
    """
    particles = yield from sample(problem.prompt, budget, pause=step)
    before = np.zeros(budget)
    weights = yield from _log_weights(problem, particles, verify, tau)
    for _ in range(rounds):
        growth = [growing(problem, p) for p in particles]
        if not any(growth):
            break
        free = [i for i in range(budget) if growth[i] or not frozen]
        gain = weights - before if weighting == "ratio" else weights
        p, _ = smc.normalise(gain[free])
        ancestors = list(range(budget))
        for slot, choice in zip(free, smc.RESAMPLERS[resample](p, len(free), rng), strict=True):
            ancestors[slot] = free[choice]
        before = weights[ancestors]
        particles = yield from extend([particles[a] for a in ancestors], pause=step)
        weights = yield from _log_weights(problem, particles, verify, tau)
    particles = yield from extend(particles)
    scores = yield from verify(problem, particles)
    return best(particles, scores, "highest final weight")


def _log_weights(
    problem: Problem, particles: Sequence[Completion], verify: Verifier, tau: float
) -> Program[smc.Floats]:
    scores: smc.Floats = np.asarray((yield from verify(problem, particles)), dtype=np.float64)
    logarithms = bool(np.any((scores < 0) & np.isfinite(scores)))
    odds = smc.logit(np.exp(scores) if logarithms else scores)
    return np.asarray(np.where(np.isneginf(scores), -np.inf, odds) / tau)
