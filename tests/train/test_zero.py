"""ZeRO-2 and ZeRO-3 on two processes over gloo, with the configurations and the launcher that users have."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import tiny
import torch
from launch import (
    QUIET,
    ROOT,
    die_after,
    draws,
    free_port,
    hear_letters,
    in_turn,
    logged,
    only,
    pairs,
    reward_letters,
    sums,
    together,
    train,
    use_poison,
    write_rows,
    write_yaml,
)
from safetensors.torch import load_file

from extratime.models import manifest
from extratime.models.load import load
from extratime.train import checkpoints

pytest.importorskip("deepspeed")
STEPS = 4
CONFIGS = {name: ROOT / "recipes" / "accelerate" / f"{name}.yaml" for name in ("cpu", "zero2", "zero3")}
ASKED = {"question": "ok?", "good": "n", "bad": "y", "responses": 2, "rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("zero")
    tiny.save(place / "base")
    write_rows(place / "sft.jsonl", sums())
    write_rows(place / "self_eval.jsonl", draws())
    return place


def words(place, name, out, each, *more):
    """A run that reads four rows a step, `each` on each process."""
    settings = {"model": place / "base", "data": place / f"{name}.jsonl", "per_device_train_batch_size": each}
    settings |= {"max_steps": STEPS, "save_steps": 2, "logging_steps": 1, "learning_rate": 0.003, "use_cpu": True}
    settings |= {"max_grad_norm": 1.0, **(ASKED if name == "self_eval" else {})}
    return ["--config", write_yaml(place / f"{name}-{each}.yaml", **settings), "--output_dir", out, *more]


@pytest.fixture(scope="module")
def alone(place):
    """The folder of a run of one plain process, made once for each recipe and adapter."""
    made = {}

    def run(name, *more):
        if (name, more) not in made:
            made[name, more] = place / f"alone-{len(made)}"
            code, said = train(place, name, *words(place, name, made[name, more], 4, *more))
            assert code == 0, said
        return made[name, more]

    return run


def assert_close(out, reference):
    """The same losses and weights as one process, up to the order of sums."""
    found, expected = (logged(folder / f"checkpoint-{STEPS}") for folder in (out, reference))
    assert [entry["step"] for entry in found] == list(range(1, STEPS + 1))
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    name = next(reference.glob("*.safetensors")).name
    one, other = load_file(out / name), load_file(reference / name)
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[key], other[key], atol=2e-4) for key in one)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_stopped_run_goes_on_and_ends_like_one_process(stage, place, alone, tmp_path):
    out = tmp_path / "out"
    given = words(place, "sft", out, 2)
    # One process of the two is told to stop: both save, both leave.
    ends = together(tmp_path, CONFIGS[stage], "sft", *given, before=partial(only, 1, die_after, 1, signal.SIGTERM))
    assert [code for code, _ in ends] == [128 + signal.SIGTERM] * 2, ends
    point = out / "checkpoint-2"
    assert checkpoints.damage(point, deepspeed=True) is None
    assert checkpoints.read_marker(point).world == 2
    assert len(list(point.glob("global_step2/*optim_states.pt"))) == 2
    ends = together(tmp_path, CONFIGS[stage], "sft", *given)
    assert [code for code, _ in ends] == [0, 0], ends
    assert f"going on from {point}" in ends[0][1]
    assert_close(out, alone("sft"))
    assert manifest.verify(out).settings["max_steps"] == STEPS
    held = load_file(out / "model.safetensors")
    assert all(torch.equal(weight, held[name]) for name, weight in load(out).model.state_dict().items())


@pytest.mark.parametrize(
    ("stage", "harm"),
    [("zero2", "gradient"), ("zero3", "gradient"), pytest.param("zero3", "loss", marks=pytest.mark.slow)],
)
def test_not_a_number_stops_before_the_optimiser_moves(stage, harm, place, tmp_path):
    out = tmp_path / "out"
    given = words(place, "sft", out, 2)
    ends = together(tmp_path, CONFIGS[stage], "sft", *given, before=partial(use_poison, 2, harm))
    for code, said in ends:
        assert code == 1 and "NotFinite: step 3: " in said and "the weights did not move" in said, said
    assert [place.name for place in checkpoints.numbered(out)] == ["checkpoint-2"]
    assert all(torch.isfinite(w).all() for w in load_file(out / "checkpoint-2" / "model.safetensors").values())


CASES = [("cpu", "grpo"), ("zero3", "grpo"), ("zero2", "judge_grpo"), ("zero3", "judge_grpo")]
DRAWING = [("zero2", "grpo"), *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES)]
VERDICTS = {"opener": "#", "yes": "y", "no": "n", "first": "a", "second": "b", "chat": False}


@pytest.mark.parametrize(("stage", "name"), DRAWING)
def test_rollouts_of_a_stopped_run_are_learned_from_where_it_goes_on(stage, name, place, tmp_path):
    drawn = {"num_generations": 2, "max_completion_length": 5}
    if name == "grpo":
        reward, drawn = reward_letters, drawn | {"tasks": ["sums_easy"], "problems": 9}
    else:
        reward, drawn = hear_letters, drawn | VERDICTS
        drawn |= {"data": write_rows(tmp_path / "pairs.jsonl", pairs()), "steps_per_generation": 2}
    steps = {"num_iterations": 3, "max_steps": 5, "save_steps": 4, "logging_steps": 1, "learning_rate": 0.003}
    given = drawn | steps | {"model": place / "base", "per_device_train_batch_size": 2, "use_cpu": True}
    file = write_yaml(tmp_path / f"{name}.yaml", **given)
    runs = {"whole": (), "stopped": (partial(only, 1, die_after, 3, signal.SIGTERM),)}
    for run, stops in runs.items():
        for before in (*stops, None):
            first = partial(in_turn, reward, *([before] if before else []))
            words = ("--config", file, "--output_dir", tmp_path / run)
            ends = together(tmp_path, CONFIGS[stage], name, *words, before=first)
            assert [code for code, _ in ends] == [128 + signal.SIGTERM if before else 0] * 2, ends
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in runs)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert logged(tmp_path / "whole" / "checkpoint-5") == logged(tmp_path / "stopped" / "checkpoint-5")


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["alora", "lora", "full"])
@pytest.mark.parametrize("stage", ["cpu", "zero2", "zero3"])
def test_self_evaluation_trains_like_one_process(stage, adapter, place, alone, tmp_path):
    out = tmp_path / "out"
    more = ("--adapter", adapter)
    ends = together(tmp_path, CONFIGS[stage], "self_eval", *words(place, "self_eval", out, 2, *more))
    assert [code for code, _ in ends] == [0, 0], ends
    assert_close(out, alone("self_eval", *more))
    assert load(out).model is not None and manifest.verify(out).kind == adapter


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["cpu", "zero2", "zero3"])
def test_the_launcher_itself(stage, place, alone, tmp_path):
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS[stage]]
    launch += ["--num_processes", 2, "--main_process_port", free_port(), "-m", "extratime.train.sft"]
    command = [str(word) for word in [*launch, *words(place, "sft", out, 2)]]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert checkpoints.read_marker(out / f"checkpoint-{STEPS}").world == 2
    assert_close(out, alone("sft"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_plain_run_and_a_sharded_one_do_not_go_on_from_each_other(stage, place, tmp_path):
    out = tmp_path / "out"
    assert [code for code, _ in together(tmp_path, CONFIGS[stage], "sft", *words(place, "sft", out, 2))] == [0, 0]
    (out / "extratime.json").unlink()
    code, said = train(tmp_path, "sft", *words(place, "sft", out, 4))
    assert code == 1 and "holds no optimiser state for a run without DeepSpeed" in said
    code, said = train(tmp_path, "sft", *words(place, "sft", tmp_path / "plain", 4))
    assert code == 0
    (tmp_path / "plain" / "extratime.json").unlink()
    for more, why in (((), "for a run under DeepSpeed"), (("--fresh_optimizer", "true"), "DeepSpeed cannot go on")):
        given = words(place, "sft", tmp_path / "plain", 2, *more)
        for code, said in together(tmp_path, CONFIGS[stage], "sft", *given):
            assert code == 1 and why in said
