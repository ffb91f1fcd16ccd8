"""Particle strategies on models whose posteriors are enumerated: exact laws, then each rule step by step."""

import math
from collections import Counter

import numpy as np
import pytest
from chains import PROBLEM, STORY, T, V, chain, letters, marginals, paused, response
from chains import SHORT as P
from played import rng, scored
from scipy.stats import binom

from extratime.evaluate.algorithms import smc
from extratime.evaluate.algorithms.backward import graft, redrawn
from extratime.evaluate.algorithms.particles import Rule, State, retained, sweep, trace
from extratime.evaluate.strategies.particle_gibbs import particle_gibbs
from extratime.models.request import Sample


def estimates(model, rule, n, runs, target):
    """Ẑ/Z of independent sweeps."""
    rng = np.random.default_rng(5)
    ends = [model.drive(sweep(PROBLEM, n, rng, model.verify, rule), rng)[-1] for _ in range(runs)]
    return np.exp([end.log_z for end in ends]) / sum(target.values())


def deviation(ratios):
    """From 1, in standard errors."""
    return float((ratios.mean() - 1) / (ratios.std() / math.sqrt(ratios.size)))


# --- the normalising constant is unbiased, whatever the rule


ALWAYS = {"anneal": lambda weights, t: 3.0, "corrected": True}
RULES = {
    "multinomial": Rule(),
    "systematic, when it has to": Rule(resample="systematic", ess=0.5),
    "stratified, ratios": Rule(resample="stratified", weighting="ratio"),
    "residual, others keep their place": Rule(resample="residual", finished="freeze", ess=0.7),
    "annealed": Rule(resample="systematic", **ALWAYS),
    "with foresight": Rule(resample="systematic", ahead=True),
    "with foresight, annealed": Rule(ahead=True, **ALWAYS),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_normalising_constant_is_unbiased(rule):
    model = chain()
    target = model.target(model.potential if rule.weighting == "ratio" else None)
    ratios = estimates(model, rule, 6, 300, target)
    assert abs(deviation(ratios)) < 3 and ratios.std() < 2


@pytest.mark.parametrize(("corrected", "off"), [(True, False), (False, True)])
def test_what_an_annealed_resampling_forgets_is_missed(corrected, off):
    """Weights 8, 1, 1, 0 and T = 3: the mean weight after resampling, over all ancestors by their law."""
    weights = np.log([8.0, 1.0, 1.0, 1e-300])
    hot = weights / 3
    left = smc.carry(weights, hot if corrected else weights, np.arange(4))
    expected = smc.normalise(hot)[0] @ np.exp(left)
    assert (expected == pytest.approx(2.5)) and (np.ptp(left) > 0) == corrected
    value = np.array([1.0, 0.0, 0.0, 0.0])  # the first particle's share of the weight is 0.8
    share = smc.normalise(hot)[0] @ (value * np.exp(left)) / expected
    assert (share == pytest.approx(0.8)) != off


@pytest.mark.slow
@pytest.mark.parametrize(("corrected", "off"), [(True, False), (False, True)])
def test_entropic_annealing_is_unbiased_only_if_corrected(corrected, off):
    """Sharp potentials, and a gate that is open for nine tenths of the way: 1 ± 0.01 against 1.07 or more."""
    model, heats = chain(0, 2.5), []

    def anneal(weights, t):
        heats.append(smc.annealed(weights, t / T, early=0.9))
        return heats[-1]

    rule = Rule(resample="systematic", anneal=anneal, corrected=corrected)
    z = deviation(estimates(model, rule, 32, 1500, model.target()))
    assert max(heats) > 1 and (z > 3 if off else abs(z) < 3)


@pytest.mark.parametrize("finished", ["absorb", "freeze"])
def test_what_has_ended_counts_once_where_lengths_differ(finished):
    ratios = estimates(STORY, Rule(finished=finished), 6, 400, STORY.target())
    assert abs(deviation(ratios)) < 3


def test_what_has_ended_and_counts_again_is_another_target():
    assert deviation(estimates(STORY, Rule(finished="compete"), 6, 400, STORY.target())) < -3


# --- conditional sweeps leave the posterior as it is


def kept(model, held, n, rng, backward, rule):
    """One sweep beside a trajectory, and the trajectory that it hands on."""
    history = yield from sweep(PROBLEM, n, rng, model.verify, rule, held)
    if backward:
        return (yield from redrawn(PROBLEM, history, model.verify, rule, rng))
    return retained(history, rng)


def handed_on(model, n, backward, runs, rule=None, spoil=list, target=None):
    """Texts before and after one sweep, begun from the posterior."""
    rng, rule, target = np.random.default_rng(0), rule or Rule(), target or model.target()
    law = np.array(list(target.values())) / sum(target.values())
    starts = [list(target)[i] for i in rng.choice(law.size, size=runs, p=law)]
    runs = [kept(model, spoil(model.states(start)), n, rng, backward, rule) for start in starts]
    return starts, [model.drive(run, rng)[-1].particle.text for run in runs]


def worst(texts, target):
    """Greatest deviation of a marginal of independent texts from the target's, in standard errors."""
    law = marginals(target)
    seen = marginals(Counter(texts))
    return float(np.abs((seen - law) / np.sqrt(law * (1 - law) / len(texts))).max())


def moved(starts, ends):
    return sum(a[0] != b[0] for a, b in zip(starts, ends, strict=True)) / len(starts)


QUICK = [(4, True, 400), (8, False, 600)]
LONG = [pytest.param(n, b, 6000, marks=pytest.mark.slow) for n in (2, 4, 8) for b in (False, True)]


@pytest.mark.parametrize(("n", "backward", "runs"), QUICK + LONG)
def test_a_conditional_sweep_leaves_the_posterior_as_it_is(n, backward, runs):
    assert worst(handed_on(chain(), n, backward, runs)[1], chain().target()) < 4


def test_ratios_leave_their_posterior_as_it_is():
    target = chain().target(chain().potential)
    ends = handed_on(chain(), 4, True, 400, Rule(weighting="ratio"), target=target)[1]
    assert worst(ends, target) < 4 < worst(ends, chain().target())


def final_score_everywhere(held):
    return [state._replace(score=held[-1].score) for state in held]


def test_a_held_trajectory_that_competes_with_its_final_score_does_not():
    assert worst(handed_on(chain(), 4, True, 400, spoil=final_score_everywhere)[1], chain().target()) > 4


def test_backward_simulation_moves_early_steps_far_more_often():
    """0.02 against 0.18 of the first letters in a sweep of four particles."""
    assert moved(*handed_on(chain(), 4, True, 400)) >= 3 * max(0.03, moved(*handed_on(chain(), 4, False, 400)))


def test_backward_simulation_knows_what_has_ended():
    """Lengths differ: nothing follows an end, and an end follows no end."""
    target = STORY.target()
    starts, ends = handed_on(STORY, 4, True, 400)
    law = Counter()
    for text, p in target.items():
        law[text.count("\n")] += p / sum(target.values())
    counts = Counter(text.count("\n") for text in ends)
    assert all(binom.ppf(1e-4, 400, p) <= counts[k] <= binom.ppf(1 - 1e-4, 400, p) for k, p in law.items())
    assert set(ends) <= set(target) and sum(a != b for a, b in zip(starts, ends, strict=True)) > 100


FROM_THE_WORST = {10: (0.280, 0.038), 4: (0.425, 0.058), 1: (0.468, 0.059), 0: (0.411, 0.095)}
"""By chain, the greatest distance of a letter's law from the posterior's after three sweeps of four particles, plain
and backward: of an independent simulation, 40,000 runs each. It hangs on the chain. Redrawing the held trajectory's
ancestors within the sweep, in place of backward, came as near: 0.067, 0.053, 0.074 and 0.092."""


@pytest.mark.parametrize("seed", [10, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (4, 1, 0))])
def test_from_the_worst_start_backward_simulation_is_near_after_three_sweeps(seed):
    """Published for a chain of this kind: at least 0.2 plain, and at most 0.1."""
    runs = 400 if seed == 10 else 1500
    plain, backward = (distance_from_the_worst(seed, backward, runs) for backward in (False, True))
    assert (plain, backward) == pytest.approx(FROM_THE_WORST[seed], abs=1.75 / math.sqrt(runs))
    assert plain >= 0.2 and (backward <= 0.1 or seed == 0)


def distance_from_the_worst(seed, backward, runs):
    model, rng, rule, ends = chain(seed), np.random.default_rng(1), Rule(), []
    target = model.target()
    least = model.states(min(target, key=target.get))
    for _ in range(runs):
        held = least
        for _ in range(3):
            held = model.drive(kept(model, held, 4, rng, backward, rule), rng)
        ends.append(held[-1].particle.text)
    return np.abs(marginals(Counter(ends)) - marginals(target)).sum(1).max() / 2


def test_an_average_over_later_sweeps_is_less_biased_than_one_filter():
    """Of P(first letter = v): sweeps 5 to 8 of eight particles, backward, 0.01; a filter of eight, 0.26."""
    plain, averaged = biases(8, 40)
    assert averaged <= plain / 2


def biases(n, runs):
    """Greatest bias of the first letter's posterior, of one filter and of an average of sweeps 5 to 8."""
    model, rng, rule = chain(0, 2.0), np.random.default_rng(2), Rule()
    truth = marginals(model.target())[0]

    def rolled():
        held, told = [], []
        for _ in range(8):
            history = yield from sweep(PROBLEM, n, rng, model.verify, rule, held)
            first = [letters(trace(history, i)[0].particle.text)[0] for i in range(n)]
            told.append(np.bincount(first, history[-1].law, V))
            held = yield from redrawn(PROBLEM, history, model.verify, rule, rng)
        return told[0], np.mean(told[4:], axis=0)

    told = np.array([model.drive(rolled(), rng) for _ in range(runs)])
    return np.abs(told.mean(0) - truth).max(1)


# --- particle Gibbs, step by step


@pytest.mark.parametrize(
    ("budget", "sweeps", "sizes"),
    [(1, 4, [1]), (2, 4, [2]), (3, 4, [3]), (4, 4, [2, 1]), (16, 4, [4, 3, 3, 3]), (18, 4, [6, 3, 3, 3]), (8, 1, [8])],
)
def test_sweeps_share_the_budget_and_later_ones_draw_one_less(budget, sweeps, sizes):
    model = chain()
    program = particle_gibbs(PROBLEM, budget, rng(), model.verify, sweeps=sweeps)
    drawn = []

    def watched():
        reply = None
        while True:
            try:
                request = program.send(reply)
            except StopIteration as stop:
                return stop.value
            drawn.extend([request.n] if isinstance(request, Sample) and not request.along else [])
            reply = yield request

    answer = model.drive(watched(), rng())
    assert drawn == sizes and answer.response in answer.pool
    assert len(answer.pool) == sum(sizes) + len(sizes) - 1


def test_the_held_trajectory_competes_with_the_score_of_its_prefix_and_is_copied_from_there():
    """At the first step it has odds 1e6 against 1: the others go on from its prefix, not from its end."""
    held = [State(*state, 0.0) for state in ((paused("h\n")[0], 1 - 1e-6), (response("h\nz=1"), 1e-6))]
    verify = scored({"x\n": 1e-6, "y\n": 1e-6, "h\nx=2": 0.5, "h\ny=3": 0.5})
    program = sweep(P, 3, rng(), verify, Rule(), held)
    assert next(program).n == 2
    along = program.send(paused("x\n", "y\n")).along
    assert [r.text for r in along] == ["h\n", "h\n"] and verify.asked == [["x\n", "y\n"]]
    ends = program.send([response("h\nx=2"), response("h\ny=3")]).along
    with pytest.raises(StopIteration) as stop:
        program.send(list(ends))
    history = stop.value.value
    assert [p.text for p in history[-1].particles] == ["h\nx=2", "h\ny=3", "h\nz=1"]
    assert history[-1].ancestors.tolist() == [2, 2, 2] and [s.particle for s in trace(history, 2)] == [
        s[0] for s in held
    ]


def test_a_held_trajectory_of_no_weight_is_never_overwritten():
    held = [State(response("h=1"), 1e-9, 0.0)]
    verify = scored({"x\n": 1 - 1e-9, "y\n": 0.5, "x\na=2": 0.9})
    program = sweep(P, 3, rng(), verify, Rule(), held)
    next(program)
    assert [r.text for r in program.send(paused("x\n", "y\n")).along] == ["x\n", "x\n"]
    program.send([response("x\na=2")] * 2)
    with pytest.raises(StopIteration) as stop:
        program.send([response("x\na=2")] * 2 + [held[0].particle])
    last = stop.value.value[-1]
    assert last.particles[2].text == "h=1" and last.ancestors[2] == 2 and last.gains[2] == 0.0


def test_where_all_others_have_no_weight_the_held_trajectory_survives():
    held = [State(paused("h\n")[0], 0.5, 0.0), State(response("h\n=1"), 0.5, 0.0)]
    verify = scored({"x\n": -math.inf, "y\n": math.nan, "h\n=2": 0.5})
    program = sweep(P, 3, rng(), verify, Rule(), held)
    next(program)
    assert [r.text for r in program.send(paused("x\n", "y\n")).along] == ["h\n", "h\n"]


def test_a_longer_held_trajectory_is_waited_for():
    held = [State(p, 0.5, 0.0) for p in (*paused("h\n", "h\nh\n"), response("h\nh\n=1"))]
    program = sweep(P, 2, rng(), scored({"x=2": 0.5}), Rule(finished="freeze"), held)
    next(program)
    requests = [program.send([response("x=2")]) for _ in range(2)]
    assert [[r.text for r in request.along] for request in requests] == [["x=2"], ["x=2"]]
    with pytest.raises(StopIteration) as stop:
        program.send(list(program.send([response("x=2")]).along))
    assert [g.particles[1].text for g in stop.value.value] == ["h\n", "h\nh\n", "h\nh\n=1"]


def test_a_graft_has_the_tokens_of_both_and_what_they_are_worth_there():
    stem, head = (response(text, "pause", n, tokens=ids, logprobs=lp) for text, n, ids, lp in (
        ("ab\n", 2, (1, 2), (-1.0, -1.0)), ("xyz\n", 3, (7, 8, 9), (-2.0, -2.0, -2.0))))  # fmt: skip
    whole = response("ab\n=1", "eos", 5, tokens=(1, 2, 3, 4), logprobs=(-1.0, -1.0, -3.0, -4.0, -0.5))
    grown = graft(head, stem, whole, (-6.0, -7.0))
    assert (grown.text, grown.n_tokens, grown.tokens) == ("xyz\n=1", 6, (7, 8, 9, 3, 4))
    assert grown.logprobs == (-2.0, -2.0, -2.0, -6.0, -7.0, -0.5) and grown.finish == "eos" and grown.path is None
    assert graft(head, stem, whole, (-6.0,)).logprobs[3:] == (-3.0, -3.0, -0.5)
    assert graft(stem, stem, whole, (-6.0, -7.0)) is whole
