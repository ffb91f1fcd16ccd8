"""Zero-order search (Ma et al., arXiv 2501.09732, §3.2): look for something better in the neighbourhood of the best.

    pivot ← a response
    repeat: draw N neighbours of the pivot; if the best of them has a higher score, it is the pivot

There a neighbour is a noise near that of the best image; here it has a beginning of the pivot, cut off at the end of
one of its steps (or before the first), and goes on by itself. A long beginning is a small distance, and cheap. It
climbs whatever the verifier rewards, mistakes as well: compare with `best_of_n`, which draws anew each time.

Budget law: `budget` full lengths. Only beginnings are taken whose neighbours can still be read to their ends, so that
none is cut off and a budget of 1 is a plain draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extratime.evaluate.algorithms.search import affordable, root, trails
from extratime.evaluate.program import Answer, Problem, Program, Verifier, best, extend, rank, sample, standing
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.models.request import Completion


def zero_order_search(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    neighbours: int = 4,
    verify: Verifier = likelihood,
    step: Sequence[str] = ("\n",),
    rounds: int = 40,
) -> Program[Answer]:
    """The response with the highest score of all.

    Args:
        problem: what to answer.
        budget: full lengths that may be read.
        rng: draws where the pivot is cut, each of its beginnings equally likely.
        neighbours: N; published 2 and 4.
        verify: scores responses.
        step: strings that end a step.
        rounds: at most so many.
    """
    begun = yield from sample(problem.prompt, pause=step)
    [pivot] = yield from trails(problem, begun, step)
    pool, spent = pivot[-1:], pivot[-1].n_tokens
    scores = yield from verify(problem, pool)
    record = _worth(pool[0], scores[0])
    for _ in range(rounds):
        beginnings = [root(problem), *pivot[:-1]]
        cuts = [k for k, prefix in enumerate(beginnings) if affordable(problem, prefix, budget, spent)]
        if not cuts:
            break
        k = cuts[rng.integers(len(cuts))]
        n = min(neighbours, affordable(problem, beginnings[k], budget, spent))
        begun = yield from extend([beginnings[k]] * n, pause=step)
        found = yield from trails(problem, begun, step)
        ends = [trail[-1] for trail in found]
        spent += sum(end.n_tokens - beginnings[k].n_tokens for end in ends)
        told = yield from verify(problem, ends)
        pool, scores = pool + ends, scores + told
        top = max(range(n), key=lambda i: _worth(ends[i], told[i]))
        if _worth(ends[top], told[top]) > record:
            pivot, record = [*pivot[:k], *found[top]], _worth(ends[top], told[top])
    return best(pool, scores, f"highest score of {len(pool)} responses")


def _worth(response: Completion, score: float) -> tuple[int, float]:
    """What the pivot is chosen by, as `best` does."""
    return standing(response), rank(score)
