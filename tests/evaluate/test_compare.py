import numpy as np
import pytest

from extratime.evaluate.statistics import compare


def test_holm_steps_down():
    assert compare.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_pareto_frontier_and_inclusion():
    assert compare.pareto_frontier([1, 1, 2, 3, 3], [0.5, 0.5, 0.4, 0.7, 0.6]) == [0, 3]
    cost = [[1.0] * 6, [1.0] * 6, [2.0] * 6]
    quality = [[0.1, 0.7, 0.3, 0.9, 0.2, 0.4]] * 3
    assert compare.frontier_inclusion(cost, quality, np.random.default_rng(0), 50).tolist() == [1.0, 0.0, 0.0]


def test_hypervolume_is_what_the_frontier_dominates():
    cost, quality = [1, 2, 4, 3], [0.2, 0.5, 0.6, 0.4]
    assert compare.hypervolume(cost, quality, (5, 0.0)) == pytest.approx(4 * 0.2 + 3 * 0.3 + 1 * 0.1)
    assert compare.hypervolume(cost[:3], quality[:3], (5, 0.0)) == compare.hypervolume(cost, quality, (5, 0.0))
    assert compare.hypervolume(cost, quality, (2.5, 0.3)) == pytest.approx(0.5 * 0.2), (
        "beyond the reference is nothing"
    )
    grid = [
        any(c <= x and q >= y for c, q in zip(cost, quality, strict=True))
        for x in np.arange(0.01, 5, 0.02)
        for y in np.arange(0.005, 1, 0.01)
    ]
    assert compare.hypervolume(cost, quality, (5, 0.0)) == pytest.approx(np.mean(grid) * 5, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare.holm([]), "p_values"),
        (lambda: compare.pareto_frontier([], []), "cost"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
