"""Answers weighed by the probabilities of their responses, and the pruning of unlikely ones."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
from laws import outcomes, pooled, repeated, right, within
from played import P, response, rng
from scipy.stats import weibull_min
from toy import told

from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.rpc import distinct, rpc, survivors
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.weibull import fit, lower
from extratime.models.request import Completion, fail

# --- perplexity consistency


def likely(*said):
    """Responses as (text, probability of each of its two tokens)."""
    return [response(text, n_tokens=2, logprobs=(math.log(p),) * 2) if p else response(text) for text, p in said]


def test_perplexity_consistency_adds_up_distinct_texts():
    pool = likely(("a=1", 0.5), ("b=2", 0.3), ("c=2", 0.3), ("a=1", 0.5))
    answer = pooled(rpc(P, 4, rng(), prune=False), pool)
    assert answer.response.text == "b=2" and answer.weights == pytest.approx((0.5, 0.3, 0.3, 0.0))
    assert pooled(self_consistency(P, 4, rng()), pool).response.text == "a=1"  # which counts a=1 twice
    assert pooled(best_of_n(P, 4, rng()), pool).response.text == "a=1"  # perplexity alone


def test_whole_texts_count_with_their_probabilities():
    answer = pooled(rpc(P, 2, rng(), prune=False, whole=True), likely(("a=1", 0.5), ("b=2", 0.6)))
    assert answer.weights == pytest.approx((0.25, 0.36))


def test_unfinished_and_unparsed_responses_have_no_say_in_perplexity_consistency():
    pool = likely(("a", 0.9), ("b=1", 0.9), ("c=2", 0.1))
    pool[1] = replace(pool[1], finish="length")
    assert pooled(rpc(P, 3, rng()), pool).response.text == "c=2"
    failed = [fail(response(""), "no")] * 3
    assert pooled(rpc(P, 3, rng()), failed).response.finish == "failed"


def test_the_error_of_perplexity_consistency_is_the_exact_one():
    """K paths of q = p/k to one answer; the estimate of its probability is q·D, D the distinct paths among n draws.

    E[D] = k(1 − a), E[D²] = E[D] + k(k − 1)(1 − 2a + b), a = (1 − q)ⁿ, b = (1 − 2q)ⁿ. A share of votes has p(1 − p)/n.
    """
    p, k = 0.6, 4
    q, draw = p / k, rng()
    for n, published in ((4, 0.1118), (16, 0.00758), (64, 0.0)):
        a, b = (1 - q) ** n, (1 - 2 * q) ** n
        once = k * (1 - a)
        exact = q**2 * (once + k * (k - 1) * (1 - 2 * a + b)) - 2 * p * q * once + p**2
        assert exact == pytest.approx(published, rel=1e-2, abs=1e-4)
        assert (exact < p * (1 - p) / n) == (n >= 16)
        errors = []
        for _ in range(4000 if n < 64 else 200):
            paths = draw.choice(k + 1, n, p=[q] * k + [1 - p])
            pool = [Completion(P.prompt, f"{path}", 1) for path in paths]
            errors.append((sum(distinct(pool, [q * (path < k) for path in paths])) - p) ** 2)
        assert np.mean(errors) == pytest.approx(exact, rel=0.05, abs=1e-5)


def test_perplexity_consistency_on_a_model_has_its_law():
    """Answer 1 by three paths of 0.15, answer 2 by one of 0.3, answer 3 by one of 0.25."""
    paths = {"a=1": 0.15, "b=1": 0.15, "c=1": 0.15, "d=2": 0.3, "e=3": 0.25}

    def rule(row):
        sums = {}
        for path in dict.fromkeys(row):
            sums[path[-1]] = sums.get(path[-1], 0.0) + paths[path]
        return max(sums, key=lambda answer: round(sums[answer], 9))

    model = told(lambda text: {"": 1.0} if text else paths)
    results = repeated(functools.partial(rpc, prune=False, whole=True), 4, model)
    assert within(right(results), sum(p * (rule(row) == "1") for row, p in outcomes(paths, 4)))
    for result in results:
        seen = {r.text for r in result.answer.pool}
        assert sum(result.answer.weights) == pytest.approx(sum(paths[text] for text in seen))


# --- pruning


def scores(draw, mean, shape, n):
    return mean / math.gamma(1 + 1 / shape) * draw.weibull(shape, n)


def test_pruning_drops_the_low_ones_and_never_the_likeliest():
    """60 scores of mean 0.8 (k = 12) and 40 of mean 0.35 (k = 4): 95 % of the low ones go, 5 % of the high at most."""
    draw, low, high = rng(), [], []
    for _ in range(30):
        x = np.concatenate([scores(draw, 0.8, 12, 60), scores(draw, 0.35, 4, 40)])
        kept = np.array(survivors(x, 1.0))
        low.append(1 - kept[60:].mean())
        high.append(1 - kept[:60].mean())
        assert kept[x.argmax()]
    assert np.mean(low) >= 0.95 and np.mean(high) <= 0.05


def test_the_likeliest_survives_whatever_the_scores():
    draw = rng()
    for _ in range(60):
        x = draw.choice([draw.random(20), draw.beta(0.3, 0.3, 20), np.full(20, draw.random()), draw.random(20) ** 9])
        x = np.maximum(x[: draw.integers(1, 21)], 1e-12)
        kept = survivors(x, 0.0)
        assert kept[x.argmax()] and all(keep for keep, s in zip(kept, x, strict=True) if s >= x.mean())


def test_a_guard_keeps_what_is_not_two_groups():
    """One law of scores has no low group: the published rule drops three in ten of it all the same."""
    draw, dropped = rng(), {0.0: [], 1.0: [], 3.0: []}
    for _ in range(12):
        x = np.minimum(scores(draw, 0.8, 12, 64), 1.0)
        for apart, shares in dropped.items():
            shares.append(1 - np.mean(survivors(x, apart)))
    published, guarded, never = (np.mean(shares) for shares in dropped.values())
    assert published > 0.25 and guarded < published and never == 0.0


@pytest.mark.parametrize("x", [[0.5] * 40, [0.9, 0.1, 0.1, 0.1, 0.1], [], [0.5], [0.0] * 20, [0.0] * 20 + [0.5] * 20])
def test_what_cannot_be_split_is_kept(x):
    assert survivors(x, 0.0) == [s > 0 for s in x]


@pytest.mark.filterwarnings("error")
def test_a_split_survives_scores_of_any_size():
    x = [1e-280] * 10 + [1e-3] * 5 + [1.0] * 20 + [1 - 1e-9] * 5
    assert all(survivors(x, 1.0)[15:])
    assert survivors([1e-9 * s for s in (1, 2, 3)] + [1.0, 0.99, 0.98, 0.97], 1.0)[3:] == [True] * 4


def test_the_density_is_weibulls_and_the_higher_mean_comes_first():
    draw = rng()
    x = np.concatenate([scores(draw, 0.35, 4, 400), scores(draw, 0.8, 12, 600)])
    mixture = fit(x)
    assert mixture.means() == pytest.approx([0.8, 0.35], abs=0.02)
    assert mixture.shares == pytest.approx([0.6, 0.4], abs=0.03) and mixture.shapes == pytest.approx([12, 4], rel=0.1)
    laws = [weibull_min(k, scale=scale) for k, scale in zip(mixture.shapes, mixture.scales, strict=True)]
    high, low = (share * law.pdf(x) for share, law in zip(mixture.shares, laws, strict=True))
    assert np.exp(mixture.log_densities(x)) == pytest.approx(np.array([high, low]))
    assert mixture.means() == pytest.approx([law.mean() for law in laws])
    assert mixture.spread() == pytest.approx(math.sqrt(sum(law.var() for law in laws) / 2))
    assert list(lower(x, 0.0)) == list((high / (high + low) < 0.5) & (x < x.mean()))


def test_pruning_takes_votes_from_the_unlikely():
    """Four unlikely ways to one answer outweigh three likely ways to another, until they are dropped."""
    draw = rng()
    pool = likely(
        *[(f"{i}=1", 0.8 + 0.01 * x) for i, x in enumerate(draw.normal(size=6))],
        *[(f"{i}=2", 0.3 + 0.02 * x) for i, x in enumerate(draw.normal(size=18))],
    )
    assert pooled(rpc(P, 24, rng(), prune=False), pool).response.text[-1] == "2"
    answer = pooled(rpc(P, 24, rng()), pool)
    assert answer.response.text[-1] == "1" and answer.weights[6:] == (0.0,) * 18
