"""Sequential Monte Carlo against a Markov chain whose posterior is known by enumeration."""

from itertools import product

import numpy as np
import pytest
from toy import ToyEngine, problem, run, told

from extratime.evaluate.algorithms import smc
from extratime.evaluate.program import Problem
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.particle_filter import particle_filter

V, T = 3, 6
ALMOST_ONE = 1 - 2.0**-53


class Fixed:
    """A generator of one value."""

    def __init__(self, value):
        self.value = value

    def random(self, n=None):
        return self.value if n is None else np.full(n, self.value)


class Chain:
    """Second-order chain over three letters with potentials on pairs; all 729 strings are enumerated."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.law = rng.dirichlet(np.full(V, 0.7), size=(V, V))
        self.gain = np.exp(rng.normal(size=(T, V, V)))
        strings = np.array(list(product(range(V), repeat=T)))
        mass = np.array([self.mass(x) for x in strings])
        self.z = mass.sum()
        self.marginals = np.stack([mass @ (strings == v) for v in range(V)]).T / self.z  # (T, V)

    def mass(self, x):
        a, b, total = 0, 0, 1.0
        for t, letter in enumerate(x):
            total *= self.law[a, b, letter] * self.gain[t, letter, b]
            a, b = b, letter
        return total

    def filter(self, n, resample, rng):
        """One run: log of the estimated normalising constant, and the weighted marginals, shape (T, V)."""
        x = np.zeros((n, T + 2), dtype=int)
        log_z, p = 0.0, np.full(n, 1 / n)
        for t in range(T):
            if t:
                x = x[resample(p, n, rng)]
            rows = np.cumsum(self.law[x[:, t], x[:, t + 1]], axis=1)
            x[:, t + 2] = np.minimum((rng.random(n)[:, None] > rows).sum(1), V - 1)
            log_w = np.log(self.gain[t, x[:, t + 2], x[:, t + 1]])
            log_z += smc.log_mean(log_w)
            p, _ = smc.normalise(log_w)
        return log_z, np.stack([p @ (x[:, 2:] == v) for v in range(V)]).T


@pytest.fixture(scope="module")
def chain():
    return Chain(0)


@pytest.fixture(scope="module")
def runs(chain):
    """By (scheme, n): log Ẑ − log Z and the error of the marginals for each run."""
    found = {}
    for name, n in product(("multinomial", "systematic"), (4, 16, 64)):
        rng = np.random.default_rng(7)
        many = [chain.filter(n, smc.RESAMPLERS[name], rng) for _ in range(2000)]
        log_z = np.array([z for z, _ in many]) - np.log(chain.z)
        found[name, n] = log_z, np.array([m for _, m in many]) - chain.marginals
    return found


@pytest.mark.parametrize("n", [4, 16, 64])
@pytest.mark.parametrize("name", ["multinomial", "systematic"])
def test_normalising_constant_is_unbiased_and_its_logarithm_low(runs, name, n):
    log_z, _ = runs[name, n]
    ratio = np.exp(log_z)
    assert abs(ratio.mean() - 1) < 3 * ratio.std() / np.sqrt(ratio.size)
    assert log_z.mean() < 0


def rmse(errors):
    return float(np.sqrt(np.mean(errors**2)))


@pytest.mark.parametrize("name", ["multinomial", "systematic"])
def test_error_shrinks_as_the_root_of_the_particles(runs, name):
    assert 0.4 <= rmse(runs[name, 64][1]) / rmse(runs[name, 16][1]) <= 0.65


def test_bias_of_self_normalised_averages_shrinks_faster(runs):
    bias = {n: np.abs(runs["multinomial", n][1].mean(0)).max() for n in (4, 16, 64)}
    assert bias[64] < bias[16] / 2 < bias[4] / 4


def test_systematic_resampling_beats_multinomial(runs):
    assert rmse(runs["systematic", 64][1]) <= 0.9 * rmse(runs["multinomial", 64][1])


# --- the same chain through the strategy, the scheduler and an engine


def markov_engine(chain):
    def law(text):
        letters = [0, 0, *map(int, text.replace("\n", ""))]
        if len(letters) == T + 2:
            return {"": 1.0}
        return {f"{v}\n": chain.law[letters[-2], letters[-1], v] for v in range(V)}

    return ToyEngine(told(law))


def odds_of(chain):
    def verify(problem, responses):
        """Scores whose odds are the potential of the last letter."""
        yield from ()
        scores = []
        for response in responses:
            x = [0, *map(int, response.text.replace("\n", ""))]
            gain = chain.gain[len(x) - 2, x[-1], x[-2]]
            scores.append(gain / (1 + gain))
        return scores

    return verify


@pytest.mark.parametrize("resample", ["multinomial", "systematic"])
def test_particle_filter_samples_the_posterior(chain, resample):
    def filtered(problem: Problem, budget, rng):
        return particle_filter(problem, budget, rng, verify=odds_of(chain), resample=resample)

    cells = [Cell(f"r{i}", problem(max_tokens=8), filtered, 32, replicate=i) for i in range(60)]
    pools = [result.answer.pool for result in run(markov_engine(chain), cells)]
    letters = np.array([[list(map(int, r.text.split())) for r in pool] for pool in pools])
    shares = np.stack([(letters == v).mean(1) for v in range(V)], axis=-1)  # (run, T, V)
    error = shares.mean(0) - chain.marginals
    standard = shares.std(0) / np.sqrt(len(pools))
    assert np.all(np.abs(error) < 4 * standard + 0.03)  # 0.03: the O(1/n) bias of 32 particles


def test_without_potentials_the_filter_samples_the_prior(chain):
    flat = Chain(0)
    flat.gain[:] = 1.0

    def filtered(problem, budget, rng):
        return particle_filter(problem, budget, rng, verify=odds_of(flat), resample="systematic")

    cells = [Cell(f"r{i}", problem(max_tokens=8), filtered, 16, replicate=i) for i in range(40)]
    first = [int(r.text[0]) for result in run(markov_engine(chain), cells) for r in result.answer.pool]
    share = np.bincount(first, minlength=V) / len(first)
    assert np.abs(share - chain.law[0, 0]).max() < 4 * 0.5 / np.sqrt(len(first))


# --- weights and resamplers


def test_odds_of_scores():
    p, degenerate = smc.normalise(smc.logit([0.9, 0.5]))
    assert p == pytest.approx([0.9, 0.1]) and not degenerate
    assert smc.normalise(smc.logit([0.9, 0.5]) / 2)[0] == pytest.approx([0.75, 0.25])


def test_certain_scores_stay_finite():
    assert np.isfinite(smc.logit([0.0, 1.0])).all()
    assert np.isnan(smc.logit([np.nan])).all()


@pytest.mark.parametrize(
    ("log_weights", "expected", "degenerate"),
    [
        ([2.0, 2.0, 2.0, 2.0], [0.25] * 4, False),
        ([5.0], [1.0], False),
        ([-np.inf, 0.0], [0.0, 1.0], False),
        ([np.nan, 0.0, 0.0], [0.0, 0.5, 0.5], False),
        ([-np.inf, -np.inf], [0.5, 0.5], True),
        ([np.nan, np.nan], [0.5, 0.5], True),
        ([np.nan, -np.inf], [0.5, 0.5], True),
        ([np.inf, 3.0], [1.0, 0.0], False),
        ([np.inf, np.inf, 3.0, np.nan], [0.5, 0.5, 0.0, 0.0], False),
        ([1e308, -1e308], [1.0, 0.0], False),
        ([-1e6, -1e6], [0.5, 0.5], False),
    ],
)
def test_normalised_weights(log_weights, expected, degenerate):
    p, flag = smc.normalise(log_weights)
    assert p == pytest.approx(expected) and flag == degenerate


@pytest.mark.parametrize(
    ("log_weights", "expected"),
    [
        ([0.0, 0.0], 0.0),
        (np.log([1.0, 3.0]), np.log(2.0)),
        ([-np.inf, 0.0], -np.log(2)),
        ([-np.inf, -np.inf], -np.inf),
        ([np.nan, 0.0], -np.log(2)),
        ([np.nan], -np.inf),
        ([np.inf, 0.0], np.inf),
        ([-1e6, -1e6], -1e6),
    ],
)
def test_log_mean(log_weights, expected):
    assert smc.log_mean(log_weights) == pytest.approx(expected)


def test_effective_sample_size():
    assert smc.effective_sample_size(np.full(8, 1 / 8)) == pytest.approx(8)
    assert smc.effective_sample_size(np.array([1.0, 0.0, 0.0])) == pytest.approx(1)


@pytest.mark.parametrize("name", smc.RESAMPLERS)
def test_expected_copies_are_n_times_the_weight(name):
    weights, n, rng = np.array([0.05, 0.0, 0.4, 0.25, 0.3]), 7, np.random.default_rng(1)
    counts = np.array([np.bincount(smc.RESAMPLERS[name](weights, n, rng), minlength=5) for _ in range(4000)])
    assert (counts.sum(1) == n).all() and (counts[:, 1] == 0).all()
    assert np.all(np.abs(counts.mean(0) - n * weights) <= 4 * counts.std(0) / np.sqrt(len(counts)) + 1e-12)


@pytest.mark.parametrize("name", ["systematic", "residual"])
def test_low_variance_schemes_copy_within_one_of_the_expectation(name):
    rng = np.random.default_rng(2)
    for _ in range(200):
        weights = rng.dirichlet(np.full(9, 0.5))
        copies = np.bincount(smc.RESAMPLERS[name](weights, 9, rng), minlength=9)
        assert (copies >= np.floor(9 * weights)).all()
        if name == "systematic":
            assert (copies <= np.ceil(9 * weights)).all()


@pytest.mark.parametrize("name", ["systematic", "stratified", "residual"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 64, 1000])
def test_equal_weights_copy_each_particle_once(name, n):
    rng = np.random.default_rng(3)
    assert (smc.RESAMPLERS[name](np.full(n, 1 / n), n, rng) == np.arange(n)).all()


@pytest.mark.parametrize("name", smc.RESAMPLERS)
@pytest.mark.parametrize("u", [0.0, 0.5, ALMOST_ONE])
@pytest.mark.parametrize(
    "weights",
    [
        [1.0],
        [0.0, 0.0, 1.0],
        [1.0, 0.0, 0.0],
        [0.5, 0.0, 0.5, 0.0],
        [0.1] * 10,  # the cumulative sum ends at 0.9999999999999999
        [1 / 3, 1 / 3, 1 / 3 - 1e-12],
        [1 - 1e-17, 1e-17, 0.0],
        [1e-300, 1.0, 0.0],
    ],
)
def test_extreme_uniforms_choose_only_particles_with_weight(name, u, weights):
    w = np.array(weights)
    for n in (1, 2, 10, 33):
        chosen = smc.RESAMPLERS[name](w, n, Fixed(u))
        assert chosen.shape == (n,) and (w[chosen] > 0).all()
