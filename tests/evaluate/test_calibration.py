import itertools
import math

import numpy as np
import pytest

from extratime.evaluate.statistics import calibration


def test_reference_values():
    assert calibration.auroc([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0]) == pytest.approx(0.875)
    assert calibration.brier([0.8, 0.4], [1, 0]) == pytest.approx(0.10)
    assert calibration.ece([0.95] * 4, [1, 1, 1, 0]) == pytest.approx(0.20)


def test_auroc_variants():
    rng = np.random.default_rng(0)
    assert math.isnan(calibration.auroc([1, 2], [1, 1]))
    scores, labels = [[0.9, 0.8], [0.8, 0.1], [0.2, 0.3]], [[1, 1], [0, 0], [0, 1]]
    whole = calibration.auroc_ci(scores, labels, rng, 500)
    assert whole.value == pytest.approx(calibration.auroc(np.ravel(scores), np.ravel(labels)))
    within = calibration.within_question_auroc(scores, labels, rng, 500)
    assert (within.value, within.questions) == (1.0, 1)
    assert calibration.within_question_auroc([[1, 2]], [[1, 1]], rng).questions == 0


def test_calibration_bins():
    assert calibration.ece([0.0, 0.1], [0, 0]) == pytest.approx(0.05)  # both in (0, .1]
    assert calibration.ece([0.3, 0.25], [0, 1]) == pytest.approx(abs(1 - 0.55) / 2)  # .3 belongs to (.2, .3]
    p, y = np.repeat([0.2, 0.6], 6), np.tile([1, 0], 6)
    assert calibration.adaptive_ece(p, y, 4) == pytest.approx(
        calibration.adaptive_ece(p, np.tile([1, 1, 1, 0, 0, 0], 2), 4)
    )
    assert calibration.adaptive_ece([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 2) == pytest.approx(0.15)


def test_risk_by_coverage_is_a_mean_over_the_orders_of_ties():
    assert calibration.risks([0.9, 0.8, 0.1], [1, 0, 1]) == pytest.approx([0, 1 / 2, 1 / 3])
    assert calibration.aurc([0.9, 0.8, 0.1], [1, 0, 1]) == pytest.approx(5 / 18)
    scores, labels = [2.0, 1.0, 1.0, 1.0, -math.inf], [1, 0, 1, 0, 0]
    curves = []
    for order in itertools.permutations((1, 2, 3)):
        wrong = np.cumsum([1 - labels[i] for i in (0, *order, 4)])
        curves.append(wrong / np.arange(1, 6))
    assert calibration.risks(scores, labels) == pytest.approx(np.mean(curves, axis=0))
    assert calibration.aurc([1, 1, 1, 1], [1, 0, 0, 0]) == pytest.approx(0.75), "blind scores have the error rate"
    assert calibration.aurc([2, 2, 1], [1, 1, 1]) == 0.0


def test_log_loss_is_bounded_where_sure_and_wrong():
    assert calibration.log_loss([0.8, 0.4], [1, 0]) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert calibration.log_loss([0.0, 1.0], [1, 1]) == pytest.approx(-math.log(1e-6) / 2)
    assert math.copysign(1, calibration.log_loss([1.0, 0.0], [1, 0])) == 1, "nothing lost is 0, not -0"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibration.auroc([math.nan], [1]), "missing"),
        (lambda: calibration.brier([1.2], [1]), "confidence"),
        (lambda: calibration.ece([0.5], [1], 0), "bins=0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
