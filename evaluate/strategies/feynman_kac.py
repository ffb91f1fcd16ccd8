"""Sequential Monte Carlo from a power of the policy, or a product of two (Feynman–Kac correctors, arXiv 2503.02819).

Cold sampling and guidance are greedy about the present token: they do not sample the law they are meant for. Particles
with weights do. For the target and the law q that tokens are drawn from, a step s of the response adds

    γ(x) = p₁(x)^α · p₂(x)^β          ln w += α ln p₁(s) + β ln p₂(s) − ln q(s)

p₁ is the policy, p₂ the model of another role; β < 0 steers away from it. With β = 0 and q = p₁ at temperature 1/α the
weight of a token is Σ_v p₁(v)^α, whatever token was drawn: the least variance that a look at the prefix allows (agrees
with Power-SMC, arXiv 2602.10273). Particles are resampled when their effective sample size is below `ess` of them.

With `bridge` the powers go from 1 and 0, the policy itself, to α and β over so many steps. Weights then tell the ratio
of whole prefixes, γ_t(x_{1:t}) / γ_{t−1}(x_{1:t−1}), and what is left of the way is made up for in the end. With α = 0
and β = 1 it is a path from one policy to another. On short responses weights are no more even with it.

A target p₁·exp(r/λ) with a reward r of prefixes is `particle_filter` with `reading: exponential`, `weighting: ratio`
and `tau: λ`. Powers above 1 favour short responses: that is the target. What a cell's top-p or top-k cuts off is no
part of it; and p₂ does not judge where a response ends, since it reads text.

Budget law: `budget` particles of at most one full length each. p₂ reads every prefix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from extratime.evaluate.algorithms import smc
from extratime.evaluate.algorithms.particles import Rule, decide, sweep
from extratime.evaluate.program import Answer, Problem, Program, score
from extratime.models.request import Completion, Prompt, Score

FLOOR = -30.0
"""Least log-probability of a token under a model that is steered away from; a smaller one would decide alone."""


def feynman_kac(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    alpha: float = 4.0,
    beta: float = 0.0,
    role: str = "judge",
    temperature: float | None = None,
    bridge: int = 0,
    resample: smc.Resampler = "systematic",
    ess: float = 0.5,
    choose: Literal["draw", "vote"] = "draw",
    step: Sequence[str] = ("\n",),
    rounds: int = 40,
) -> Program[Answer]:
    """A response drawn from the target, as far as so many particles can tell.

    Args:
        problem: what to answer.
        budget: particles.
        rng: draws ancestors and the answer.
        alpha: power of the policy, ≥ 0; 4 is usual for reasoning, 10 to 20 were published for code.
        beta: power of the other model; 0 does not ask it.
        role: whose engine the other model is.
        temperature: of the draws; None takes 1/alpha, or the cell's where alpha is 0 or there is a single particle,
            which no weight corrects.
        bridge: steps over which the powers go from 1 and 0 to alpha and beta; 0 has the target at once.
        resample: resampling scheme.
        ess: resample when the effective sample size is at most this share of the particles; published 0.5.
        choose: a draw in proportion to the weights, or a weighted vote.
        step: strings that end a step.
        rounds: steps after which every particle is read to its end.

    Raises:
        ValueError: `alpha` is below 0, or the engine tells no log-probabilities of its draws.
    """
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, not {alpha}")
    targets: list[list[float]] = []

    def weigh(problem: Problem, responses: Sequence[Completion]) -> Program[list[float]]:
        """Ln γ_t/q of each response so far."""
        asked = (Score(Prompt(r.prompt.text), r.text, role) for r in responses if r.text)
        other = iter((yield from score(asked)) if beta else ())
        told = [next(other, ()) if r.text else () for r in responses]
        targets.append([_tilt(r, alpha, beta, said) for r, said in zip(responses, told, strict=True)])
        share = min(1.0, len(targets) / bridge) if bridge else 1.0
        powers = 1 + share * (alpha - 1), share * beta
        return [_tilt(r, *powers, said) for r, said in zip(responses, told, strict=True)]

    hot = temperature if temperature is not None or budget == 1 or not alpha else 1 / alpha
    rule = Rule("exponential", 1.0, "ratio", "absorb", resample, ess, step=tuple(step), rounds=rounds, temperature=hot)
    history = yield from sweep(problem, budget, rng, weigh, rule)
    rest = smc.ratios(smc.potentials(targets[-1], "exponential"), history[-1].potentials)
    final = replace(history[-1], weights=history[-1].weights + rest)
    return decide(problem, [final], rng, choose, f"{choose} of {budget} particles, ln Z {final.log_z:.3f}")


def _tilt(response: Completion, alpha: float, beta: float, other: Sequence[float]) -> float:
    if response.finish == "failed":
        return -math.inf
    if len(response.logprobs) < response.n_tokens:
        raise ValueError("the engine tells no log-probabilities of its draws, and the weights are made of them")
    told = sum(max(p, FLOOR) for p in other) if beta < 0 else sum(other)
    return alpha * sum(response.logprobs) + (beta * told if beta else 0.0) - sum(response.tempered)
