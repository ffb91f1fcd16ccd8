"""Tempered chains, annealed filters, corrected targets and rolled-over budgets on models that are enumerated."""

import functools
import math
import re
from collections import Counter

import numpy as np
import pytest
from chains import PROBLEM, Chain, Model, marginals
from scipy.stats import binom
from toy import problem

from extratime.evaluate import smc
from extratime.evaluate.particles import Rule, State, retained, sweep
from extratime.evaluate.program import Gather
from extratime.evaluate.strategies.entropic_particle_filter import entropic_particle_filter
from extratime.evaluate.strategies.feynman_kac import feynman_kac
from extratime.evaluate.strategies.parallel_tempering import parallel_tempering, swapped
from extratime.evaluate.strategies.particle_filter import particle_filter
from extratime.evaluate.strategies.rollover import rollover
from extratime.models.request import Completion, Sample, Sampling

P = problem(max_tokens=12)


@functools.cache
def chain(seed=0, spread=1.0):
    return Chain(seed, spread)


def rng():
    return np.random.default_rng(0)


def response(text, finish="eos", n_tokens=None, **fields):
    return Completion(P.prompt, text, len(text) if n_tokens is None else n_tokens, finish=finish, **fields)


def paused(*texts):
    return [response(text, "pause") for text in texts]


def scored(table):
    def verify(problem, responses):
        yield from ()
        verify.asked += [r.text for r in responses]
        return [table(r.text) if callable(table) else table[r.text] for r in responses]

    verify.asked = []
    return verify


def within(successes, p, n):
    """Whether a count is inside the central 99.9 % of its binomial law."""
    return binom.ppf(0.0005, n, p) <= successes <= binom.ppf(0.9995, n, p)


# --- particle filter: how scores are read, and how it ends


def test_three_readings_of_a_score():
    assert smc.potentials([0.9, 0.5, 0.0]) == pytest.approx([math.log(9), 0.0, float(smc.logit(0.0))])
    assert smc.potentials([0.9, 0.5, 0.0], "score") == pytest.approx([math.log(0.9), math.log(0.5), -math.inf])
    assert smc.potentials([0.9, -2.0], "exponential") == pytest.approx([0.9, -2.0])
    assert smc.potentials([-1.0, -2.0], "score") == pytest.approx([-1.0, -2.0])
    assert smc.potentials([math.log(0.9), -math.inf]) == pytest.approx([math.log(9), -math.inf])
    for reading in ("odds", "score", "exponential"):
        told = smc.potentials([math.nan, -math.inf, math.inf], reading)
        assert told[:2].tolist() == [-math.inf, -math.inf] and 15 < told[2] < math.inf


def test_a_filter_whose_weights_were_all_zero_begins_anew():
    assert smc.ratios(np.array([1.0, 2.0, -math.inf]), np.array([0.5, -math.inf, -math.inf])).tolist() == [
        0.5,
        2.0,
        -math.inf,
    ]
    table = {"a\n": -math.inf, "b\n": math.nan, "a\n=1": 0.9, "b\n=2": 0.5}
    program = particle_filter(P, 2, rng(), scored(table), resample="systematic", weighting="ratio")
    next(program)
    assert [r.text for r in program.send(paused("a\n", "b\n")).along] == ["a\n", "b\n"]
    program.send([response("a\n=1"), response("b\n=2")])
    with pytest.raises(StopIteration) as stop:
        program.send([response("a\n=1"), response("b\n=2")])
    assert stop.value.value.response.text == "a\n=1" and stop.value.value.why.endswith("ln Z -inf")


@pytest.mark.parametrize(("ess", "kept"), [(1.0, "aa"), (0.9, "aa"), (0.6, "aa"), (0.5, "ab")])
def test_particles_are_resampled_when_too_few_of_them_count(ess, kept):
    """Odds 9 and 1: an effective sample size of 1/(0.81 + 0.01), 0.61 of two particles."""
    program = particle_filter(P, 2, rng(), scored({"a": 0.9, "b": 0.5}), resample="systematic", ess=ess)
    next(program)
    along = program.send(paused("a", "b")).along
    assert "".join(r.text for r in along) == ("ab" if ess < 0.609 else kept)


def test_tau_goes_from_its_first_to_its_last_value():
    rule = Rule(tau=(2.0, 1.0), rounds=4)
    assert [rule.heat(t) for t in range(6)] == [2.0, 1.75, 1.5, 1.25, 1.0, 1.0]
    with pytest.raises(ValueError, match="above 0"):
        Rule(tau=(1.0, 0.0))


@pytest.mark.parametrize(("choose", "texts"), [("best", {"a=1"}), ("vote", {"b=2"}), ("draw", {"a=1", "b=2", "c=2"})])
def test_the_best_particle_a_vote_or_a_draw_answers(choose, texts):
    """Odds 4, 3 and 3; what has not ended is not drawn."""
    table = {"a=1": 0.8, "b=2": 0.75, "c=2": 0.75, "d": 0.99}
    pool = [response("a=1"), response("b=2"), response("c=2"), response("d", "cut")]
    seen = set()
    for seed in range(40):
        program = particle_filter(P, 4, np.random.default_rng(seed), scored(table), choose=choose)
        next(program)
        program.send(pool)
        with pytest.raises(StopIteration) as stop:
            program.send(pool)
        seen.add(stop.value.value.response.text)
    assert seen == texts


# --- parallel tempering


def trajectory(gain, name="z"):
    return [State(response(name), 0.5, gain / 2), State(response(name), 0.5, gain / 2)]


@pytest.mark.parametrize(("hot", "cold", "p"), [(3.0, 1.0, 1.0), (1.0, 3.0, math.exp(-1.0)), (2.0, 2.0, 1.0)])
def test_neighbours_swap_by_the_ratio_of_their_targets(hot, cold, p):
    """Temperatures 2 and 1: exp((1/2 − 1)(w_cold − w_hot))."""
    source, n = rng(), 2000
    held = [trajectory(hot, "hot"), trajectory(cold, "cold")]
    count = sum(swapped(held, (2.0, 1.0), source)[0] is held[1] for _ in range(n))
    assert within(count, p, n) if p < 1 else count == n


def test_a_swap_leaves_the_product_of_targets_as_it_is():
    """Three states of ln G = 0, 1, 2 under T = 3 and T = 1; the cold chain's law stays ∝ exp(w)."""
    w, source, n = np.arange(3.0), rng(), 6000
    laws = {t: np.exp(w / t) / np.exp(w / t).sum() for t in (3.0, 1.0)}
    pairs = zip(*(source.choice(3, n, p=laws[t]) for t in (3.0, 1.0)), strict=True)
    after = [swapped([trajectory(w[i], str(i)), trajectory(w[j], str(j))], (3.0, 1.0), source) for i, j in pairs]
    for k, t in enumerate((3.0, 1.0)):
        counts = Counter(int(held[k][0].particle.text) for held in after)
        assert all(within(counts[i], laws[t][i], n) for i in range(3))


def test_impossible_trajectories_do_not_break_a_swap():
    held = [trajectory(-math.inf), trajectory(-math.inf)]
    assert swapped(held, (2.0, 1.0), rng()) == held


def test_a_hot_chain_keeps_its_own_posterior():
    model, rule, source, n = chain(), Rule(tau=2.0), rng(), 400
    target = model.target(lambda text: math.sqrt(model.gain(text)))
    law = np.array(list(target.values())) / sum(target.values())
    ends = []
    for i in source.choice(law.size, size=n, p=law):
        history = model.drive(sweep(PROBLEM, 4, source, model.verify, rule, model.states(list(target)[i])), source)
        ends.append(retained(history, source)[-1].particle.text)
    expected, seen = marginals(target), marginals(Counter(ends))
    assert np.abs((seen - expected) / np.sqrt(expected * (1 - expected) / n)).max() < 4


@pytest.mark.parametrize(
    ("budget", "chains", "sizes"),
    [(1, 1, [1]), (2, 1, [2]), (3, 1, [3]), (4, 2, [2]), (8, 2, [2, 1]), (17, 2, [4, 3])],
)
def test_chains_and_sweeps_share_the_budget(budget, chains, sizes):
    model = chain()
    program = parallel_tempering(PROBLEM, budget, rng(), model.verify)
    request, drawn = next(program), []
    while True:
        programs = request.programs if isinstance(request, Gather) else None
        if programs:
            firsts = [next(child) for child in programs]
            assert len(programs) == chains and len({first.n for first in firsts}) == 1
            drawn.append(firsts[0].n)
            reply = [finish(model, child, first) for child, first in zip(programs, firsts, strict=True)]
        else:
            drawn += [request.n] if isinstance(request, Sample) and not request.along else []
            reply = model._reply(request, rng())
        try:
            request = program.send(reply)
        except StopIteration as stop:
            assert stop.value.response.finished and drawn == sizes
            return


def finish(model, child, first):
    def rest():
        reply = yield first
        while True:
            try:
                reply = yield child.send(reply)
            except StopIteration as stop:
                return stop.value

    return model.drive(rest(), rng())


# --- entropic annealing


def concentrated(share, n=100):
    """Weights with this effective share of n particles."""
    k = round(share * n)
    return np.array([1 / k] * k + [0.0] * (n - k))


def test_temperatures_of_annealing():
    assert smc.annealed(concentrated(0.2), 0.2) == pytest.approx(4.0)
    assert smc.annealed(concentrated(0.5), 0.8) == 1.0
    half = np.array([1 / 4] * 4 + [0.0] * 12)  # of entropy ln 4 / ln 16
    assert smc.entropy(half) == pytest.approx(0.5)
    assert smc.annealed(half, 0.3, "entropy") == pytest.approx(1 / 0.65)
    assert smc.annealed(concentrated(0.2), 0.3, "base") == pytest.approx(1.7)


@pytest.mark.parametrize("by", ["ess", "entropy", "base"])
def test_annealing_only_flattens_and_only_early_and_where_few_count(by):
    source = rng()
    for _ in range(200):
        weights, progress = source.dirichlet(np.full(8, 0.2)), source.random()
        share, heat = smc.effective_sample_size(weights) / 8, smc.annealed(weights, progress, by)
        assert heat >= 1.0 and (heat == 1.0 or (share < 0.5 and progress < 0.5))
    assert smc.annealed(np.array([1.0, 0.0]), 0.1, by) == 1.0  # a share of two is at least a half
    assert smc.annealed(np.array([1.0]), 0.1, by) == 1.0
    assert smc.annealed(concentrated(0.01), 0.0, by) > 1.0


def test_entropy_is_between_nothing_and_one():
    assert smc.entropy(np.array([1.0, 0.0])) == 0.0 and smc.entropy(np.array([0.5, 0.5])) == 1.0
    assert smc.entropy(np.array([1.0])) == 1.0


def test_annealing_spares_weak_particles_early_and_not_late():
    """One particle of odds 1e4 among eight: it takes all places at T = 1, and few at T = 8·(1 − t/horizon)."""
    table = {name: 1 - 1e-4 if name == "a" else 0.5 for name in "abcdefgh"}
    kept = {}
    for horizon in (40, 2):
        program = entropic_particle_filter(P, 8, rng(), scored(table), horizon=horizon)
        next(program)
        kept[horizon] = "".join(r.text for r in program.send(paused(*"abcdefgh")).along)
    assert kept[2] == "aaaaaaaa" and len(set(kept[40])) >= 5


def lineages(n, sigma, annealed, source, steps=12):
    """The spike toy: a third of the lineages is good, and scores say so in the second half only."""
    good, roots, middle = source.random(n) < 0.3, np.arange(n), 0
    for t in range(1, steps + 1):
        noise = source.normal(size=n)
        lw = sigma * noise if t <= steps // 2 else np.where(good, 2.0, -2.0) + 0.5 * noise
        if t == steps:
            return good[np.argmax(lw)], middle
        p, _ = smc.normalise(lw)
        heat = smc.annealed(p, t / steps) if annealed else 1.0
        picks = smc.systematic(smc.normalise(lw / heat)[0], n, source)
        good, roots = good[picks], roots[picks]
        if t == steps // 2:
            middle = len(set(roots))


def test_annealing_cures_spikes():
    """32 particles, spikes of 2: 0.503 without annealing, 0.945 with it, and four times as many first ancestors."""
    told = {on: np.array([lineages(32, 2.0, on, np.random.default_rng(i)) for i in range(250)]) for on in (0, 1)}
    (plain, few), (entropic, many) = told[0].mean(0), told[1].mean(0)
    assert entropic - plain >= 0.25 and many >= 3 * few


def trapped(n, annealed, source, steps=12):
    """A quarter of the lineages has a score of 0.97 at first and succeeds rarely; the others 0.5, and often."""
    bad = source.random(n) < 0.25
    for t in range(1, steps + 1):
        score = np.where(bad & (t <= steps // 2), 0.97, 0.5)
        if t == steps:
            return np.mean(np.where(bad, 0.05, 0.6))
        p, _ = smc.normalise(smc.logit(score))
        heat = smc.annealed(p, t / steps) if annealed else 1.0
        bad = bad[smc.systematic(smc.normalise(smc.logit(score) / heat)[0], n, source)]


def test_annealing_does_not_cure_a_lasting_bias():
    told = [np.mean([trapped(16, on, np.random.default_rng(i)) for i in range(250)]) for on in (False, True)]
    assert abs(told[0] - told[1]) <= 0.03


# --- look-ahead


def test_look_ahead_draws_a_step_to_throw_away_and_takes_its_weight_back():
    table = {"a": 0.5, "b": 0.5, "a!": 1 - 1e-9, "b!": 0.5, "a?": 0.5, "b?": 0.5}
    program = entropic_particle_filter(P, 4, rng(), scored(table), look_ahead=True, by="base", below=0.0)
    assert next(program).n == 2
    guess = program.send(paused("a", "b"))
    assert [r.text for r in guess.along] == ["a", "b"] and guess.pause == ("\n",)
    real = program.send(paused("a!", "b!"))
    assert [r.text for r in real.along] == ["a", "a"]  # by the guess, from where the particles were
    ends = [response("a?"), response("a?")]
    program.send(ends)
    with pytest.raises(StopIteration) as stop:
        program.send(ends)
    assert len(stop.value.value.pool) == 2


@pytest.mark.parametrize(("budget", "n"), [(1, 1), (2, 1), (3, 1), (4, 2), (16, 8)])
def test_look_ahead_halves_the_particles(budget, n):
    assert next(entropic_particle_filter(P, budget, rng(), look_ahead=True)).n == n


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


def test_a_product_of_two_models_is_sampled():
    other = Chain(1)
    model = Chain(0, judge=other.law)
    target = {text: p**0.7 * other.prior[text] ** 0.6 for text, p in model.prior.items()}
    found = told(model, 150, n=16, of={"alpha": 0.7, "beta": 0.6})
    ratios = np.array([z for z, _, _ in found]) / sum(target.values())
    assert abs(ratios.mean() - 1) < 3 * ratios.std() / math.sqrt(ratios.size)
    assert distance(target, found) < distance({text: p**0.7 for text, p in model.prior.items()}, found) / 2


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


def test_without_log_probabilities_there_are_no_weights():
    program = feynman_kac(P, 2, rng())
    next(program)
    with pytest.raises(ValueError, match="log-probabilities"):
        program.send([response("=1"), response("=2")])
    with pytest.raises(ValueError, match="alpha"):
        next(feynman_kac(P, 2, rng(), alpha=0.0))


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
    [((0.9, 0.2), 2, 0.083), ((0.9, 0.2), 4, 0.619), ((0.9, 0.2), 6, 0.879), ((0.2, 0.9), 4, 0.425)],
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
