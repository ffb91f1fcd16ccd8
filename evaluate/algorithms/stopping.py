"""When to give a response up before its end: pure functions (the stop of SEC, arXiv 2401.09964).

The running scores of a response are those of its beginnings; hopeless is one whose running score falls below a
threshold. The threshold is learned on responses that were read to their end, right and wrong ones, of problems that
are not tested later: giving up is worth the tokens of wrong responses, and costs the right ones that it stops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from extratime.evaluate.program import Problem
from extratime.models.request import Completion


class Stops(NamedTuple):
    """What a threshold does to responses that were read to their end.

    Attributes:
        precision: share of the stopped that are wrong; NaN where nothing is stopped.
        recall: share of the wrong that are stopped; NaN where nothing is wrong.
        lost: share of the right that are stopped; NaN where nothing is right.
    """

    precision: float
    recall: float
    lost: float


def running(logprobs: Sequence[float], every: int) -> list[float]:
    """Geometric mean probability of the tokens after each `every` tokens, the end left out: nothing stops there."""
    looks = range(every, len(logprobs), every)
    return [math.exp(sum(logprobs[:n]) / n) for n in looks]


def learned(lowest: Sequence[float], right: Sequence[bool], loss: float = 0.05) -> float:
    """The highest threshold that stops at most a share `loss` of the right responses.

    Args:
        lowest: the lowest running score of each response; +inf for one that ended before the first look.
        right: whether the response is right.
        loss: share of the right responses that may be lost, in [0, 1).

    Raises:
        ValueError: no response is right, or `loss` is out of range.
    """
    kept = sorted(score for score, good in zip(lowest, right, strict=True) if good)
    if not kept or not 0 <= loss < 1:
        raise ValueError(
            f"a threshold needs right responses to keep and a loss in [0, 1), not {len(kept)} and {loss}: "
            "draw more responses or take easier problems"
        )
    return kept[math.floor(loss * len(kept) + 1e-9)]


def stops(lowest: Sequence[float], right: Sequence[bool], threshold: float) -> Stops:
    """What a threshold does to given responses; see `learned` for the arguments."""
    stopped = [score < threshold for score in lowest]
    hit = sum(s and not r for s, r in zip(stopped, right, strict=True))
    miss = sum(stopped) - hit
    wrong = len(stopped) - sum(right)
    return Stops(_share(hit, sum(stopped)), _share(hit, wrong), _share(miss, sum(right)))


def ceiling(problem: Problem, response: Completion) -> float:
    """The highest mean log-probability that an unfinished response can end with: certain tokens up to a full length.

    0 where the engine tells no log-probabilities.
    """
    return sum(response.logprobs) / problem.max_tokens


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
