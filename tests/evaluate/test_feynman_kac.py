"""Powers and products of policies, and rolled-over budgets, on models that are enumerated."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from chains import PROBLEM, STORY, Chain, Model, T, chain, paused, response
from chains import SHORT as P
from laws import within
from played import rng, scored
from toy import problem

from extratime.evaluate.strategies.feynman_kac import feynman_kac
from extratime.evaluate.strategies.particle_filter import particle_filter
from extratime.evaluate.strategies.rollover import rollover
from extratime.models.request import Sample, Sampling

# --- powers and products


def told(model, runs, **options):
    """By run: Ẑ, and the pool's texts with their weights."""
    source, found = rng(), []
    for _ in range(runs):
        answer = model.drive(feynman_kac(PROBLEM, options["n"], source, **options["of"]), source)
        z = math.exp(float(re.search(r"ln Z (\S+)", answer.why)[1]))
        found.append((z, [r.text for r in answer.pool], answer.weights))
    return found


def distance(target, found):
    """Total variation between a target and the average of weighted pools."""
    law, z = Counter(), sum(target.values())
    for _, pool, weights in found:
        for text, weight in zip(pool, weights, strict=True):
            law[text] += weight / len(found)
    return sum(abs(law[text] - p / z) for text, p in target.items()) / 2


def power(model, alpha=4.0):
    return {text: p**alpha for text, p in model.prior.items()}


def test_the_power_of_a_policy_is_sampled():
    """Four times as few particles suffice if draws are cold, and cold draws alone are another law."""
    model, target = chain(), power(chain())
    z = sum(target.values())
    cold = told(model, 150, n=16, of={})
    warm = told(model, 150, n=16, of={"temperature": 1.0})
    ratios = {name: np.array([one[0] for one in runs]) / z for name, runs in (("cold", cold), ("warm", warm))}
    for values in ratios.values():
        assert abs(values.mean() - 1) < 3 * values.std() / math.sqrt(values.size)
    assert ratios["cold"].std() <= 0.6 * ratios["warm"].std()
    unweighted = [(0.0, pool, [1 / len(pool)] * len(pool)) for _, pool, _ in told(model, 60, n=16, of={"ess": 0.0})]
    assert distance(target, cold) <= 0.08 and distance(target, unweighted) >= 0.15


@pytest.mark.slow
def test_the_power_of_a_policy_is_sampled_to_three_hundredths():
    """64 particles: Ẑ/Z within three errors of 1, and the average law 0.01 from the target in total variation."""
    target = power(chain())
    found = told(chain(), 500, n=64, of={})
    ratios = np.array([z for z, _, _ in found]) / sum(target.values())
    assert abs(ratios.mean() - 1) < 3 * ratios.std() / math.sqrt(ratios.size) and distance(target, found) <= 0.03


def test_a_tilt_by_a_reward_of_prefixes_is_sampled():
    """p(x)·exp(r(x)/λ), r = ln G of the last step, λ = 2: the ratios of rewards telescope."""
    model = chain()
    target = model.target(lambda text: math.sqrt(model.potential(text)))
    verify = scored(lambda text: math.log(model.potential(text)))
    source, ratios = rng(), []
    for _ in range(150):
        program = particle_filter(
            PROBLEM, 16, source, verify, tau=2.0, reading="exponential", weighting="ratio", finished="absorb"
        )
        answer = model.drive(program, source)
        ratios.append(math.exp(float(re.search(r"ln Z (\S+)", answer.why)[1])) / sum(target.values()))
    assert abs(np.mean(ratios) - 1) < 3 * np.std(ratios) / math.sqrt(len(ratios)) and np.std(ratios) < 0.5


def test_a_product_of_two_models_is_sampled():
    other = Chain(1)
    model = Chain(0, judge=other.law)
    target = {text: p**0.7 * other.prior[text] ** 0.6 for text, p in model.prior.items()}
    found = told(model, 150, n=16, of={"alpha": 0.7, "beta": 0.6})
    ratios = np.array([z for z, _, _ in found]) / sum(target.values())
    assert abs(ratios.mean() - 1) < 3 * ratios.std() / math.sqrt(ratios.size)
    assert distance(target, found) < distance({text: p**0.7 for text, p in model.prior.items()}, found) / 2


def unbiased(target, found):
    """Whether Ẑ/Z is 1 on average, within three standard errors."""
    ratios = np.array([z for z, _, _ in found]) / sum(target.values())
    return abs(ratios.mean() - 1) < 3 * ratios.std() / math.sqrt(ratios.size)


@pytest.mark.parametrize("bridge", [2, 4, 9])
def test_a_bridge_leads_to_the_power_of_a_policy_even_where_responses_end_before_it(bridge):
    target = power(chain())
    found = told(chain(), 150, n=16, of={"bridge": bridge})
    assert unbiased(target, found) and distance(target, found) <= 0.08


def test_a_bridge_leads_from_one_policy_to_another():
    """p₁ at first, p₂ in the end: half of their mass is not shared."""
    other = Chain(1)
    model = Chain(0, judge=other.law)
    found = told(model, 150, n=16, of={"alpha": 0.0, "beta": 1.0, "bridge": T})
    assert unbiased(other.prior, found)
    assert distance(other.prior, found) < 0.3 < 0.5 < distance(model.prior, found)


def test_what_has_ended_goes_on_over_the_bridge():
    """Responses of one to four steps: those that have ended gain weight with the powers, too."""
    target = power(STORY, 2.0)
    assert unbiased(target, told(STORY, 200, n=12, of={"alpha": 2.0, "bridge": 3}))


@pytest.mark.slow
def test_on_short_responses_a_bridge_does_not_pay():
    """64 particles, α = 4: Ẑ varies no less."""
    found = [told(chain(), 400, n=64, of={"bridge": bridge}) for bridge in (0, 5)]
    assert all(unbiased(power(chain()), runs) for runs in found)
    plain, bridged = (np.std([z for z, _, _ in runs]) for runs in found)
    assert bridged >= plain


def test_what_the_other_model_is_asked_and_how_its_numbers_count():
    program = feynman_kac(P, 2, rng(), alpha=2.0, beta=-1.0, role="rival", temperature=1.0)
    assert next(program) == Sample(P.prompt, 2, 1.0, ("\n",))
    steps = [response(x, "pause", 1, logprobs=(-1.0,), tempered=(-1.0,), sampling=Sampling()) for x in ("a\n", "b\n")]
    asked = program.send(steps)
    assert [(one.continuation, one.role, one.prompt.ids) for one in asked] == [
        ("a\n", "rival", None),
        ("b\n", "rival", None),
    ]
    along = program.send([(-1000.0,), (-1.0,)]).along  # ln w = −1 + 30 against −1 + 1
    assert [r.text for r in along] == ["a\n", "a\n"]


def test_a_single_particle_is_a_plain_draw_and_others_are_cold():
    assert next(feynman_kac(P, 1, rng())).temperature is None
    assert next(feynman_kac(P, 2, rng())).temperature == 0.25
    assert next(feynman_kac(P, 1, rng(), temperature=0.5)).temperature == 0.5
    assert next(feynman_kac(P, 2, rng(), alpha=0.0, beta=1.0)).temperature is None


def test_without_log_probabilities_there_are_no_weights():
    program = feynman_kac(P, 2, rng())
    next(program)
    with pytest.raises(ValueError, match="log-probabilities"):
        program.send([response("=1"), response("=2")])
    with pytest.raises(ValueError, match="alpha"):
        next(feynman_kac(P, 2, rng(), alpha=-0.5))


# --- rollover


STEPS = 10


def steps(chances):
    """A model whose step t is right with probability chances[t]."""

    def law(text):
        t = len(text) // 2
        return {"": 1.0} if t == STEPS else {"r\n": chances[t], "w\n": 1 - chances[t]}

    return Model(law, lambda text: 1.0, STEPS + 1)


def all_accepted(chances, quota):
    """P(every step is accepted) by dynamic programming over what is left."""
    left = {0: 1.0}
    for p in chances:
        after = Counter()
        for have, mass in left.items():
            for used in range(1, quota + have + 1):
                after[quota + have - used] += mass * p * (1 - p) ** (used - 1)
        left = after
    return sum(left.values())


@pytest.mark.parametrize(
    ("chances", "quota", "p"),
    [
        ((0.9, 0.2), 2, 0.083),
        ((0.9, 0.2), 4, 0.619),
        ((0.9, 0.2), 6, 0.879),
        ((0.9, 0.2), 8, 0.958),
        ((0.2, 0.9), 4, 0.425),
    ],
)
def test_what_easy_steps_save_hard_ones_spend(chances, quota, p):
    model, task, n = steps(chances * 5), problem(max_tokens=30), 150
    assert all_accepted(chances * 5, quota) == pytest.approx(p, abs=6e-4)
    verify, source, right = scored(lambda text: float("w" not in text)), rng(), 0
    for _ in range(n):
        model.drawn = 0
        answer = model.drive(rollover(task, quota, source, verify, threshold=1.0), source)
        right += "w" not in answer.response.text
        assert answer.response.finished and model.drawn <= STEPS * quota + 2 * quota + STEPS
    assert within(right, p, n)


def play(table, budget, *replies, **options):
    """Rollover on given candidates: what each request went on from, and the answer."""
    program = rollover(P, budget, rng(), scored(table), **options)
    request, asked = next(program), []
    for reply in (*replies, None):
        asked.append([r.text for r in request.along])
        try:
            request = program.send([reply] if reply else list(request.along))
        except StopIteration as stop:
            return asked, stop.value


def test_a_forced_step_is_the_best_of_its_quota_and_leaves_nothing():
    a, b = paused("a\n", "b\n")
    ends = [response(f"b\n={i}") for i in range(2)]
    asked, answer = play({"a\n": 0.1, "b\n": 0.2, "b\n=0": 0.3, "b\n=1": 0.4}, 2, a, b, *ends, threshold=0.9)
    assert asked == [[""], [""], ["b\n"], ["b\n"], ["b\n=0", "b\n=1"]] and answer.response.text == "b\n=1"


def test_an_accepted_step_hands_on_what_it_saved_and_the_last_step_spends_it():
    ends = [response(f"a\n={i}") for i in range(3)]
    asked, answer = play({"a\n": 0.5, "a\n=0": 0.9, "a\n=1": 0.7, "a\n=2": 0.9}, 2, *paused("a\n"), *ends)
    assert asked[:4] == [[""], ["a\n"], ["a\n"], ["a\n"]] and answer.response.text == "a\n=0"
    assert len(answer.pool) == 3


@pytest.mark.parametrize(("slack", "accepted"), [(0.0, False), (0.2, True)])
def test_a_step_may_fall_below_the_best_so_far_by_the_slack(slack, accepted):
    table = {"a\n": 0.8, "a\nb\n": 0.7, "a\nc\n": 0.6, "a\nb\n=1": 0.5}
    program = rollover(P, 2, rng(), scored(table), slack=slack)
    next(program)
    program.send(paused("a\n"))
    along = program.send(paused("a\nb\n")).along
    assert along[0].text == ("a\nb\n" if accepted else "a\n")


def test_a_full_length_is_kept_back():
    """Twelve tokens a response: after a first candidate of 10, the second may have 2."""
    program = rollover(P, 2, rng(), scored(lambda text: 0.0), threshold=1.0)
    next(program)
    assert program.send([response("a" * 9 + "\n", "pause", 10)]).max_tokens == 2


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_scores_that_say_nothing_are_survived(score):
    model = steps((0.5,) * STEPS)
    answer = model.drive(rollover(problem(max_tokens=30), 3, rng(), scored(lambda text: score)), rng())
    assert answer.response.finished
