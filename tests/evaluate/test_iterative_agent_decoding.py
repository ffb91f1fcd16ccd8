"""Iterative agent decoding: what each round is told, when it stops, and how fast it climbs a known ladder."""

import functools
import itertools
import math
import re

import numpy as np
import pytest
from laws import repeated
from played import P, response, rng, saying, scored, steps
from toy import ended, p_value

from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.iterative_agent_decoding import extremes, iterative_agent_decoding
from extratime.models.paths import path_seed


def test_only_what_can_be_read_is_shown_and_only_where_it_differs():
    pool = [response("=1"), response("=2"), response("=3"), response("=1 ")]
    inf = math.inf
    assert extremes(pool, [0.2, 0.9, 0.1, 0.9]) == (1, 2)
    assert extremes(pool, [0.5, 0.5, 0.5, 0.5]) == (0, None)
    assert extremes(pool, [-inf, 0.5, 0.1, -inf]) == (1, 2)
    assert extremes([pool[0], pool[3]], [0.9, 0.1]) == (0, None)
    assert extremes(pool, [-inf] * 4) == (None, None)


def iad(budget, verify, texts, **options):
    return steps(iterative_agent_decoding(P, budget, rng(), verify, **options), saying(*texts))


SCORES = {"a=1": 0.3, "b=2": 0.1, "c=3": 0.7, "d": 0.9, "e=5": 0.7, "f=6": 0.0}


def test_each_round_sees_the_best_and_the_weakest_so_far():
    asked, answer = iad(6, scored(SCORES), SCORES, samples=2)
    assert [request.n for request in asked] == [2, 2, 2]
    assert asked[0].prompt == P.prompt
    shown = [re.findall(r"(best|weakest) attempt so far(?: \(score (.*?)\))?:\n(.*)", r.prompt.text) for r in asked]
    assert shown[1] == [("best", "0.3", "a=1"), ("weakest", "0.1", "b=2")]
    assert shown[2] == [("best", "0.7", "c=3"), ("weakest", "0.1", "b=2")], "what does not parse never ranks"
    assert answer.response.text == "c=3" and len(answer.pool) == 6, "an equal score keeps the earlier answer"
    assert answer.weights == (0.3, 0.1, 0.7, -math.inf, 0.7, 0.0)


def test_feedback_by_kind():
    plain_ = iad(4, scored(SCORES), SCORES, samples=2, feedback="none")[0]
    assert [request.prompt for request in plain_] == [P.prompt] * 2
    bare = iad(4, scored(SCORES), SCORES, samples=2, feedback="attempts")[0][1].prompt.text
    assert "a=1" in bare and "b=2" in bare and "0.3" not in bare
    texts = ["a=1", "b=2", "carry the one", "c=3", "d"]
    first, critic, second = iad(4, scored(SCORES), texts, samples=2, feedback="critique")[0]
    assert critic.role == "judge" and "a=1" in critic.prompt.text and critic.prompt.ids is None
    own = iad(4, scored(SCORES), texts, samples=2, feedback="critique", critic="policy")[0]
    assert [(r.role, r.n) for r in own] == [("policy", 2), ("policy", 1), ("policy", 1)]
    assert len(iad(3, scored(SCORES), texts, samples=2, feedback="critique", critic="policy")[0]) == 1
    assert "carry the one" in second.prompt.text and (first.role, second.role) == ("policy", "policy")


def test_it_stops_when_the_best_is_good_enough_or_nothing_gets_better():
    assert len(iad(6, scored(SCORES), SCORES, samples=2, enough=0.7)[1].pool) == 4
    assert len(iad(6, scored(SCORES), SCORES, samples=1, patience=1)[1].pool) == 2
    assert len(iad(6, scored(SCORES), SCORES, samples=1, patience=2)[1].pool) == 5
    assert len(iad(5, scored(SCORES), SCORES, samples=2)[1].pool) == 5, "the last round takes what is left"


@pytest.mark.parametrize("value", [0.5, math.nan, -math.inf])
def test_a_verifier_that_knows_nothing_keeps_the_first(value):
    asked, answer = iad(4, scored(lambda text: value), ["=1", "=2", "=3", "=4"], samples=2)
    assert answer.response.text == "=1"
    assert ("=1" in asked[1].prompt.text) == (value == 0.5) and "=2" not in asked[1].prompt.text


LADDER = 24


def ladder(better):
    """Quality of a fresh draw: j with probability 2^-(j+1); a draw told of the best makes it one better, or worse."""

    def law(prompt, text):
        if text:
            return {"": 1.0}
        told = re.search(r"best attempt so far.*:\n=(\d+)", prompt)
        if told:
            return {f"={int(told[1]) + 1}": better, "=0": 1 - better}
        return {f"={j}": 0.5 ** (j + 1) for j in range(LADDER)}

    return law


def quality(problem, responses):
    yield from ()
    return [float(ended(r.text)) for r in responses]


def highest(n):
    """Mean of the greatest of `n` fresh qualities, P(q >= j) = 2^-j."""
    return sum(1 - (1 - 0.5**j) ** n for j in range(1, LADDER))


CLIMBED = {0.6: {2: 1.6, 4: 2.8, 8: 5.2, 16: 10.0}, 0.2: {2: 1.2, 4: 1.6, 8: 2.4, 16: 4.0}}
"""Mean quality by the chance of a better proposal and by N."""


@pytest.mark.parametrize(("n", "mean"), [(2, 1.667), (4, 2.505), (8, 3.421), (16, 4.377)])
def test_best_of_n_climbs_the_ladder_by_luck(n, mean):
    assert highest(n) == pytest.approx(mean, abs=5e-4)


@pytest.mark.parametrize(("better", "n"), [(u, n) for u in CLIMBED for n in CLIMBED[u]])
def test_feedback_climbs_the_ladder_by_steps(better, n):
    """Mean 1 + (N − 1)u: worse than best-of-N at u = 0.2, better from N = 4 on at u = 0.6."""
    iterated = functools.partial(iterative_agent_decoding, verify=quality, samples=1, enough=math.inf)
    tops = [float(ended(r.answer.response.text)) for r in repeated(iterated, n, ladder(better), n=400)]
    error = np.std(tops) / math.sqrt(len(tops))
    assert np.mean(tops) == pytest.approx(1 + (n - 1) * better, abs=3.3 * error)
    assert 1 + (n - 1) * better == pytest.approx(CLIMBED[better][n])
    assert (CLIMBED[better][n] > highest(n)) == (better == 0.6 and n >= 4)
    lucky = functools.partial(best_of_n, verify=quality)
    tops = [float(ended(r.answer.response.text)) for r in repeated(lucky, n, ladder(better), n=400)]
    assert np.mean(tops) == pytest.approx(highest(n), abs=3.3 * np.std(tops) / math.sqrt(len(tops)))


def test_without_feedback_it_is_best_of_n():
    ablated = functools.partial(iterative_agent_decoding, verify=quality, samples=2, feedback="none", enough=math.inf)
    left, right_ = (repeated(s, 7, ladder(0.6), n=60) for s in (ablated, functools.partial(best_of_n, verify=quality)))
    assert [r.answer.response for r in left] == [r.answer.response for r in right_]


def test_the_best_score_never_falls_though_true_quality_may():
    """A verifier that tells a wrong number in 30 % of its replies."""

    def flipping(problem, responses):
        yield from ()
        return [-float(ended(r.text)) if path_seed(r.path) % 10 < 3 else float(ended(r.text)) for r in responses]

    strategy = functools.partial(iterative_agent_decoding, verify=flipping, samples=1, enough=math.inf)
    fell = 0
    for result in repeated(strategy, 6, ladder(0.6), n=100):
        tops = list(itertools.accumulate(result.answer.weights, max))
        leaders = [
            next(r for r, w in zip(result.answer.pool, result.answer.weights, strict=True) if w == t) for t in tops
        ]
        truth = [float(ended(r.text)) for r in leaders]
        assert tops == sorted(tops) and result.answer.response == leaders[-1]
        fell += truth != sorted(truth)
    assert fell


def constrained(prompt, text):
    """A response is letters, each met or not; told what is missing, it mends just that, else all is drawn anew."""
    if text:
        return {"": 1.0}
    best = re.search(r"best attempt so far.*:\n=([yn]+)", prompt)
    fault = re.search(r"mend (\d)", prompt)
    if best and fault:
        at = int(fault[1])
        return {f"={best[1][:at]}y{best[1][at + 1 :]}": 1.0}
    return {"=" + "".join(letters): 1 / 8 for letters in itertools.product("yn", repeat=3)}


def met(problem, responses):
    yield from ()
    return [(ended(r.text) or "").count("y") / 3 for r in responses]


def test_a_critique_that_names_the_fault_mends_one_a_round():
    def critic(prompt, text):
        attempt = re.search(r"attempt at this problem:\n=([yn]+)", prompt)
        if attempt is None:
            return constrained(prompt, text)
        return {"": 1.0} if text else {f"mend {attempt[1].find('n')}": 1.0}

    told = functools.partial(iterative_agent_decoding, verify=met, samples=1, feedback="critique")
    for result in repeated(told, 8, critic, n=100, max_tokens=8):
        missing = result.answer.pool[0].text.count("n")
        assert len(result.answer.pool) == 1 + missing and ended(result.answer.response.text) == "yyy"
        assert result.cost.judged == 2 * missing and result.cost.generated == 2 * (1 + missing)
    silent = functools.partial(iterative_agent_decoding, verify=met, samples=1, feedback="attempts")
    drawn = [len(r.answer.pool) for r in repeated(silent, 8, critic, n=400)]
    geometric = {k: 7 ** (k - 1) / 8**k for k in range(1, 8)} | {8: (7 / 8) ** 7}
    assert p_value(drawn, geometric) > 1e-3
