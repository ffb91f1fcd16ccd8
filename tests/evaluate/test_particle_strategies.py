"""Tempered chains and annealed filters on models that are enumerated."""

import functools
import math
from collections import Counter

import numpy as np
import pytest
from chains import PROBLEM, chain, marginals, paused, response
from chains import SHORT as P
from laws import within
from played import rng, scored
from walks import near

from extratime.evaluate.algorithms import smc
from extratime.evaluate.algorithms.particles import Rule, State, retained, sweep
from extratime.evaluate.program import Gather
from extratime.evaluate.strategies.entropic_particle_filter import entropic_particle_filter
from extratime.evaluate.strategies.parallel_tempering import parallel_tempering, swapped
from extratime.evaluate.strategies.particle_filter import particle_filter
from extratime.models.request import Sample

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
    table = {"a\n": -math.inf, "b\n": math.nan, "a\nc\n": 1 - 1e-9, "b\nd\n": 0.5, "a\nc\n=1": 0.9}
    program = particle_filter(P, 2, rng(), scored(table), resample="systematic", weighting="ratio")
    next(program)
    assert [r.text for r in program.send(paused("a\n", "b\n")).along] == ["a\n", "b\n"]
    assert [r.text for r in program.send(paused("a\nc\n", "b\nd\n")).along] == ["a\nc\n", "a\nc\n"]
    ends = [response("a\nc\n=1")] * 2
    program.send(ends)
    with pytest.raises(StopIteration) as stop:
        program.send(ends)
    assert stop.value.value.why.endswith("ln Z -inf")


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


EARLY = {"none": lambda p, progress: 1.0} | {
    by: functools.partial(smc.annealed, by=by) for by in ("base", "entropy", "ess")
}


def lineages(n, sigma, by, source, resample=smc.systematic, steps=12):
    """The spike toy: three lineages in ten are good, and scores say so in the second half only.

    Returns whether the best in the end is good, and how many first ancestors were left in the middle.
    """
    good, roots, middle = source.random(n) < 0.3, np.arange(n), 0
    for t in range(1, steps + 1):
        noise = source.normal(size=n)
        lw = sigma * noise if t <= steps // 2 else np.where(good, 2.0, -2.0) + 0.5 * noise
        if t == steps:
            return good[np.argmax(lw)], middle
        heat = EARLY[by](smc.normalise(lw)[0], t / steps)
        picks = resample(smc.normalise(lw / heat)[0], n, source)
        good, roots = good[picks], roots[picks]
        if t == steps // 2:
            middle = len(set(roots))


def followed(n, sigma, by, resample=smc.systematic, runs=250):
    """Success and first ancestors, on average."""
    return np.mean([lineages(n, sigma, by, np.random.default_rng(i), resample) for i in range(runs)], axis=0)


def test_annealing_cures_spikes():
    """32 particles, spikes of 2: 0.503 without annealing, 0.945 with it, and four times as many first ancestors."""
    (plain, few), (entropic, many) = followed(32, 2.0, "none"), followed(32, 2.0, "ess")
    assert entropic - plain >= 0.25 and many >= 3 * few


METHODS = [(by, smc.systematic) for by in EARLY] + [("none", smc.multinomial), ("ess", smc.multinomial)]
SPIKES = {
    (1.0, 32): (0.894, 0.962, 0.927, 0.969, 0.776, 0.845),
    (2.0, 8): (0.339, 0.429, 0.422, 0.513, 0.317, 0.404),
    (2.0, 32): (0.503, 0.794, 0.735, 0.945, 0.478, 0.817),
    (4.0, 32): (0.317, 0.390, 0.488, 0.763, 0.318, 0.654),
}
"""Success by the height of spikes and the particles, for each method; of independent simulations, 3000 runs each."""
ANCESTORS = (2.1, 4.8, 3.9, 8.9, 1.9, 5.1)
"""Of 32 particles under spikes of 2, in the middle."""


@pytest.mark.parametrize(("sigma", "n"), SPIKES)
def test_spikes_are_survived_as_often_as_in_independent_simulations(sigma, n):
    for (by, resample), p, ancestors in zip(METHODS, SPIKES[sigma, n], ANCESTORS, strict=True):
        good, left = followed(n, sigma, by, resample)
        assert near(good, p, 250, 3000), (by, resample)
        assert (sigma, n) != (2.0, 32) or left == pytest.approx(ancestors, rel=0.1)


def trapped(n, heat, source, steps=12):
    """A quarter of the particles takes a branch that scores 0.97, the others 0.5; halfway they turn out good or not.

    On the branch 0.05 do, elsewhere 0.6; from then on scores say so. Returns whether the best in the end is good.
    """
    bad, good = source.random(n) < 0.25, np.zeros(n, dtype=bool)
    for t in range(1, steps + 1):
        lw = smc.logit(np.where(bad, 0.97, 0.5)) if t <= steps // 2 else np.where(good, 2.0, -2.0)
        lw = lw + (t > steps // 2) * 0.5 * source.normal(size=n)
        if t == steps:
            return good[np.argmax(lw)]
        picks = smc.systematic(smc.normalise(lw / heat(smc.normalise(lw)[0], t / steps))[0], n, source)
        bad, good = bad[picks], good[picks]
        if t == steps // 2:
            good = source.random(n) < np.where(bad, 0.05, 0.6)


def test_annealing_does_not_cure_a_lasting_bias_and_a_constant_temperature_helps():
    """One resampling gives the branch the majority, the weights are even again, and nothing is annealed any more."""
    plain, entropic, constant = (
        np.mean([trapped(16, heat, np.random.default_rng(i)) for i in range(400)])
        for heat in (EARLY["none"], EARLY["ess"], lambda p, progress: 4.0)
    )
    assert near(plain, 0.562, 400) and near(entropic, 0.569, 400) and near(constant, 0.651, 400)
    assert abs(plain - entropic) <= 0.03 and constant > max(plain, entropic)


@pytest.mark.parametrize("progress", [0.0, 0.05, 0.4])
def test_one_particle_alive_is_flattened_to_nearly_all(progress):
    alive = np.array([1.0] + [0.0] * 31)
    assert smc.annealed(alive, progress) == pytest.approx(32 * (1 - progress))
    assert smc.annealed(np.full(32, 1 / 32), progress) == 1.0


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
