"""What the stored pools alone tell: pass@k, maj@k and worst@k of the policy, best-of-k and AUROC of every verifier.

The policy's pool of a problem is its largest one of plain i.i.d. samples. A strategy whose pools carry different
weights tells what its verifier is worth, so a verifier goes by the strategy's label; one that ranks as an earlier one
did is left out. All @k figures are exact means over the k-subsets of a pool (`statistics/at_k.py`), k in powers
of two, over the problems with at least k samples. Replicates are pools of their own, the first of the largest counts.

pass@k is the mean of the best score among k, which is the usual one where scores are 0 or 1, and worst@k that of the
worst: what any choice lies between. maj@k and AUROC are told only where scores are 0 or 1. A failed draw takes its
place in the pool and is worth nothing. Where a curve bends is fitted to the k that every pool has (`saturation.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from extratime.evaluate.program import rank
from extratime.evaluate.report.leaderboard import by_task, plain
from extratime.evaluate.report.read import Response, Result, Run
from extratime.evaluate.statistics import calibration, resampling
from extratime.evaluate.statistics.arrays import Array
from extratime.evaluate.statistics.at_k import best_of_k, maj_at_k, vote_counts
from extratime.evaluate.statistics.questions import clustered_ci
from extratime.evaluate.statistics.saturation import fit


@dataclass(frozen=True, slots=True)
class AtK:
    """One exact @k figure of a task: `kind` is "pass", "maj", "worst" or "best"; `verifier` is "" but for "best"."""

    task: str
    kind: str
    verifier: str
    k: int
    value: float
    low: float
    high: float
    questions: int


@dataclass(frozen=True, slots=True)
class Enough:
    """When more samples stop paying: F(N) = ceiling·(1 − (1 − p)^N) as fitted to an @k curve.

    Attributes:
        ceiling, p: of the fit; NaN where more samples do not help.
        enough: least N whose next sample adds at most one point; NaN where more samples do not help.
        low, high: its 95 % interval from resampling questions.
        misfit: greatest distance of a measured point from the fit; where it is large the curve is none of these.
    """

    task: str
    kind: str
    verifier: str
    ceiling: float
    p: float
    enough: float
    low: float
    high: float
    misfit: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well a verifier ranks right above wrong: over all samples, and inside each question with both kinds.

    Attributes:
        aurc: mean share of wrong ones among the samples of the highest weights, whatever their number.
        brier, ece, log_loss: how far its weights are from the chances they may be; NaN unless all lie in [0, 1].
    """

    task: str
    verifier: str
    auroc: float
    auroc_low: float
    auroc_high: float
    within: float
    within_low: float
    within_high: float
    questions: int
    mixed_questions: int
    aurc: float
    brier: float
    ece: float
    log_loss: float


@dataclass(frozen=True, slots=True)
class Pool:
    """The samples of one problem: responses and weights (NaN where there is none), in the order of their draw."""

    responses: tuple[Response, ...]
    weights: tuple[float, ...]

    @property
    def worth(self) -> list[float]:
        """Scores."""
        return [response.worth for response in self.responses]

    @property
    def ranks(self) -> list[int]:
        """Places as `extratime.evaluate.program.best` ranks: finished before unfinished before failed, then weight."""
        keys = [
            (response.standing, rank(weight)) for response, weight in zip(self.responses, self.weights, strict=True)
        ]
        order = {key: rank for rank, key in enumerate(sorted(set(keys)))}
        return [order[key] for key in keys]


Pools = dict[str, Pool]


def pool_statistics(run: Run, resamples: int = 10_000) -> tuple[list[AtK], list[Ranking], list[Enough]]:
    """Figures at k, verifiers' rankings and saturation of each task, and of all together where there are several.

    Args:
        run: what to summarise.
        resamples: of every bootstrap.
    """
    at_k: list[AtK] = []
    rankings: list[Ranking] = []
    bends: list[Enough] = []
    for task, drawn in by_task(run):
        results = [r for r in drawn if plain(run, r.strategy)]
        shared = largest(results, run.responses)
        binary = all(worth in (0, 1) for pool in shared.values() for worth in pool.worth)
        judged = verifiers(results, run.responses)
        curves = [("pass", "", shared, _reached), ("worst", "", shared, _worst)]
        curves[1:1] = [("maj", "", shared, _majority)] if binary else []
        for kind, verifier, pools, of in curves + [("best", name, pools, _best) for name, pools in judged.items()]:
            values = _values(pools, of)
            at_k += _figures(task, kind, verifier, values, resamples)
            bends += _bend(task, kind, verifier, values, resamples)
        rankings += [_ranking(task, name, pools, resamples) for name, pools in judged.items() if binary]
    return at_k, rankings, bends


def largest(results: Iterable[Result], responses: Mapping[str, Response]) -> Pools:
    """The largest pool of each problem; of equals, the first."""
    largest: dict[str, Result] = {}
    for r in results:
        if r.problem not in largest or len(r.pool) > len(largest[r.problem].pool):
            largest[r.problem] = r
    pools = {}
    for problem, r in largest.items():
        known = [(responses[i], math.nan if w is None else w) for i, w in r.pool if i in responses]
        if known:
            pools[problem] = Pool(tuple(drawn for drawn, _ in known), tuple(w for _, w in known))
    return pools


def verifiers(results: Sequence[Result], responses: Mapping[str, Response]) -> dict[str, Pools]:
    """Pools by label where weights differ: otherwise there was no verifier, only a count."""
    found: dict[str, Pools] = {}
    rankings: list[list[list[int]]] = []
    for label in dict.fromkeys(r.strategy for r in results):
        pools = largest((r for r in results if r.strategy == label), responses)
        ranks = [pool.ranks for pool in pools.values()]
        if any(len(set(p.weights)) > 1 for p in map(_weighed, pools.values())) and ranks not in rankings:
            rankings.append(ranks)
            found[label] = pools
    return found


def _weighed(pool: Pool) -> Pool:
    """The samples that have a weight."""
    kept = [(r, w) for r, w in zip(pool.responses, pool.weights, strict=True) if not math.isnan(w)]
    return Pool(tuple(r for r, _ in kept), tuple(w for _, w in kept))


def _reached(pool: Pool, ks: Sequence[int]) -> list[float]:
    worth = pool.worth
    return [best_of_k(worth, worth, k) for k in ks]


def _worst(pool: Pool, ks: Sequence[int]) -> list[float]:
    worth = pool.worth
    return [best_of_k(worth, [-w for w in worth], k) for k in ks]


def _majority(pool: Pool, ks: Sequence[int]) -> list[float]:
    """Only finished responses vote, as in `extratime.evaluate.algorithms.vote`."""
    votes = [response.answer if response.standing == 2 else None for response in pool.responses]
    flags = [worth > 0 and vote is not None for worth, vote in zip(pool.worth, votes, strict=True)]
    counts = vote_counts(votes, flags)
    return [maj_at_k(*counts, k) for k in ks]


def _best(pool: Pool, ks: Sequence[int]) -> list[float]:
    worth, ranks = pool.worth, np.array(pool.ranks, dtype=float)
    return [best_of_k(worth, ranks, k) for k in ks]


def _values(pools: Pools, of: Callable[[Pool, Sequence[int]], list[float]]) -> dict[int, list[float]]:
    """`of(pool, ks)` of each pool at each k, over the pools that hold so many samples."""
    values: dict[int, list[float]] = {}
    for pool in pools.values():
        ks = [2**i for i in range(len(pool.responses).bit_length())]
        for k, value in zip(ks, of(pool, ks), strict=True):
            values.setdefault(k, []).append(value)
    return dict(sorted(values.items()))


def _figures(task: str, kind: str, verifier: str, values: Mapping[int, Sequence[float]], resamples: int) -> list[AtK]:
    figures = []
    for k, each in values.items():
        ci = clustered_ci(np.array(each), np.random.default_rng(0), resamples)
        figures.append(AtK(task, kind, verifier, k, ci.value, ci.low, ci.high, ci.questions))
    return figures


FITS = 200
"""Resamples of a fit at most: each is a search."""
POINT = 0.01


def _bend(task: str, kind: str, verifier: str, values: Mapping[int, Sequence[float]], resamples: int) -> list[Enough]:
    """Where a rising curve bends; nothing where fewer than three k are known of every pool, or two questions."""
    whole = {k: np.array(each) for k, each in values.items() if len(each) == len(values.get(1, ()))}
    questions = len(values.get(1, ()))
    if kind == "worst" or len(whole) < 3 or questions < 2:
        return []
    spread = {k: float(each.var(ddof=1)) / questions for k, each in whole.items()}
    means = {k: float(each.mean()) for k, each in whole.items()}
    curve = fit(means, spread)
    if curve is None:
        return [Enough(task, kind, verifier, *[math.nan] * 6)]
    draws = []
    for counts in resampling.resampled(questions, min(resamples, FITS), np.random.default_rng(0)):
        for row in counts / questions:
            drawn = fit({k: min(1.0, float(row @ each)) for k, each in whole.items()}, spread)
            draws.append(drawn.enough(POINT) if drawn else 1)
    ends = resampling.percentiles(np.array(draws, dtype=float), questions)
    misfit = max(abs(curve.at(k) - mean) for k, mean in means.items())
    return [Enough(task, kind, verifier, curve.ceiling, curve.p, curve.enough(POINT), *ends, misfit)]


def _ranking(task: str, verifier: str, pools: Pools, resamples: int) -> Ranking:
    weighed = [pool for pool in map(_weighed, pools.values()) if pool.responses]
    scores, labels = [pool.weights for pool in weighed], [pool.worth for pool in weighed]
    whole = calibration.auroc_ci(scores, labels, np.random.default_rng(0), resamples)
    within = calibration.within_question_auroc(scores, labels, np.random.default_rng(0), resamples)
    return Ranking(
        task,
        verifier,
        whole.value,
        whole.low,
        whole.high,
        within.value,
        within.low,
        within.high,
        whole.questions,
        within.questions,
        *_calibration(np.concatenate(scores), np.concatenate(labels)),
    )


def _calibration(weights: Array, right: Array) -> tuple[float, float, float, float]:
    """Area under risk by coverage, Brier score, calibration error and log-loss."""
    aurc = calibration.aurc(weights, right)
    if weights.min() < 0 or weights.max() > 1:
        return aurc, math.nan, math.nan, math.nan
    brier, ece = calibration.brier(weights, right), calibration.ece(weights, right)
    return aurc, brier, ece, calibration.log_loss(weights, right)
