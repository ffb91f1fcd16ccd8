"""Backward simulation: a trajectory whose beginnings are drawn anew among all particles of a sweep.

From the last step to the first, the rest z_{t+1:T} of the trajectory is put behind each particle x_{1:t}^j, and

    P(j) ∝ W_t^j · p(z_{t+1:T} | x_{1:t}^j) · ∏_{u>t} g_u(x_{1:t}^j, z_{t+1:u})

The policy scores the rest behind each particle, and the verifier the spliced prefixes: n·(T − t) of each at step t.
Exact for draws at temperature 1 with nothing cut off, as far as a response's end is as likely behind any beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from extratime.evaluate.algorithms import smc
from extratime.evaluate.algorithms.particles import Generation, Rule, State, one, trace
from extratime.evaluate.program import Problem, Program, Verifier, growing, score
from extratime.models.request import Completion, Score


def redrawn(
    problem: Problem, history: Sequence[Generation], verify: Verifier, rule: Rule, rng: np.random.Generator
) -> Program[list[State]]:
    """A trajectory drawn by backward simulation from a sweep that resampled at each step.

    A response that did not finish stays as it is; where no splice has any weight, so does its beginning.
    """
    i = one(history[-1].law, rng)
    path = trace(history, i)
    for t in reversed(range(len(history) - 1 if path[-1].particle.finished else 0)):
        here, own = history[t], int(history[t + 1].ancestors[i])
        weigh = _spliced if growing(problem, path[t].particle) else _ended
        law, rests = yield from weigh(problem, here, path[t:], verify, rule)
        p, dead = smc.normalise(law)
        i = own if dead else one(p, rng)
        path = [*trace(history[: t + 1], i), *rests[i]]
    return path


def graft(head: Completion, stem: Completion, whole: Completion, logprobs: Sequence[float]) -> Completion:
    """`head`, and then what `whole` says after its beginning `stem`.

    `logprobs` are those of all that may follow, behind `head`. Where its tokens are other ones than those drawn, each
    token gets the mean.
    """
    if head == stem:
        return whole
    n = whole.n_tokens - stem.n_tokens
    said = n - (whole.finish == "eos")
    told = tuple(logprobs[:said]) if len(logprobs) >= said else (sum(logprobs) / said,) * said
    told = (*head.logprobs, *told, *whole.logprobs[stem.n_tokens + said :])
    text, tokens = head.text + whole.text[len(stem.text) :], head.tokens + whole.tokens[stem.n_tokens :]
    whole = replace(whole, text=text, n_tokens=head.n_tokens + n, tokens=tokens, logprobs=told, tempered=told)
    return replace(whole, path=None, stem=(0, 0))


def _ended(
    problem: Problem, here: Generation, path: Sequence[State], verify: Verifier, rule: Rule
) -> Program[tuple[smc.Floats, list[list[State]]]]:
    """Behind what has ended nothing can follow: any other particle that has ended will do."""
    yield from ()
    law = np.where([growing(problem, p) for p in here.particles], -np.inf, here.weights)
    states = [State(particle, said, 0.0) for particle, said in zip(here.particles, here.scores, strict=True)]
    return law, [[state] * (len(path) - 1) for state in states]


def _spliced(
    problem: Problem, here: Generation, path: Sequence[State], verify: Verifier, rule: Rule
) -> Program[tuple[smc.Floats, list[list[State]]]]:
    """For each particle the log-weight of the path's rest behind it, and that rest as states."""
    stem, whole = path[0].particle, path[-1].particle
    room = problem.max_tokens - whole.n_tokens + stem.n_tokens
    fit = [i for i, head in enumerate(here.particles) if growing(problem, head) and head.n_tokens <= room]
    heads = [here.particles[i] for i in fit]
    told = yield from score(Score(problem.prompt.then(h), whole.text[len(stem.text) :], "policy") for h in heads)
    rows = [[graft(h, stem, s.particle, lp) for s in path[1:]] for h, lp in zip(heads, told, strict=True)]
    said = np.reshape((yield from verify(problem, [particle for row in rows for particle in row])), (len(heads), -1))
    gains = _gains(problem, smc.potentials(said, rule.reading), here.potentials[fit], path, rule)
    law = np.full(len(here.particles), -np.inf)
    law[fit] = here.weights[fit] + [sum(values) for values in told] + gains.sum(1) / rule.heat(0)
    rests: list[list[State]] = [[] for _ in here.particles]
    for i, *columns in zip(fit, rows, said.tolist(), gains.tolist(), strict=True):
        rests[i] = [State(*values) for values in zip(*columns, strict=True)]
    return law, rests


def _gains(
    problem: Problem, potentials: smc.Floats, before: smc.Floats, path: Sequence[State], rule: Rule
) -> smc.Floats:
    """Ln g of each step of each splice, shape (heads, steps)."""
    if rule.weighting == "ratio":
        return smc.ratios(potentials, np.column_stack([before, potentials[:, :-1]]))
    return np.where([growing(problem, state.particle) for state in path[:-1]], potentials, 0.0)
