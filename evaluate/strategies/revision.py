"""Sequential revisions (Snell et al., arXiv 2408.03314, §6): each answer of a chain sees the answers before it.

`budget` answers make up P chains of length S, P·S = budget, with S/P near `ratio`. A chain begins with a response to
the problem; each further one is asked to do better than the last `context` answers. Right answers turn wrong again
(38 % of them, in the paper), so the last one is not trusted: all of the chain are candidates.

Selection is hierarchical (the weighted vote of each chain, then that of the chains' winners, each with its own score),
flat (one weighted vote), or by majority over all answers. Only finished answers are shown to the next one; where there
is none, the problem is asked again.

Budget law: at most `budget` full-length samples. With `ratio: 0` this is parallel sampling; the prompts of long chains
cost more to read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Literal

import numpy as np

from extratime.evaluate.algorithms.prompts import ask, fill, numbered
from extratime.evaluate.algorithms.vote import elect
from extratime.evaluate.program import Answer, Problem, Program, Verifier, gather, sample
from extratime.evaluate.strategies.weighted_vote import weights
from extratime.evaluate.verifiers.likelihood import likelihood
from extratime.models.request import Completion

PROMPT = (
    "{question}\n\nEarlier attempts at this problem follow, the latest last. They may be wrong.\n\n{attempts}\n\n"
    "Find what is wrong with them and solve the problem again. Write the complete solution with its final answer."
)


def revision(
    problem: Problem,
    budget: int,
    rng: np.random.Generator,
    verify: Verifier = likelihood,
    ratio: float = 1.0,
    context: int = 4,
    select: Literal["hierarchical", "flat", "majority"] = "hierarchical",
    prompt: str = PROMPT,
) -> Program[Answer]:
    """An answer elected among those of all chains.

    Args:
        problem: what to answer.
        budget: answers in all.
        rng: not used.
        verify: scores complete answers; it may read their prompts, which hold the history.
        ratio: length of a chain per number of chains; the paper sweeps powers of 2. 0 is all parallel, `.inf` one
            chain. Easy problems want long chains, hard ones a balance.
        context: latest answers that a revision sees; 4 in the paper.
        select: how the answer is chosen; the majority asks no verifier.
        prompt: with the places {question} and {attempts}.
    """
    first = yield from sample(problem.prompt, width(budget, ratio))
    chains = [[response] for response in first]
    for left in range(budget - len(chains), 0, -len(chains)):
        revised = yield from gather(revise(problem, chain[-context:], prompt) for chain in chains[:left])
        for chain, response in zip(chains, revised, strict=False):
            chain.append(response)
    pool = [response for chain in chains for response in chain]
    if select == "majority":
        return elect(problem, pool, [1.0] * budget, "majority over all chains")
    votes = weights((yield from verify(problem, pool)))
    if select == "flat":
        return elect(problem, pool, votes, "weighted vote over all chains")
    return hierarchical(problem, chains, votes)


def width(budget: int, ratio: float) -> int:
    """The number P of chains, budget = P·S answers in all, for which S/P is nearest to `ratio`."""
    if ratio < 0:
        raise ValueError(f"the ratio of sequential to parallel answers must be ≥ 0, not {ratio}")
    return min(budget, max(1, round(math.sqrt(budget / ratio)))) if ratio else budget


def revise(problem: Problem, attempts: Sequence[Completion], prompt: str = PROMPT) -> Program[Completion]:
    """One answer that has seen the finished ones among `attempts`."""
    seen = [attempt.text for attempt in attempts if attempt.finished]
    told = fill(prompt, question=problem.question, attempts=numbered(seen)) if seen else ""
    [response] = yield from ask(problem, problem.turn(told) if told else problem.prompt)
    return response


def hierarchical(problem: Problem, chains: Sequence[Sequence[Completion]], votes: Sequence[float]) -> Answer:
    """The winner of a weighted vote among the winners of each chain's own; `votes` in the order of the chains."""
    rest, winners, own = iter(votes), [], []
    for chain in chains:
        told = list(islice(rest, len(chain)))
        winners.append(elect(problem, chain, told, "").response)
        own.append(told[chain.index(winners[-1])])
    final = elect(problem, winners, own, "weighted vote of the chains' winners")
    return Answer(final.response, tuple(r for chain in chains for r in chain), tuple(votes), final.why)
