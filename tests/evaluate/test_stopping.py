"""Thresholds at which responses are given up: where they stand at the edges."""

import math

import pytest

from extratime.evaluate.algorithms.stopping import learned, stops


@pytest.mark.parametrize(("loss", "lost"), [(0.0, 0), (0.07, 7), (0.29, 29), (0.57, 57), (0.999, 99)])
def test_a_share_of_a_hundred_right_responses_is_counted_exactly(loss, lost):
    """0.29 × 100 is a little less than 29 in binary."""
    lowest = [i / 128 for i in range(100)]
    threshold = learned(lowest[::-1], [True] * 100, loss)
    assert threshold == lowest[lost]
    assert stops(lowest, [True] * 100, threshold).lost == pytest.approx(lost / 100)


@pytest.mark.parametrize("loss", [-0.1, 1.0, 1.5, math.nan])
def test_a_loss_is_a_share_below_one(loss):
    with pytest.raises(ValueError, match=r"a loss in \[0, 1\), not 1 and"):
        learned([0.5], [True], loss)


def test_wrong_responses_do_not_move_the_threshold():
    assert learned([0.1, 0.2, 0.9, 0.5], [False, False, False, True]) == 0.5


def test_shares_of_nothing_are_unknown():
    only_right = stops([0.1, 0.9], [True, True], 0.5)
    assert only_right.precision == 0.0 and math.isnan(only_right.recall) and only_right.lost == 0.5
    only_wrong = stops([0.1, 0.9], [False, False], 0.5)
    assert only_wrong.precision == 1.0 and only_wrong.recall == 0.5 and math.isnan(only_wrong.lost)


def test_at_the_threshold_nothing_stops():
    assert stops([0.5, 0.4], [False, False], 0.5).recall == 0.5
