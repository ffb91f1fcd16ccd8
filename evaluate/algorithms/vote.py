"""Voting over answers: pure functions.

A response votes for `problem.answer(text)`; one from which nothing can be read never wins and never counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from scipy.integrate import quad
from scipy.special import betainc, gammainc, gammaincinv

from extratime.evaluate.program import Answer, Problem, rank, standing
from extratime.models.request import Completion


def ballots(problem: Problem, responses: Sequence[Completion]) -> list[Hashable | None]:
    """What each response votes for; None for unfinished, failed and unparsed ones."""
    return [problem.answer(r.text) if r.finished else None for r in responses]


def tally(votes: Sequence[Hashable | None], weights: Sequence[float]) -> dict[Hashable, float]:
    """Sum of weights by answer, in order of first appearance.

    Weights must be finite and at least 0, save that -inf and NaN count as 0. If all weights are zero every vote counts
    one, since all-zero weights say nothing.

    Raises:
        ValueError: a negative or infinite weight.
    """
    clean = [0.0 if math.isnan(w) or w == -math.inf else w for w in weights]
    if any(w < 0 or w == math.inf for w in clean):
        raise ValueError(f"weights of a vote must be finite and ≥ 0, not {min(clean)} … {max(clean)}")
    if not any(w for w, vote in zip(clean, votes, strict=True) if vote is not None):
        clean = [1.0] * len(clean)
    counts: dict[Hashable, float] = {}
    for vote, weight in zip(votes, clean, strict=True):
        if vote is not None:
            counts[vote] = counts.get(vote, 0.0) + weight
    return counts


def elect(problem: Problem, responses: Sequence[Completion], weights: Sequence[float], why: str) -> Answer:
    """The heaviest response of the class with the greatest total weight.

    Ties between classes go to the class that appeared first; sums within 1e-12 of each other, relatively, are a tie,
    since a sum is rounded otherwise in another order. If nobody votes, the heaviest finished response answers, else
    the heaviest unfinished one; a failed one only if all failed.
    """
    votes = ballots(problem, responses)
    counts = tally(votes, weights)
    most = max(counts.values(), default=0.0) * (1 - 1e-12)
    winner = next((vote for vote, weight in counts.items() if weight >= most), None)
    members = [i for i, vote in enumerate(votes) if vote == winner]
    chosen = max(members, key=lambda i: (standing(responses[i]), rank(weights[i]), -i))
    return Answer(responses[chosen], tuple(responses), tuple(weights), why if counts else "nobody voted")


def elect_among(problem: Problem, responses: Sequence[Completion], voters: Sequence[bool], why: str) -> Answer:
    """The answer that most of the voters give; all responses vote if there are no voters.

    Ties go to the answer that appeared first among the voters. The weights say who voted.
    """
    some = [r for r, votes in zip(responses, voters, strict=True) if votes] or responses
    chosen = elect(problem, some, [1.0] * len(some), why)
    return Answer(chosen.response, tuple(responses), tuple(map(float, voters)), chosen.why)


def agreement(pools: Sequence[Sequence[Hashable | None]], within: float, across: float) -> Hashable | None:
    """The answer on which pools of votes agree, each sure of its own; None if they do not (arXiv 2510.02611).

    Args:
        pools: votes; None counts as a member of its pool without an answer.
        within: share of a pool that its commonest answer needs for the pool to be sure; all pools must be.
        across: share of the pools whose commonest answer must be the same.
    """
    tops = [_commonest(pool, within) for pool in pools]
    if not pools or None in tops:
        return None
    answer, named = Counter(tops).most_common(1)[0]
    return answer if named / len(pools) >= across else None


def _commonest(pool: Sequence[Hashable | None], within: float) -> Hashable | None:
    counts = Counter(vote for vote in pool if vote is not None)
    answer, given = counts.most_common(1)[0] if counts else (None, 0)
    return answer if given and given / len(pool) >= within else None


def beta_confidence(counts: Sequence[float]) -> float:
    """P(the leader is likelier than its first rival | votes), all else ignored (arXiv 2305.11860, §3, "Beta").

    P(p > ½) for p ~ Beta(a + 1, b + 1), a and b the votes of the two leading answers; ½ before any vote.
    """
    first, second = _leaders(counts)[:2]
    return float(betainc(second + 1, first + 1, 0.5))


def dirichlet_confidence(counts: Sequence[float]) -> float:
    """P(the leader is the likeliest answer | votes), for p ~ Dirichlet(votes + 1) (arXiv 2305.11860, §3).

    One answer alone has an unseen rival without votes. Exact where the authors' code samples: Dirichlet shares are
    Gamma variables over their sum, so this is ∫ f₁(x) Π F_j(x) dx, here over u = F₁(x).
    """
    first, *rivals = _leaders(counts)

    def all_below(u: float) -> float:
        x = gammaincinv(first + 1, u)
        return math.prod(float(gammainc(rival + 1, x)) for rival in rivals)

    return float(quad(all_below, 0.0, 1.0)[0])


def _leaders(counts: Sequence[float]) -> list[float]:
    """Votes from most to least; at least two answers."""
    return sorted([*counts, *[0.0] * (2 - len(counts))], reverse=True)
