"""Answers weighed by the probabilities of their responses, and the pruning of unlikely ones."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
from laws import outcomes, pooled, repeated, right, within
from played import P, response, rng
from scipy.optimize import OptimizeResult
from scipy.stats import weibull_min
from toy import told

from extratime.evaluate.algorithms.weibull import fit, lower
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.rpc import distinct, rpc, survivors
from extratime.evaluate.strategies.self_consistency import self_consistency
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


def test_what_never_ended_does_not_take_the_place_of_a_text_that_did():
    """A failed or unfinished draw may break off where another one ends."""
    pool = likely(("a=1", 0.9), ("a=1", 0.9), ("b=2", 0.4))
    for finish in ("failed", "length", "cut"):
        pool[0] = replace(pool[0], finish=finish)
        answer = pooled(rpc(P, 3, rng(), prune=False), pool)
        assert answer.response is pool[1] and answer.weights == pytest.approx((0.0, 0.9, 0.4))


def squared_error(p, k, n):
    """Of the estimate q·D of an answer's probability p, D the distinct seen of its k paths of q = p/k; and E[q·D].

    E[D] = k(1 − a), E[D²] = E[D] + k(k − 1)(1 − 2a + b), a = (1 − q)ⁿ, b = (1 − 2q)ⁿ.
    """
    q = p / k
    a, b = (1 - q) ** n, (1 - 2 * q) ** n
    once = k * (1 - a)
    return q**2 * (once + k * (k - 1) * (1 - 2 * a + b)) - 2 * p * q * once + p**2, q * once


@pytest.mark.parametrize(
    ("k", "n", "error", "votes"),
    [
        (4, 4, 0.1118, 0.060),
        (4, 16, 0.00758, 0.015),
        (4, 64, 0.0, 0.00375),
        (40, 16, 0.223, 0.015),  # worse than votes until most paths were seen
    ],
)
def test_the_error_of_perplexity_consistency_is_the_exact_one(k, n, error, votes):
    """A share of votes has p(1 − p)/n."""
    p, draw = 0.6, rng()
    q, exact = p / k, squared_error(p, k, n)[0]
    assert exact == pytest.approx(error, rel=1e-2, abs=1e-4) and p * (1 - p) / n == pytest.approx(votes, rel=1e-3)
    assert (exact < p * (1 - p) / n) == (k == 4 and n >= 16)
    errors, shares = [], []
    for _ in range(4000 if n < 64 else 400):
        paths = draw.choice(k + 1, n, p=[q] * k + [1 - p])
        pool = [Completion(P.prompt, f"{path}", 1) for path in paths]
        errors.append((sum(distinct(pool, [q * (path < k) for path in paths])) - p) ** 2)
        shares.append((np.mean(paths < k) - p) ** 2)
    assert np.mean(errors) == pytest.approx(exact, rel=0.05, abs=1e-5)
    assert np.mean(shares) == pytest.approx(votes, rel=0.2 if n == 64 else 0.07)


def test_the_exact_error_is_that_of_a_path_where_each_answer_has_one_and_not_the_printed_one():
    """Reasoning error without the model's: of a right answer, E[(x − 1)²] − (p − 1)².

    One path is seen or not: (1 − p)ⁿ·p·(2 − p). The paper's form for k paths gives 0.0604 at p = 0.6, k = 4, n = 16.
    """

    def without_the_models(p, k, n):
        error, mean = squared_error(p, k, n)
        return error + 2 * (p - 1) * (mean - p)

    for p, n in ((0.6, 4), (0.1, 16)):
        assert without_the_models(p, 1, n) == pytest.approx((1 - p) ** n * p * (2 - p))
    a = (1 - 0.6 / 4) ** 16
    assert a * 0.6 * (2 - (1 + a) * 0.6) == pytest.approx(0.0604, abs=5e-5)
    assert without_the_models(0.6, 4, 16) == pytest.approx(0.0432, abs=1e-4)


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


@pytest.mark.parametrize("pools", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_pruning_drops_the_low_ones_and_never_the_likeliest(pools):
    """60 scores of mean 0.8 (k = 12) and 40 of mean 0.35 (k = 4): 95 % of the low ones go, 5 % of the high at most.

    In independent simulations 99.4 % of the low ones went, and 1.0 % of the high.
    """
    draw, low, high = rng(), [], []
    for _ in range(pools):
        x = np.concatenate([scores(draw, 0.8, 12, 60), scores(draw, 0.35, 4, 40)])
        kept = np.array(survivors(x, 1.0))
        low.append(1 - kept[60:].mean())
        high.append(1 - kept[:60].mean())
        assert kept[x.argmax()]
    assert np.mean(low) >= 0.95 and np.mean(high) <= 0.05
    assert np.mean(low) == pytest.approx(0.994, abs=0.01) and np.mean(high) == pytest.approx(0.010, abs=0.01)


@pytest.mark.parametrize("pools", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_likeliest_survives_whatever_the_scores(pools):
    draw = rng()
    for _ in range(pools):
        x = draw.choice([draw.random(20), draw.beta(0.3, 0.3, 20), np.full(20, draw.random()), draw.random(20) ** 9])
        x = np.maximum(x[: draw.integers(1, 21)], 1e-12)
        kept = survivors(x, 0.0)
        assert kept[x.argmax()] and all(keep for keep, s in zip(kept, x, strict=True) if s >= x.mean())


def test_what_cannot_be_read_does_not_vote_but_helps_to_tell_likely_from_unlikely():
    """With the unparsed ones in the fit there are two groups; without them too few to tell."""
    draw = rng()
    unread = [(f"{i}", 0.3 + 0.01 * x) for i, x in enumerate(draw.normal(size=12))]
    pool = likely(*unread, ("a=1", 0.32), ("b=1", 0.31), ("c=1", 0.33), ("d=2", 0.81), ("e=3", 0.79))
    answer = pooled(rpc(P, len(pool), rng()), pool)
    assert answer.response.text == "d=2" and answer.weights[12:15] == (0.0,) * 3
    assert pooled(rpc(P, 5, rng()), pool[12:]).response.text == "c=1"


@pytest.mark.parametrize("success", [False, True])
def test_where_no_fit_is_found_nothing_is_pruned(monkeypatch, success):
    """The optimiser gives up, or ends at numbers that are none."""
    lost = np.array([0.5, math.nan, 1.0, 1.5, 2.0]) if success else np.array([0.5, 9.0, 0.9, 4.0, 0.3])
    monkeypatch.setattr(
        "extratime.evaluate.algorithms.weibull.minimize", lambda *_, **__: OptimizeResult(x=lost, success=success)
    )
    draw = rng()
    x = np.concatenate([scores(draw, 0.8, 12, 20), scores(draw, 0.35, 4, 20)])
    assert fit(x) is None and all(survivors(x, 0.0))


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
