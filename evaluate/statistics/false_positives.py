"""Right answers from wrong work (arXiv 2502.06217): what accuracy is left when the work is checked, too.

A grader that compares final answers accepts lucky draws: false positives. Their rate is taken among what the grader
accepts, so that true accuracy = automatic accuracy · (1 − rate). They inflate pass@k most, since one lucky draw of k
is enough: of draws that are valid with probability v and lucky with l, pass@k is said to be 1 − (1 − v − l)^k and is
1 − (1 − v)^k. How many draws of a question are valid is known where all accepted ones were reviewed; where a random
part was, the others are valid with the posterior of that part.

Shapes: `n` draws of a question, `accepted` of them by the grader, `reviewed` of those by hand or by a program, of
which `false` turned out to be wrong work.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import betabinom

from extratime.evaluate.statistics.at_k import pass_at_k


def false_positive_rate(reviewed: int, false: int) -> float:
    """Share of the accepted draws whose work is wrong; NaN where none was reviewed.

    Raises:
        ValueError: counts that cannot be.
    """
    _check(reviewed, reviewed, reviewed, false)
    return false / reviewed if reviewed else math.nan


def true_pass_at_k(n: int, accepted: int, reviewed: int, false: int, k: int) -> float:
    """P(at least one of k draws is valid), from a review of some of the accepted draws.

    The valid ones among those not reviewed are Beta-binomial under a uniform prior, and 1 − C(n−v, k)/C(n, k) is
    averaged over them: it is no straight line in v, so that a mean or rounded v would be wrong.

    Raises:
        ValueError: counts that cannot be, or k outside 1..n.
    """
    _check(n, accepted, reviewed, false)
    valid, left = reviewed - false, accepted - reviewed
    odds = betabinom.pmf(np.arange(left + 1), left, valid + 1, false + 1)
    return float(sum(p * pass_at_k(n, valid + more, k) for more, p in enumerate(odds)))


def inflation(n: int, accepted: int, reviewed: int, false: int, k: int) -> float:
    """What false positives add to pass@k."""
    return pass_at_k(n, accepted, k) - true_pass_at_k(n, accepted, reviewed, false, k)


def corrected_rate(flagged: float, sensitivity: float, specificity: float) -> float:
    """The true rate of what a detector that errs flags (Rogan & Gladen 1978), in [0, 1].

    (flagged + b − 1) / (a + b − 1) with a = P(flagged | false), b = P(not flagged | valid). A detector of the usual
    quality (F1 near ½) says little without it. NaN where a + b ≤ 1: such a detector knows nothing.

    Raises:
        ValueError: a number is no probability.
    """
    if not all(0 <= x <= 1 for x in (flagged, sensitivity, specificity)):
        raise ValueError(f"rates must lie in [0, 1], not {flagged}, {sensitivity} and {specificity}")
    known = sensitivity + specificity - 1
    return min(1.0, max(0.0, (flagged + specificity - 1) / known)) if known > 1e-12 else math.nan


def guessed(k: int, chance: float) -> float:
    """P(one of k guesses is right), each with probability `chance`: what pass@k says of a model that knows nothing."""
    return 1 - (1 - chance) ** k


def _check(n: int, accepted: int, reviewed: int, false: int) -> None:
    if not 0 <= false <= reviewed <= accepted <= n:
        raise ValueError(
            f"{false} false of {reviewed} reviewed of {accepted} accepted of {n} draws: each must be part of the next"
        )
