"""Particle Gibbs (Puri et al., arXiv 2502.01618, Alg. 2): particle filters that go on from one another's result.

    sweep 1:      a particle filter of N particles
    sweep 2 … J:  z ~ final weights of the sweep before; N − 1 fresh particles beside z, which competes at each step
                  with the weight its prefix had there, may be copied from there, and is never overwritten

Each sweep leaves p(x) ∏ g_t(x_{1:t}) as it is, for any N ≥ 2, so that the bias of a small filter wears off. Only the
slots beside z are resampled, independently; finished particles keep the weight they have. With `backward` the prefixes
of z are drawn anew before the next sweep (the kernel inside arXiv 2301.00900): early steps then change far more often
where the rest of a response makes sense behind another's beginning. Among steps that hang on a state alone, such as a
running total, it does; in prose hardly ever.

Budget law: J sweeps of `budget` / J particles; what the division leaves goes to the first sweep. Where that would be
fewer than two particles a sweep there are fewer sweeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from extratime.evaluate.algorithms import smc
from extratime.evaluate.algorithms.backward import redrawn
from extratime.evaluate.algorithms.particles import Choice, Generation, Rule, State, decide, retained, sweep
from extratime.evaluate.program import Answer, Problem, Program, Verifier
from extratime.evaluate.verifiers.likelihood import likelihood


def particle_gibbs(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = likelihood,
    sweeps: int = 4,
    burn: int = 0,
    backward: bool = False,
    tau: float = 1.0,
    reading: smc.Reading = "odds",
    weighting: Literal["fresh", "ratio"] = "fresh",
    choose: Choice = "best",
    step: Sequence[str] = ("\n",),
    rounds: int = 40,
) -> Program[Answer]:
    """The particle of the highest score among the finals of all sweeps.

    Args:
        problem: what to answer.
        budget: particles of all sweeps together.
        rng: draws ancestors and trajectories.
        verify: scores prefixes in [0, 1]; negative scores are read as log-probabilities.
        sweeps: at most so many; published 4, of 16 particles each.
        burn: sweeps whose particles do not count in the end; the last one always counts.
        backward: whether the prefixes of z are drawn anew; costs no draws, but scores of many splices.
        tau: resampling temperature, > 0; published 1.
        reading: as in `particle_filter`.
        weighting: as in `particle_filter`.
        choose: the best particle, a vote weighted within each sweep, or a draw in proportion to these weights.
        step: strings that end a step.
        rounds: steps after which every particle is read to its end.
    """
    rule = Rule(reading, tau, weighting, step=tuple(step), rounds=rounds)
    sweeps = max(1, min(sweeps, budget // 2))
    held: list[State] = []
    finals: list[Generation] = []
    for k in range(sweeps):
        n = budget // sweeps + (budget % sweeps if k == 0 else 0)
        history = yield from sweep(problem, n, rng, verify, rule, held)
        finals.append(history[-1])
        if k < sweeps - 1:
            if backward:
                held = yield from redrawn(problem, history, verify, rule, rng)
            else:
                held = retained(history, rng)
    return decide(problem, finals[min(burn, sweeps - 1) :], rng, choose, f"{choose} of {sweeps} sweeps")
