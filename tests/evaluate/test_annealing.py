"""The law of losses under annealing: its sums, what it predicts, and fits that find the constants of known curves."""

import json
from dataclasses import replace

import numpy as np
import pytest

from extratime.evaluate.cli import main
from extratime.evaluate.statistics.annealing import Curve, Law, areas, fit, read, schedule, warm_up

TRUE = Law(L0=1.2, A=0.5, alpha=0.5, C=0.8, decay=0.99)
STEPS, PEAK, WARM = 3000, 1e-3, 100


def simulated(shape, steps=STEPS, noise=0.005, seed=0, every=20):
    rates = schedule(shape, steps, PEAK, WARM)
    told = TRUE(rates).reshape(-1, every).mean(1)
    rng = np.random.default_rng(seed)
    middles = np.arange(0, steps, every) + (every - 1) / 2
    return Curve(rates, middles, told + noise * rng.standard_normal(len(told)))


@pytest.fixture(scope="module")
def fitted():
    return fit([simulated("constant", seed=1), simulated("cosine", seed=2)])


def test_the_recursion_is_the_double_sum():
    rng = np.random.default_rng(0)
    rates = np.concatenate([[0.5, 0.8], np.sort(rng.uniform(0.2, 0.8, 20))[::-1], rng.uniform(0.1, 1, 30)])
    s1, s2 = areas(rates, 0.9)
    fall = [0.0, *(rates[:-1] - rates[1:])]
    fall[1] = 0.0  # warm-up
    expected = [sum(fall[k] * 0.9 ** (i - k) for i in range(s + 1) for k in range(i + 1)) for s in range(len(rates))]
    np.testing.assert_allclose(s2, expected, atol=1e-12)
    np.testing.assert_allclose(s1, [rates[: s + 1].sum() for s in range(len(rates))], atol=1e-12)


def test_a_constant_rate_and_a_warm_up_have_no_annealing():
    for rates in (np.full(50, 0.1), np.linspace(0.01, 1, 50), np.append(np.linspace(0.01, 1, 10), np.ones(40))):
        assert (areas(rates, 0.99)[1] == 0).all() and warm_up(rates) == 50
    assert warm_up(np.array([1.0, 2.0, 2.0, 1.0, 3.0])) == 3


def test_steps_that_move_nothing_add_nothing():
    rates = schedule("linear", 100, 1.0)
    still = np.append(rates, np.zeros(500))
    assert TRUE(still)[-1] == TRUE(still)[99] == pytest.approx(TRUE(rates)[-1])


def test_a_second_warm_up_predicts_a_bump():
    law = replace(TRUE, C=5.0)
    low = np.concatenate([np.full(300, 1e-3), np.full(300, 1e-4)])
    kept, again = np.append(low, np.full(100, 1e-4)), np.append(low, np.full(100, 1e-3))
    assert law(again)[620] > law(again)[599] > law(kept)[620]


def test_a_fall_pays_with_a_delay():
    law = replace(TRUE, C=5.0)
    gain = law(np.full(600, 1e-3)) - law(np.append(np.full(300, 1e-3), np.full(300, 1e-4)))
    assert gain[299] == 0 < gain[305] < gain[350] / 3
    # The whole of it is C·Δη/(1 − λ), less the progress that the lower rate does not make.
    assert areas(np.append(np.full(300, 1e-3), np.full(3000, 1e-4)), 0.99)[1][-1] == pytest.approx(0.09)


def test_a_fit_finds_the_constants_and_predicts_unseen_schedules(fitted):
    assert pytest.approx(TRUE.L0, rel=0.01) == fitted.L0
    assert fitted.alpha == pytest.approx(TRUE.alpha, rel=0.1)
    for shape, steps in (("constant, then linear over 20 %", STEPS), ("linear", STEPS), ("cosine", STEPS // 2)):
        rates = schedule(shape, steps, PEAK, WARM)
        assert fitted(rates)[-1] == pytest.approx(TRUE(rates)[-1], abs=0.005)
    unseen = simulated("constant, then linear over 20 %", seed=3)
    flat = fit([simulated("constant", seed=1), simulated("cosine", seed=2)], annealing=False)
    assert flat.C == 0 and fitted.error(unseen) < 0.5 * flat.error(unseen)


def test_without_noise_the_fit_is_exact():
    found = fit([simulated("constant", noise=0), simulated("cosine", noise=0)], [0.9, 0.99, 0.999])
    assert found.decay == 0.99
    assert (found.L0, found.A, found.alpha, found.C) == pytest.approx((1.2, 0.5, 0.5, 0.8), rel=0.01)


def test_a_constant_curve_alone_has_no_annealing_to_fit():
    assert fit([simulated("constant")]).C == 0


def test_too_little_to_fit_is_refused():
    few = Curve(np.full(4, 0.1), np.arange(4.0), np.ones(4))
    with pytest.raises(ValueError, match=r"four constants and \d losses > 0 to fit: log more often"):
        fit([few])


def state(folder, entries):
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": entries}))


def logged(steps, every=2):
    rates = schedule("linear", steps, 1.0)
    return [{"step": s, "loss": 1 / s, "learning_rate": rates[s - 1]} for s in range(every, steps + 1, every)]


def test_the_newest_checkpoint_s_log_is_read(tmp_path):
    state(tmp_path / "checkpoint-8", logged(8))
    state(tmp_path / "checkpoint-20", [*logged(20), {"step": 20, "train_runtime": 3.0}])
    for folder in (tmp_path, tmp_path / "checkpoint-20"):
        curve = read(folder)
        np.testing.assert_allclose(curve.rates[1:], schedule("linear", 20, 1.0)[1:])
        assert curve.at.tolist() == [s - 1.5 for s in range(2, 21, 2)] and curve.losses[0] == 0.5


def test_a_folder_without_a_curve_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint of a training run"):
        read(tmp_path)
    state(tmp_path / "checkpoint-4", logged(4))
    with pytest.raises(ValueError, match="tells 2 losses, and a curve needs 10: train with lower logging_steps"):
        read(tmp_path)
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("[]")
    with pytest.raises(ValueError, match="is no log of a training run"):
        read(tmp_path)


def test_a_report_on_training_runs_fits_draws_and_predicts(tmp_path, capsys):
    for shape in ("constant", "cosine"):
        curve = simulated(shape)
        steps = range(20, STEPS + 1, 20)
        told = zip(steps, curve.losses.tolist(), curve.rates[19::20].tolist(), strict=True)
        entries = [{"step": step, "loss": loss, "learning_rate": rate} for step, loss, rate in told]
        state(tmp_path / shape / f"checkpoint-{STEPS}", entries)
    assert main(["report", "--training", str(tmp_path / "constant"), str(tmp_path / "cosine")]) == 0
    told = json.loads((tmp_path / "constant" / "annealing.json").read_text())
    assert told["law"]["L0"] == pytest.approx(TRUE.L0, rel=0.02) and max(told["error"].values()) < 0.01
    linear = TRUE(schedule("linear", STEPS, PEAK, WARM))[-1]
    assert told["predicted final loss"]["linear"] == pytest.approx(linear, abs=0.01)
    assert (tmp_path / "constant" / "annealing.png").read_bytes()[:4] == b"\x89PNG"
    said = capsys.readouterr().out
    assert "warm-up counts in S1 and not in S2" in said and "one schedule cannot tell" not in said
    assert main(["report", "--training", str(tmp_path / "cosine")]) == 0
    assert "one schedule cannot tell progress from annealing" in capsys.readouterr().out
    entries = [{"step": s, "loss": 1.0, "learning_rate": 1.0} for s in range(1, 12)]
    state(tmp_path / "other" / "checkpoint-11", entries)
    assert main(["report", "--training", str(tmp_path / "cosine"), str(tmp_path / "other")]) == 2
    assert "the law holds for one peak learning rate" in capsys.readouterr().err
