"""How sure a model was of what it wrote (DeepConf, arXiv 2508.15260, §3): of tokens, of groups, of a whole response.

The paper's confidence of a token is the mean −log p of the likeliest twenty, which engines do not tell. Here it is the
log-probability of the token drawn: higher is surer as well, but one draw says less than twenty alternatives. Groups
are averages over `window` consecutive tokens. A response's confidence is the exponential, so that it can vote, in
[0, 1]; filters look at order only and do not notice. Log-probabilities have shape (tokens,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def groups(logprobs: Sequence[float], window: int) -> Floats:
    """Mean of each `window` consecutive tokens; one of all tokens where there are fewer, none where there are none."""
    x = np.asarray(logprobs, dtype=np.float64)
    if not x.size:
        return x
    return np.asarray(np.lib.stride_tricks.sliding_window_view(x, min(window, x.size)).mean(axis=1))


def mean(logprobs: Sequence[float], window: int) -> float:
    """Over all tokens, as self-certainty and likelihood do; `window` is not used."""
    return float(np.mean(logprobs))


def tail(logprobs: Sequence[float], window: int) -> float:
    """Over the last `window` tokens."""
    return float(np.mean(logprobs[-window:]))


def lowest(logprobs: Sequence[float], window: int) -> float:
    """Of the least sure group."""
    return float(groups(logprobs, window).min())


def bottom(logprobs: Sequence[float], window: int, share: float = 0.1) -> float:
    """Over the least sure tenth of the groups, one at least."""
    sure = np.sort(groups(logprobs, window))
    return float(sure[: max(1, int(share * sure.size))].mean())


MEASURES: dict[str, Callable[[Sequence[float], int], float]] = {
    "mean": mean,
    "tail": tail,
    "lowest": lowest,
    "bottom": bottom,
}


def confidence(logprobs: Sequence[float], measure: str, window: int) -> float:
    """In [0, 1], by one of `MEASURES`; 0 where nothing was written."""
    return math.exp(MEASURES[measure](logprobs, window)) if logprobs else 0.0


def bar(confidences: Sequence[float], keep: float) -> float:
    """What the surest share `keep` of the confidences reach: their (1 − keep) quantile; 0 where there are none."""
    return float(np.quantile(confidences, 1 - keep)) if confidences else 0.0
