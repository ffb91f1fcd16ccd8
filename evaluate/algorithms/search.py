"""Tree search over steps: what scores, prefixes and the rest of a budget come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from extratime.evaluate.algorithms.smc import logarithms
from extratime.evaluate.program import Problem, Program, extend, growing
from extratime.models.request import Completion


def allot(weights: Sequence[float], n: int) -> list[int]:
    """Shares of exactly `n` children in proportion to weights: rounded up, the greatest first.

    What is left of `n` is shared out among the weights that are left, so that no child is lost or gained, as there
    would be if each share were rounded alone. Ties keep their order; a weight of 0 has no share.
    """
    order = sorted((i for i, w in enumerate(weights) if w > 0), key=lambda i: -weights[i])
    totals = list(accumulate(weights[i] for i in reversed(order)))[::-1]
    shares, left = [0] * len(weights), n
    for i, total in zip(order, totals, strict=True):
        shares[i] = math.ceil(left * (weights[i] / total) - 1e-12)
        left -= shares[i]
    return shares


def probabilities(scores: Sequence[float]) -> list[float]:
    """Scores as numbers in [0, 1], NaN and -inf as 0; they are logarithms if a finite one is negative."""
    told = np.asarray(scores, dtype=np.float64)
    clipped = np.clip(np.exp(np.minimum(told, 0.0)) if logarithms(told) else told, 0.0, 1.0)
    return [float(p) for p in np.nan_to_num(clipped, nan=0.0)]


def affordable(problem: Problem, prefix: Completion, budget: int, spent: int) -> int:
    """How many continuations of `prefix` the tokens that are left could read to a full length.

    Whoever reads no more of them than that can always finish one of them.
    """
    return (budget * problem.max_tokens - spent) // (problem.max_tokens - prefix.n_tokens)


def together(
    problem: Problem, prefixes: list[Completion], left: int, longest: int
) -> tuple[list[Completion], int | None]:
    """The first of `prefixes` that may be read on side by side, and to what length if not to a full one.

    Whatever they say up to that length, any one of them can still be read to a full length L afterwards: n prefixes of
    lengths ℓ get to (left − L + Σ ℓ)/(n − 1) at most. There are fewer where that is no room for a step.

    Args:
        problem: what they answer.
        prefixes: unfinished; the tokens that are left suffice to read each of them, alone, to a full length.
        left: tokens.
        longest: tokens of the longest step so far.
    """
    full, sizes = problem.max_tokens, [prefix.n_tokens for prefix in prefixes]
    for n in range(len(prefixes), 1, -1):
        level = (left - full + sum(sizes[:n])) // (n - 1)
        if level >= full:
            return prefixes[:n], None
        if level >= max(sizes[:n]) + longest:
            return prefixes[:n], level
    return prefixes[:1], None


def branch(problem: Problem, prefix: Completion, n: int, step: Sequence[str]) -> Program[tuple[list[Completion], int]]:
    """Up to `n` distinct continuations of `prefix` by a step, and how many tokens they took."""
    read = yield from extend([prefix] * n, pause=step)
    spent = sum(said.n_tokens - prefix.n_tokens for said in read)
    full = [said.finish == "pause" and said.n_tokens >= problem.max_tokens for said in read]
    return distinct([replace(r, finish="length") if at else r for r, at in zip(read, full, strict=True)]), spent


def trails(problem: Problem, begun: Sequence[Completion], step: Sequence[str]) -> Program[list[list[Completion]]]:
    """The ends of what was begun by a step, each after its prefixes: one a step that says something."""
    found: list[list[Completion]] = [[] for _ in begun]
    while any(growing(problem, draw) for draw in begun):
        for trail, draw in zip(found, begun, strict=True):
            if growing(problem, draw) and draw.text[len(trail[-1].text) if trail else 0 :].strip():
                trail.append(draw)
        begun = yield from extend(begun, pause=step)
    ends = yield from extend(begun)
    return [[*trail, end] for trail, end in zip(found, ends, strict=True)]


def distinct(completions: Sequence[Completion]) -> list[Completion]:
    """Without those that say what an earlier one says and end as it does."""
    kept: dict[tuple[str, str], Completion] = {}
    for completion in completions:
        kept.setdefault((completion.text, completion.finish), completion)
    return list(kept.values())


def root(problem: Problem) -> Completion:
    """The empty response, to be read on like any prefix."""
    return Completion(problem.prompt, "", 0, finish="length")
