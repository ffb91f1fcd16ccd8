"""Regret of curves whose area is known, and the law of progress."""

import random

import numpy as np
import pytest

from extratime.evaluate.statistics.regret import normalised_regret, progress, success_at


@pytest.mark.parametrize(
    ("curve", "regret"),
    [
        ([(0.5, 1)], 0.25),
        ([(2, 1)], 0.75),
        ([(0.1, 0), (0.4, 0), (3, 0)], 1.0),
        ([(1, 1)], 0.5),
        ([(1e-12, 1)], 0.0),
        ([(0.5, 1), (0.5, 0)], 0.75),
        ([(0.25, 1), (0.75, 0)], 1 - 0.125 - 0.25),
        ([(0.5, 0.5), (1.5, 1)], 1 - 0.125 - 0.3125),
    ],
)
def test_regret_is_the_area_above_the_curve(curve, regret):
    for budget in (1, 4096, 0.3):
        assert normalised_regret([(x * budget, y) for x, y in curve], budget) == pytest.approx(regret, abs=1e-9)


def test_regret_agrees_with_a_fine_sum():
    rng = random.Random(0)
    for _ in range(50):
        xs = sorted(rng.uniform(0.1, 100) for _ in range(rng.randint(1, 9)))
        ys = [rng.random() for _ in xs]
        budget = rng.uniform(1, 120)
        grid = (np.arange(200_000) + 0.5) * budget / 200_000
        area = np.interp(grid, [0, *xs], [0, *ys]).mean()
        assert normalised_regret(list(zip(xs, ys, strict=True)), budget) == pytest.approx(1 - area, abs=1e-4)


@pytest.mark.parametrize(
    ("curve", "budget"), [([], 1), ([(1, 1)], 0), ([(1, 1)], -1), ([(2, 1), (1, 1)], 1), ([(1, 2)], 1), ([(-1, 1)], 1)]
)
def test_what_is_no_curve_is_refused(curve, budget):
    with pytest.raises(ValueError, match=r"regret needs|tokens must not fall"):
        normalised_regret(curve, budget)


def test_success_at_a_budget_is_that_of_the_last_point_within_it():
    curve = [(2, 0.25), (4, 1.0), (6, 0.5)]
    assert [success_at(curve, x) for x in (0, 1.9, 2, 4, 5, 6, 100)] == [0, 0, 0.25, 1, 1, 0.5, 0.5]


def test_progress_adds_up_to_the_whole():
    rng = random.Random(1)
    for n in (1, 2, 7):
        successes = [rng.randint(0, 8) / 8 for _ in range(n)]
        assert sum(progress(successes)) == successes[-1] - successes[0] and len(progress(successes)) == n - 1
    assert progress([0, 0, 0]) == [0, 0]
