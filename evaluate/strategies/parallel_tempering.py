"""Parallel tempering of particle Gibbs chains (Puri et al., arXiv 2502.01618, Alg. 3): hot chains explore.

    for k = 1 … M: one particle Gibbs sweep of chain k under π_k ∝ p(x) G(x)^(1/T_k)         T_1 > … > T_M
    neighbours swap the trajectories they hold with probability min(1, exp((1/T_k − 1/T_{k+1})(w_{k+1} − w_k)))

w = ln G of the trajectory held: the sum over its steps, or the last potential for `weighting="ratio"`. The prior p
cancels, so that the swap leaves ∏ π_k as it is. The coldest chain answers.

Budget law: M chains of J sweeps of `budget` / (M·J) particles; a remainder is not used. Where that would be fewer than
two particles there are fewer sweeps, then fewer chains, the hottest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from extratime.evaluate.algorithms import smc
from extratime.evaluate.algorithms.particles import Choice, Generation, Rule, Trajectory, decide, retained, sweep
from extratime.evaluate.program import Answer, Problem, Program, Verifier, gather
from extratime.evaluate.verifiers.likelihood import likelihood


def parallel_tempering(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = likelihood,
    temperatures: Sequence[float] = (2.0, 1.0),
    sweeps: int = 2,
    reading: smc.Reading = "odds",
    weighting: Literal["fresh", "ratio"] = "fresh",
    choose: Choice = "best",
    step: Sequence[str] = ("\n",),
    rounds: int = 40,
) -> Program[Answer]:
    """The particle of the highest score among those of the coldest chain.

    Args:
        problem: what to answer.
        budget: particles of all chains and sweeps together.
        rng: draws ancestors, trajectories and swaps.
        verify: scores prefixes in [0, 1]; negative scores are read as log-probabilities.
        temperatures: of the chains, falling; none are published.
        sweeps: of each chain, at most; the published runs made one, in which nothing is swapped.
        reading: as in `particle_filter`.
        weighting: as in `particle_filter`.
        choose: as in `particle_gibbs`.
        step: strings that end a step.
        rounds: steps after which every particle is read to its end.
    """
    temperatures = tuple(temperatures)[-max(1, budget // 2) :]
    chains = [Rule(reading, t, weighting, step=tuple(step), rounds=rounds) for t in temperatures]
    sweeps = max(1, min(sweeps, budget // (2 * len(chains))))
    n = budget // (len(chains) * sweeps)
    held: list[Trajectory] = [()] * len(chains)
    finals: list[Generation] = []
    for _ in range(sweeps):
        seeds = rng.spawn(len(chains))
        runs = [sweep(problem, n, seed, verify, rule, z) for seed, rule, z in zip(seeds, chains, held, strict=True)]
        histories = (yield from gather(runs)) if len(runs) > 1 else [(yield from runs[0])]
        held = swapped([retained(history, rng) for history in histories], temperatures, rng)
        finals.append(histories[-1][-1])
    return decide(problem, finals, rng, choose, f"{choose} of {sweeps} sweeps, coldest of {len(chains)} chains")


def swapped(held: Sequence[Trajectory], temperatures: Sequence[float], rng: np.random.Generator) -> list[Trajectory]:
    """The trajectories after neighbours have had their chance to swap, from the hottest pair on."""
    now = list(held)
    for k in range(len(now) - 1):
        hot, cold = (sum(state.gain for state in trajectory) for trajectory in now[k : k + 2])
        log_ratio = (1 / temperatures[k] - 1 / temperatures[k + 1]) * (cold - hot)
        if math.log1p(-rng.random()) < log_ratio:
            now[k : k + 2] = now[k + 1], now[k]
    return now
