"""A schedule from gradient norms: closed forms, the bound that it comes from, and runs that keep and use it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from launch import ROOT, logged, sums, together, train, write_rows, write_yaml

from extratime.models import manifest
from extratime.train import refinement, run, self_eval, sft, tempnet
from extratime.train.refinement import at, multipliers, norms_of, refined, refining, smooth

T = 400


def linear(steps):
    return (1 - np.arange(1, steps + 1) / steps) * steps / (steps - 1)


def exact(weights):
    """The schedule from weights, by the definition's double loop."""
    eta = np.array([w * weights[t + 1 :].sum() for t, w in enumerate(weights)])
    return eta / eta.max()


def bound(eta, norms):
    """The last iterate's bound for distance 1 and steps `eta` > 0, term by term."""
    total = (1 + (norms**2 * eta**2).sum()) / (2 * eta.sum())
    for t in range(len(eta) - 1):
        after, within = eta[t + 1 :].sum(), eta[t:].sum()
        total += eta[t] / (after * within) * (norms[t:] ** 2 * eta[t:] ** 2).sum() / 2
    return total


@pytest.mark.parametrize("power", [-1, -2])
@pytest.mark.parametrize("steps", [2, 3, 19, T])
def test_constant_norms_give_linear_decay(steps, power):
    np.testing.assert_allclose(multipliers(np.full(steps, 3.7), power), linear(steps), atol=1e-9)


@pytest.mark.parametrize("power", [-1, -2])
def test_large_norms_for_a_while_give_a_plateau(power):
    norms = np.where(np.arange(T) < 20, 10.0, 1.0)
    m = multipliers(norms, power, window=0)
    np.testing.assert_allclose(m, exact(norms**power), atol=1e-9)
    # The peak is step 20, the first with weight 1: 379 steps are left there. Step 0 weighs 10^power, as do 19 more.
    assert m.argmax() == 20
    assert m[0] == pytest.approx(10.0**power * (19 * 10.0**power + 380) / 379, abs=1e-9)
    np.testing.assert_allclose(m[20:], np.arange(379, -1, -1) / 379, atol=1e-9)


def test_falling_norms_give_a_warm_up():
    norms = np.where(np.arange(T) < 80, 5 - 4 * np.arange(T) / 80, 1.0)
    m = multipliers(norms, -1)
    np.testing.assert_allclose(m, exact(1 / smooth(norms, 0.1)), atol=1e-9)
    assert m[0] == pytest.approx(0.22, abs=0.01) and abs(m.argmax() - 0.2 * T) <= 0.02 * T


def test_one_spike_hardly_moves_the_schedule():
    rng = np.random.default_rng(0)
    norms = np.exp(0.2 * rng.standard_normal(T))
    spiked = norms.copy()
    spiked[150] *= 100
    assert np.abs(multipliers(spiked, -1) - multipliers(norms, -1)).max() < 0.05
    assert np.abs(multipliers(spiked, -1, 0) - multipliers(norms, -1, 0)).max() > 0.05


def test_the_median_filter_goes_on_left_and_mirrors_right():
    norms = np.random.default_rng(1).uniform(1, 2, 41)
    half = 2  # a window of 5
    long = np.concatenate([[norms[0]] * half, norms, norms[::-1][:half]])
    expected = [np.median(long[t : t + 2 * half + 1]) for t in range(41)]
    np.testing.assert_allclose(smooth(norms, 0.1), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [np.linspace(5, 1, 60), np.linspace(1, 3, 60), np.geomspace(10, 1, 60)])
def test_on_the_bound_it_comes_from_it_beats_linear_decay(shape):
    norms = shape * np.random.default_rng(0).uniform(0.95, 1.05, 60)

    def best(schedule):
        # The last step is 0 and has no part in the bound.
        return min(bound(schedule[:-1] * peak, norms[:-1]) for peak in np.geomspace(1e-3, 10, 60))

    assert best(multipliers(norms, -2)) < best(linear(60))


@pytest.mark.parametrize("norms", [[], [1.0], [0.0] * 9, [np.nan, np.inf, 2.0]])
def test_norms_that_nothing_follows_from_are_refused(norms):
    with pytest.raises(ValueError, match="no schedule follows from these gradient norms"):
        multipliers(norms, -1)


def test_norms_of_zero_and_infinity_are_survived():
    norms = np.ones(50)
    norms[7] = 0
    assert np.isfinite(multipliers(norms, -2, 0)).all()
    np.testing.assert_allclose(multipliers([1.0, np.inf, 1.0, np.nan, 1.0], -1), linear(3), atol=1e-12)


def test_another_number_of_steps_is_interpolated_by_progress():
    m = multipliers(np.ones(100), -1)
    assert [at(m, k, 100) for k in range(100)] == pytest.approx(m)
    longer = np.array([at(m, k, 300) for k in range(300)])
    assert np.abs(longer - (1 - (np.arange(300) + 0.5) / 300)).max() < 0.011 and longer[-1] == 0
    assert [at(m, k, 1) for k in range(1)] == pytest.approx([0.5], abs=0.01)


def trainer(folder, **settings):
    told = {"use_cpu": True, "max_steps": 3, "per_device_train_batch_size": 2, "report_to": "none", "seed": 1}
    args = sft.Config(output_dir=str(folder), learning_rate=0.01, logging_steps=1, save_steps=2, **told | settings)
    rows = Dataset.from_list(sums())
    return refining(sft.ColumnTrainer)(
        model=tiny.model(), processing_class=tiny.tokenizer(), args=args, train_dataset=rows
    )


@pytest.mark.parametrize("clip", [0.01, 0.0])
def test_norms_are_kept_once_a_step_accumulated_and_before_clipping(clip, tmp_path):
    session = trainer(tmp_path, gradient_accumulation_steps=2, max_grad_norm=clip)
    session.train()
    norms = json.loads((tmp_path / "checkpoint-3" / refinement.NAME).read_text())
    assert norms == session.norms and len(norms["l1"]) == 3
    seen = [entry["grad_norm"] for entry in session.state.log_history if "grad_norm" in entry]
    assert norms["l2"] == pytest.approx(seen, rel=1e-3) and min(norms["l2"]) > 0.02
    count = sum(weight.numel() for weight in session.model.parameters())
    assert all(b < a <= b * count**0.5 for a, b in zip(norms["l1"], norms["l2"], strict=True))


def test_norms_are_those_of_all_gradients_together():
    weights = [torch.zeros(3, requires_grad=True), torch.zeros((), requires_grad=True), torch.zeros(2)]
    weights[0].grad, weights[1].grad = torch.tensor([1.0, -2.0, 2.0]), torch.tensor(-4.0)
    assert norms_of(weights) == pytest.approx((9.0, 5.0))


def test_the_optimiser_chooses_norm_and_power(tmp_path):
    norms = {"l1": [1.0, 2.0, 4.0, 8.0], "l2": [3.0, 2.0, 1.0, 1.0]}
    manifest.write_json(tmp_path / refinement.NAME, norms)
    np.testing.assert_allclose(refined(str(tmp_path), "adamw_torch_fused"), multipliers(norms["l1"], -1))
    np.testing.assert_allclose(refined(str(tmp_path), "sgd"), multipliers(norms["l2"], -2))


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"l1": [0, 0]}', '{"l1": "many"}'])
def test_a_file_without_norms_is_refused_by_name(text, tmp_path):
    (tmp_path / refinement.NAME).write_text(text)
    with pytest.raises(ValueError, match=rf"refine_from: .*{refinement.NAME}: "):
        refined(str(tmp_path), "adamw_torch")


def test_a_second_run_follows_the_first_one_s_norms(tmp_path):
    tiny.save(tmp_path / "base")
    told = {"model": tmp_path / "base", "data": write_rows(tmp_path / "d.jsonl", sums()), "use_cpu": True}
    told |= {"per_device_train_batch_size": 2, "learning_rate": 0.01, "logging_steps": 1, "warmup_steps": 3}
    file = write_yaml(tmp_path / "r.yaml", **told)
    base = ("--config", file, "--max_steps")
    assert train(tmp_path, "sft", *base, 6, "--output_dir", tmp_path / "one")[0] == 0
    more = ("--refine_from", tmp_path / "one")
    code, said = train(tmp_path, "sft", *base, 9, "--output_dir", tmp_path / "two", *more)
    assert code == 0, said
    norms = json.loads((tmp_path / "one" / refinement.NAME).read_text())
    schedule = multipliers(norms["l1"], -1)
    rates = [entry["learning_rate"] for entry in logged(tmp_path / "two" / "checkpoint-9") if "loss" in entry]
    assert rates == pytest.approx([0.01 * at(schedule, k, 9) for k in range(9)])
    assert str(tmp_path / "one" / refinement.NAME) in manifest.verify(tmp_path / "two").inputs
    code, said = train(tmp_path, "sft", *base, 2, "--output_dir", tmp_path / "x", "--refine_from", tmp_path / "none")
    assert code == 1 and "none/gradient_norms.json does not exist" in said


def test_two_processes_keep_the_norms_of_one(tmp_path):
    tiny.save(tmp_path / "base")
    told = {"model": tmp_path / "base", "data": write_rows(tmp_path / "d.jsonl", sums()), "use_cpu": True}
    told |= {"learning_rate": 0.003, "max_steps": 2}
    alone = write_yaml(tmp_path / "1.yaml", per_device_train_batch_size=4, **told)
    pair = write_yaml(tmp_path / "2.yaml", per_device_train_batch_size=2, **told)
    assert train(tmp_path, "sft", "--config", alone, "--output_dir", tmp_path / "alone")[0] == 0
    cpu = ROOT / "recipes" / "accelerate" / "cpu.yaml"
    ends = together(tmp_path, cpu, "sft", "--config", pair, "--output_dir", tmp_path / "pair")
    assert [code for code, _ in ends] == [0, 0], ends
    one, two = (json.loads((tmp_path / name / refinement.NAME).read_text()) for name in ("alone", "pair"))
    assert two["l1"] == pytest.approx(one["l1"], rel=1e-3) and two["l2"] == pytest.approx(one["l2"], rel=1e-3)


@pytest.mark.parametrize("config", [sft.Config, self_eval.Config, tempnet.Config])
def test_linear_decay_is_the_default(config, tmp_path):
    args, _ = run.parse(config, ["--output_dir", str(tmp_path)])
    assert args.lr_scheduler_type == "linear" and args.get_warmup_steps(100) == 0
    session = SimpleNamespace(lr_scheduler=None, args=args, optimizer=torch.optim.SGD([torch.zeros(1)], 1.0))
    schedule = refinement.Trainer.create_scheduler(session, 10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        session.optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1 - k / 10 for k in range(10)])
