"""ZeRO-2, ZeRO-3 and FSDP on two processes over gloo, with the configurations and the launcher that users have."""

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
    prepare,
    reward_letters,
    solutions,
    sums,
    together,
    train,
    use_poison,
    write_rollouts,
    write_rows,
    write_yaml,
)
from safetensors.torch import load_file

from extratime.models import early_exit, manifest, tempnet
from extratime.models.load import load
from extratime.models.reward import load_reward
from extratime.train import checkpoints

pytest.importorskip("deepspeed")
STEPS = 4
CONFIGS = {path.stem: path for path in (ROOT / "recipes" / "accelerate").glob("*.yaml")}
STATES = {
    "zero2": ("DeepSpeed", "global_step2/*optim_states.pt", 2),
    "zero3": ("DeepSpeed", "global_step2/*optim_states.pt", 2),
    "fsdp2": ("FSDP", "optimizer.bin", 1),
}
MRT = {"branches": {}, "episodes": {"form": "episodes", "k": 2}}
ASKED = {"question": "ok?", "good": "n", "bad": "y", "responses": 2, "rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("zero")
    tiny.save(place / "base")
    for name in ("sft", "tempnet", "early_exit"):
        write_rows(place / f"{name}.jsonl", sums())
    write_rows(place / "self_eval.jsonl", draws())
    write_rows(place / "prm.jsonl", solutions())
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


@pytest.mark.parametrize("stage", STATES)
def test_a_stopped_run_goes_on_and_ends_like_one_process(stage, place, alone, tmp_path):
    out = tmp_path / "out"
    given = words(place, "sft", out, 2)
    # One process of the two is told to stop: both save, both leave.
    stopped = partial(prepare, stage, 1, die_after, 1, signal.SIGTERM)
    ends = together(tmp_path, CONFIGS[stage], "sft", *given, before=stopped)
    assert [code for code, _ in ends] == [128 + signal.SIGTERM] * 2, ends
    point = out / "checkpoint-2"
    under, states, files = STATES[stage]
    assert checkpoints.damage(point, under) is None
    assert checkpoints.read_marker(point).world == 2
    assert len(list(point.glob(states))) == files
    ends = together(tmp_path, CONFIGS[stage], "sft", *given, before=partial(prepare, stage))
    assert [code for code, _ in ends] == [0, 0], ends
    assert f"going on from {point}" in ends[0][1]
    assert_close(out, alone("sft"))
    assert manifest.verify(out).settings["max_steps"] == STEPS
    held = load_file(out / "model.safetensors")
    assert all(torch.equal(weight, held[name]) for name, weight in load(out).model.state_dict().items())


def test_sharding_that_accelerate_would_leave_out_is_refused(place, tmp_path):
    for code, said in together(tmp_path, CONFIGS["fsdp2"], "sft", *words(place, "sft", tmp_path / "out", 2)):
        assert code == 1 and "shards by FSDP on accelerators only: take zero3.yaml or cpu.yaml" in said


@pytest.mark.slow
def test_a_fully_sharded_run_ends_bitwise_alike_stopped_or_not(place, tmp_path):
    made = []
    for name, act in (("whole", ()), ("stopped", (1, die_after, 1, signal.SIGTERM))):
        given = words(place, "sft", tmp_path / name, 2)
        together(tmp_path, CONFIGS["fsdp2"], "sft", *given, before=partial(prepare, "fsdp2", *act))
        ends = together(tmp_path, CONFIGS["fsdp2"], "sft", *given, before=partial(prepare, "fsdp2"))
        assert [code for code, _ in ends] == [0, 0], ends
        made.append((tmp_path / name / "model.safetensors").read_bytes())
    assert made[0] == made[1]


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


VERDICTS = {"opener": "#", "yes": "y", "no": "n", "first": "a", "second": "b", "chat": False}


def drawing(kind, folder):
    """Recipe, rewards and settings of a run that draws."""
    grouped = {"num_generations": 2, "max_completion_length": 5}
    if kind in MRT:
        branched = {"rollouts": write_rollouts(folder / "rollouts"), "end": "!", **MRT[kind]}
        return "mrt", reward_letters, grouped | branched
    if kind == "judge_grpo":
        judged = {"data": write_rows(folder / "pairs.jsonl", pairs()), "steps_per_generation": 2}
        return kind, hear_letters, grouped | VERDICTS | judged
    return kind, reward_letters, grouped | {"tasks": ["sums_easy"], "problems": 9}


@pytest.mark.parametrize(
    "stage", [pytest.param("cpu", marks=pytest.mark.slow), "zero2", pytest.param("zero3", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", ["grpo", *(pytest.param(k, marks=pytest.mark.slow) for k in ("judge_grpo", *MRT))])
def test_rollouts_of_a_stopped_run_are_learned_from_where_it_goes_on(kind, stage, place, tmp_path):
    name, reward, drawn = drawing(kind, tmp_path)
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
@pytest.mark.parametrize("stage", ["cpu", *STATES])
def test_self_evaluation_trains_like_one_process(stage, adapter, place, alone, tmp_path):
    out = tmp_path / "out"
    more = ("--adapter", adapter)
    given = words(place, "self_eval", out, 2, *more)
    ends = together(tmp_path, CONFIGS[stage], "self_eval", *given, before=partial(prepare, stage))
    assert [code for code, _ in ends] == [0, 0], ends
    assert_close(out, alone("self_eval", *more))
    assert load(out).model is not None and manifest.verify(out).kind == adapter


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_sharded_run_follows_a_refined_schedule_and_keeps_no_norms_of_its_own(stage, place, alone, tmp_path):
    out, more = tmp_path / "out", ("--refine_from", alone("sft"))
    ends = together(tmp_path, CONFIGS[stage], "sft", *words(place, "sft", out, 2, *more))
    assert [code for code, _ in ends] == [0, 0], ends
    assert_close(out, alone("sft", *more))
    code, said = train(tmp_path, "sft", *words(place, "sft", tmp_path / "next", 4, "--refine_from", out))
    assert code == 1 and "gradient_norms.json does not exist" in said and "unless it ran under DeepSpeed" in said


@pytest.mark.slow
@pytest.mark.parametrize("joint", ["false", "true"])
@pytest.mark.parametrize("stage", ["cpu", "zero2"])
def test_a_temperature_network_trains_beside_a_policy_and_with_it(stage, joint, place, tmp_path):
    out, more = tmp_path / "out", ("--joint", joint, "--width", "8")
    ends = together(tmp_path, CONFIGS[stage], "tempnet", *words(place, "tempnet", out, 2, *more))
    assert [code for code, _ in ends] == [0, 0], ends
    said = manifest.verify(out)
    if joint == "true":
        before, after = load(place / "base").model.state_dict(), load(out).model.state_dict()
        assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key]) for key in before)
    assert tempnet.load(said.temperatures, out)(torch.randn(3, 264)).shape == (3,)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["cpu", "zero2"])
def test_a_controller_of_early_exit_trains_on_two_processes(stage, place, tmp_path):
    out = tmp_path / "out"
    given = words(place, "early_exit", out, 2, "--exits", "1", "--rank", "4")
    ends = together(tmp_path, CONFIGS[stage], "early_exit", *given)
    assert [code for code, _ in ends] == [0, 0], ends
    made = early_exit.load(manifest.verify(out).early_exit, out)
    assert made.up.any() and made.classifier.weight.any()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["cpu", "zero2", "zero3"])
def test_a_process_reward_model_trains_like_one_process(stage, place, alone, tmp_path):
    out = tmp_path / "out"
    ends = together(tmp_path, CONFIGS[stage], "prm", *words(place, "prm", out, 2))
    assert [code for code, _ in ends] == [0, 0], ends
    assert_close(out, alone("prm"))
    assert load_reward(out).how.steps and manifest.verify(out).steps.separator == "\n"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["cpu", "ddp", "zero2", "zero3"])
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
