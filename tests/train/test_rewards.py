from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extratime.train.rewards import win_or_tie


@given(st.lists(st.integers(0, 1), min_size=2, max_size=12))
def test_right_and_wrong_have_the_closed_form(rewards):
    """r + (1 − r)(1 − p̂), p̂ the share of the other draws that are right."""
    others = len(rewards) - 1
    expected = [r + (1 - r) * (1 - Fraction(sum(rewards) - r, others)) for r in rewards]
    assert win_or_tie(rewards) == pytest.approx([float(e) for e in expected])


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=10), st.floats(0, 2))
def test_a_label_is_the_mean_over_every_opponent(rewards, tolerance):
    for i, label in enumerate(win_or_tie(rewards, tolerance)):
        wins = [rewards[i] >= other - tolerance for j, other in enumerate(rewards) if j != i]
        assert label == pytest.approx(sum(wins) / len(wins))


def test_ties_within_the_tolerance_are_no_loss():
    assert win_or_tie([0.0, 0.5, 1.0]) == [0.0, 0.5, 1.0]
    assert win_or_tie([0.0, 0.5, 1.0], 0.5) == [0.5, 1.0, 1.0]
    assert win_or_tie([0.3, 0.3]) == [1.0, 1.0]


def test_one_draw_has_no_opponent():
    with pytest.raises(ValueError, match="at least 2 draws"):
        win_or_tie([1.0])
    with pytest.raises(ValueError, match="tolerance"):
        win_or_tie([1.0, 0.0], -0.1)
