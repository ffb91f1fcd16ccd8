"""Sequential Monte Carlo over the steps of responses: what strategies with particles share.

A sweep takes n particles from step to step. Each generation is weighed, ancestors are drawn, and every particle goes
on from its ancestor's response:

    W_t = W_{t−1} · g_t        g_t = G(x_{1:t})   or, weighting "ratio",   G(x_{1:t}) / G(x_{1:t−1})
    a ~ q ∝ W_t,   W_t ← W_t / q

That samples p(x) ∏ g_t(x). Weights are not normalised, so their mean is the estimate Ẑ of the normalising constant,
which is unbiased. A conditional sweep holds one trajectory in its last place: it competes with the weight it had at
each step, is never overwritten, and others may go on from its prefixes (Andrieu, Doucet & Holenstein 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from extratime.evaluate.algorithms import smc
from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, extend, growing, sample
from extratime.models.request import Completion

Choice: TypeAlias = Literal["best", "vote", "draw"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a sweep weighs and resamples.

    Attributes:
        reading: what potential a score is; see `smc.potentials`.
        tau: G counts with the power 1/tau; a pair goes from the first to the second value over `rounds`.
        weighting: whether G counts anew at each step, or as the ratio to the step before.
        finished: whether a finished particle counts its potential at each step and competes, counts it once and then
            competes with the weight it has, or keeps its place and its weight.
        resample: the scheme.
        ess: resample when the effective sample size is at most this share of the particles.
        anneal: temperature of the resampling, from normalised weights and the steps made.
        corrected: whether particles carry on the part of their weight that an annealed resampling has left.
        ahead: whether particles are resampled by one more step, drawn for that purpose and thrown away.
        step: strings that end a step.
        rounds: steps after which every particle is read to its end, ≥ 1.
        temperature: of the draws; None keeps the cell's own.
    """

    reading: smc.Reading = "odds"
    tau: float | tuple[float, float] = 1.0
    weighting: Literal["fresh", "ratio"] = "fresh"
    finished: Literal["compete", "absorb", "freeze"] = "absorb"
    resample: smc.Resampler = "multinomial"
    ess: float = 1.0
    anneal: Callable[[smc.Floats, int], float] = lambda weights, t: 1.0
    corrected: bool = False
    ahead: bool = False
    step: tuple[str, ...] = ("\n",)
    rounds: int = 40
    temperature: float | None = None

    def __post_init__(self) -> None:
        if min(self.taus) <= 0 or self.rounds < 1:
            raise ValueError(f"tau must be above 0 and rounds at least 1, not {self.tau} and {self.rounds}")

    @property
    def taus(self) -> tuple[float, float]:
        """The first and the last tau."""
        return self.tau if isinstance(self.tau, tuple) else (self.tau, self.tau)

    def heat(self, t: int) -> float:
        """Tau at step t, counted from 0."""
        first, last = self.taus
        return first + (last - first) * min(1.0, t / self.rounds)


@dataclass(frozen=True, slots=True)
class Generation:
    """Particles after a step; arrays have shape (n,).

    Attributes:
        particles: the responses so far.
        scores: what the verifier says of them.
        potentials: ln G.
        gains: ln g of the step, before tau.
        weights: ln W; normalised weights are those of the sweep's target.
        ancestors: in the generation before.
        dead: whether all weights were zero once; then all were kept alike, and Ẑ = 0.
    """

    particles: tuple[Completion, ...]
    scores: tuple[float, ...]
    potentials: smc.Floats
    gains: smc.Floats
    weights: smc.Floats
    ancestors: smc.Indices
    dead: bool = False

    @property
    def log_z(self) -> float:
        """Ln Ẑ of the sweep so far."""
        return -np.inf if self.dead else smc.log_mean(self.weights)

    @property
    def law(self) -> smc.Floats:
        """Normalised weights; equal ones where all are zero."""
        return smc.normalise(self.weights)[0]


class State(NamedTuple):
    """One step of a trajectory: the response so far, its score, and ln g of the step."""

    particle: Completion
    score: float
    gain: float


Trajectory: TypeAlias = Sequence[State]


def sweep(
    problem: Problem, n: int, rng: np.random.Generator, verify: Verifier, rule: Rule, held: Trajectory = ()
) -> Program[list[Generation]]:
    """All generations of n particles, of which the last is the `held` trajectory if there is one (then n ≥ 2).

    A held trajectory that ended before the others waits for them, and they for it.
    """
    free = n - bool(held)
    parents = _root(problem, n)
    drawn = yield from sample(problem.prompt, free, temperature=rule.temperature, pause=rule.step)
    history = [(yield from _weighed(problem, drawn, verify, rule, held[:1], parents, 0))]
    for t in range(1, rule.rounds + 1):
        last = history[-1]
        if t >= len(held) and not any(growing(problem, p) for p in last.particles):
            break
        foresight = (yield from _foreseen(problem, last, verify, rule, t)) if rule.ahead else np.zeros(n)
        parents = _resampled(problem, last, foresight, rule, t, rng, bool(held))
        pause = rule.step if t < rule.rounds else ()
        drawn = yield from extend(parents.particles[:free], pause=pause)
        history.append((yield from _weighed(problem, drawn, verify, rule, held[t : t + 1] or held[-1:], parents, t)))
    ends = yield from extend(history[-1].particles)
    return [*history[:-1], replace(history[-1], particles=tuple(ends))]


def trace(history: Sequence[Generation], last: int) -> list[State]:
    """The trajectory of the last generation's particle of this index."""
    states, i = [], last
    for generation in reversed(history):
        states.append(State(generation.particles[i], generation.scores[i], float(generation.gains[i])))
        i = int(generation.ancestors[i])
    return states[::-1]


def decide(
    problem: Problem, finals: Sequence[Generation], rng: np.random.Generator, choose: Choice, why: str
) -> Answer:
    """The response of the highest score; or of the answer of the greatest weight, or drawn in proportion to it.

    Args:
        problem: what to answer.
        finals: last generations of sweeps; each has the same weight.
        rng: draws, if it is to be drawn. Only finished responses are.
        choose: how.
        why: what to say of it.
    """
    pool = [particle for generation in finals for particle in generation.particles]
    law: smc.Floats = np.concatenate([generation.law for generation in finals]) / len(finals)
    done = law * [particle.finished for particle in pool]
    if choose == "best":
        return best(pool, [score for generation in finals for score in generation.scores], why)
    if choose == "vote":
        return elect(problem, pool, law.tolist(), why)
    if not done.any():
        return best(pool, law.tolist(), why)
    drawn = one(done / done.sum(), rng)
    return Answer(pool[drawn], tuple(pool), tuple(law.tolist()), why)


def _root(problem: Problem, n: int) -> Generation:
    nothing = Completion(problem.prompt, "", 0, finish="length")
    return Generation((nothing,) * n, (0.0,) * n, np.zeros(n), np.zeros(n), np.zeros(n), np.arange(n))


def _weighed(
    problem: Problem,
    drawn: Sequence[Completion],
    verify: Verifier,
    rule: Rule,
    held: Trajectory,
    parents: Generation,
    t: int,
) -> Program[Generation]:
    """The generation of what was drawn and of the held trajectory's state, if there is one."""
    told = yield from verify(problem, drawn)
    particles = (*drawn, *(state.particle for state in held))
    scores = (*told, *(state.score for state in held))
    potentials, gains = _gained(problem, scores, rule, parents)
    weights = parents.weights + gains / rule.heat(t)
    return Generation(particles, scores, potentials, gains, weights, parents.ancestors, parents.dead)


def _gained(
    problem: Problem, scores: Sequence[float], rule: Rule, parents: Generation
) -> tuple[smc.Floats, smc.Floats]:
    """Ln G and ln g of particles with these parents."""
    potentials = smc.potentials(scores, rule.reading)
    if rule.weighting == "ratio":
        return potentials, smc.ratios(potentials, parents.potentials)
    ended = [not growing(problem, p) and rule.finished != "compete" for p in parents.particles]
    return potentials, np.where(ended, 0.0, potentials)


def _foreseen(problem: Problem, last: Generation, verify: Verifier, rule: Rule, t: int) -> Program[smc.Floats]:
    """Ln g of one more step of each particle, drawn for that purpose alone."""
    guesses = yield from extend(last.particles, pause=rule.step)
    scores = yield from verify(problem, guesses)
    return _gained(problem, scores, rule, last)[1] / rule.heat(t)


def _resampled(
    problem: Problem,
    last: Generation,
    foresight: smc.Floats,
    rule: Rule,
    t: int,
    rng: np.random.Generator,
    pinned: bool,
) -> Generation:
    """The ancestors of the next generation, with the weights that they carry on; a pinned last place has its own."""
    open_ = np.flatnonzero([rule.finished != "freeze" or growing(problem, p) for p in last.particles])
    weights = last.weights.copy()
    mine, law, n = weights[open_], (weights + foresight)[open_], open_.size
    p, dead = smc.normalise(law)
    picks = np.arange(n)
    if smc.effective_sample_size(p) <= rule.ess * n * (1 + 1e-9):
        annealed = law / rule.anneal(p, t)
        picks[: n - pinned] = smc.RESAMPLERS[rule.resample](smc.normalise(annealed)[0], n - pinned, rng)
        weights[open_] = smc.carry(mine, annealed if rule.corrected else law, picks)
    if dead:
        weights[open_] = 0.0
    ancestors = np.arange(weights.size)
    ancestors[open_] = open_[picks]
    particles, scores = tuple(last.particles[a] for a in ancestors), tuple(last.scores[a] for a in ancestors)
    none = np.zeros(weights.size)
    return Generation(particles, scores, last.potentials[ancestors], none, weights, ancestors, last.dead or dead)


def retained(history: Sequence[Generation], rng: np.random.Generator) -> list[State]:
    """The trajectory of a particle drawn in proportion to its final weight."""
    return trace(history, one(history[-1].law, rng))


def one(law: smc.Floats, rng: np.random.Generator) -> int:
    """An index drawn by probabilities."""
    return int(smc.multinomial(law, 1, rng)[0])
