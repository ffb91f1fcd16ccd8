"""A run that was stopped, however, goes on bitwise as if it had not been."""

import json
import random
import shutil
import signal
from functools import partial

import pytest
import tiny
import torch
from launch import (
    begin,
    die_after,
    die_at,
    draws,
    hear_letters,
    in_turn,
    logged,
    pairs,
    reward_letters,
    solutions,
    sums,
    train,
    write_rollouts,
    write_rows,
    write_yaml,
)
from safetensors.torch import load_file

from extratime.train import refinement

STEPS = 7
RUNS = {
    "sft": ("sft", {}),
    "alora": ("self_eval", {"adapter": "alora", "contrast": 0.5}),
    "lora": ("self_eval", {"adapter": "lora", "layout": "separate", "cuts": 3}),
    "full": ("self_eval", {"adapter": "full", "shuffle_labels": True}),
    "tempnet": ("tempnet", {"width": 8}),
    "early_exit": ("early_exit", {"exits": [1], "rank": 4}),
    "grpo": ("grpo", {"num_iterations": 3}),
    "grpo, entropy": ("grpo", {"entropy": 3.0}),
    "mrt": ("mrt", {"num_iterations": 3}),
    "mrt, episodes": ("mrt", {"form": "episodes", "k": 2, "num_iterations": 3}),
    "judge_sft": ("judge_sft", {}),
    "judge_grpo": ("judge_grpo", {"num_iterations": 2, "consistency": "index"}),
    "grpo, many steps": ("grpo", {"steps_per_generation": 4, "beta": 0.1, "entropy_coef": 0.01}),
    "joint": ("tempnet", {"width": 8, "joint": True}),
    "refined": ("sft", {"refine_from": "sft", "max_grad_norm": 0.5}),
    "prm": ("prm", {"dropout": 0.2}),
}
BEFORE = {"grpo": (reward_letters,), "mrt": (reward_letters,), "judge_grpo": (hear_letters,)}
"""By recipe, what happens in its process before it starts."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each run without a stop, made once: its recipe's name, file and folder."""
    place = tmp_path_factory.mktemp("whole")
    base = tiny.save(place / "base")
    config = json.loads((base / "config.json").read_text())
    # Dropout, so that the state of the random numbers matters.
    (base / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.2}))
    worked = write_rows(place / "sums.jsonl", sums(8))
    data = {
        "sft": worked,
        "tempnet": worked,
        "early_exit": worked,
        "self_eval": write_rows(place / "draws.jsonl", draws()),
    }
    data["prm"] = write_rows(place / "steps.jsonl", solutions())
    write_rollouts(place / "rollouts")
    data |= {"judge_sft": worked, "judge_grpo": write_rows(place / "pairs.jsonl", pairs())}
    made = {}

    def run(kind):
        if kind not in made:
            name, more = RUNS[kind]
            if "refine_from" in more:
                more = more | {"refine_from": run(more["refine_from"])[2]}
            file = write_yaml(place / f"{kind}.yaml", **settings(base, data.get(name), name), **more)
            out = place / kind
            before = partial(in_turn, *BEFORE.get(name, ()))
            assert train(place, name, "--config", file, "--output_dir", out, before=before)[0] == 0
            made[kind] = name, file, out
        return made[kind]

    return run


def settings(base, data, name):
    asked = {"question": "ok?", "good": "n", "bad": "y", "responses": 2, "rank": 4, "alpha": 8}
    grouped = {"num_generations": 2, "max_completion_length": 5}
    drawn = {"tasks": ["sums_easy"], "problems": 9, **grouped}
    branched = {"rollouts": base.parent / "rollouts", "end": "!", **grouped}
    judging = {"opener": "#", "yes": "y", "no": "n", "first": "a", "second": "b", "chat": False}
    own = {"self_eval": asked, "grpo": drawn, "mrt": branched, "judge_sft": judging, "judge_grpo": judging | grouped}
    return {
        "model": base,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "save_steps": 2,
        "logging_steps": 3,
        "learning_rate": 0.01,
        "use_cpu": True,
        **({"data": data} if data else {}),
        **own.get(name, {}),
    }


def tensors(value):
    """All tensors and numbers of a nested state, in order."""
    if isinstance(value, dict):
        return [found for key in sorted(value, key=str) for found in tensors(value[key])]
    if isinstance(value, list | tuple):
        return [found for item in value for found in tensors(item)]
    return [value]


def assert_same(one, other):
    """Two runs ended bitwise alike: weights, optimiser, schedule, gradient norms and every logged number."""
    weights = [next(folder.glob("*.safetensors")).name for folder in (one, other)]
    assert weights[0] == weights[1] and (one / weights[0]).read_bytes() == (other / weights[0]).read_bytes()
    for name in ("optimizer.pt", "scheduler.pt"):
        a, b = (torch.load(run / f"checkpoint-{STEPS}" / name, weights_only=True) for run in (one, other))
        a, b = tensors(a), tensors(b)
        assert len(a) == len(b)
        assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))
    assert (one / refinement.NAME).read_text() == (other / refinement.NAME).read_text()
    assert logged(one / f"checkpoint-{STEPS}") == logged(other / f"checkpoint-{STEPS}")


@pytest.mark.parametrize("kind", RUNS)
def test_a_killed_run_ends_bitwise_like_one_that_was_not(kind, whole, tmp_path):
    name, file, reference = whole(kind)
    words = ("--config", file, "--output_dir", tmp_path / "out")
    step = random.randrange(2, STEPS)
    first = BEFORE.get(name, ())
    code, said = train(tmp_path, name, *words, before=partial(in_turn, *first, partial(die_after, step)))
    assert code == -signal.SIGKILL, said
    assert not (tmp_path / "out" / "extratime.json").exists()
    code, said = train(tmp_path, name, *words, before=partial(in_turn, *first))
    assert code == 0 and f"going on from {tmp_path / 'out'}/checkpoint-{step // 2 * 2}" in said, (step, said)
    assert_same(tmp_path / "out", reference)


@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 2), (signal.SIGUSR1, 1)])
def test_a_signal_saves_the_step_and_the_run_goes_on_from_there(number, times, whole, tmp_path):
    name, file, reference = whole("sft")
    words = ("--config", file, "--output_dir", tmp_path / "out")
    step = random.choice([2, 4])
    code, said = train(tmp_path, name, *words, before=partial(die_after, step, number, times))
    assert code == 128 + number, said
    assert f"{number.name}: saved step {step + 1}" in said
    assert (tmp_path / "out" / f"checkpoint-{step + 1}" / "complete.json").is_file()
    code, said = train(tmp_path, name, *words)
    assert code == 0 and f"checkpoint-{step + 1}" in said
    assert_same(tmp_path / "out", reference)


def test_a_signal_from_outside_at_any_moment_leaves_a_run_that_goes_on(whole, tmp_path):
    name, file, reference = whole("sft")
    words = ("--config", file, "--output_dir", tmp_path / "out")
    job = begin(tmp_path, name, *words)
    while not list((tmp_path / "out").glob("checkpoint-2")):
        assert job.process.is_alive(), job.log.read_text()
    job.process.terminate()
    assert job.wait()[0] in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
    assert train(tmp_path, name, *words)[0] == 0
    assert_same(tmp_path / "out", reference)


AT = [
    ("open", ".partial/checkpoint-4/.complete.json.", 1),
    ("os.rename", ".partial/checkpoint-4'", 1),
    ("open", ".extratime.json.", 1),
]
SLOW = [
    ("open", ".partial/checkpoint-4/config.json", 1),
    ("open", ".partial/checkpoint-4/optimizer.pt", 1),
    ("shutil.rmtree", "checkpoint-2'", 1),
    ("os.rename", "final/", 2),
]


@pytest.mark.parametrize("event", [*AT, *(pytest.param(event, marks=pytest.mark.slow) for event in SLOW)], ids=str)
def test_a_kill_while_saving_leaves_nothing_that_passes_as_whole(event, whole, tmp_path):
    name, file, reference = whole("sft")
    words = ("--config", file, "--output_dir", tmp_path / "out", "--save_total_limit", "1")
    code, said = train(tmp_path, name, *words, before=partial(die_at, *event))
    assert code == -signal.SIGKILL, said
    assert not (tmp_path / "out" / "extratime.json").exists()
    for place in (tmp_path / "out").glob("checkpoint-*"):
        assert (place / "complete.json").is_file() and load_file(place / "model.safetensors")
    assert train(tmp_path, name, *words)[0] == 0
    assert_same(tmp_path / "out", reference)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(whole, tmp_path):
    name, file, reference = whole("sft")
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    (out / "extratime.json").unlink()
    weights = out / f"checkpoint-{STEPS}" / "model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    # One checkpoint is kept: the damaged one, which is newest by name, must not push out the good one.
    words = ("--config", file, "--output_dir", out, "--save_total_limit", "1")
    code, said = train(tmp_path, name, *words, before=partial(die_after, 6))
    assert code == -signal.SIGKILL, said
    assert f"passing over a damaged checkpoint: {out}/checkpoint-{STEPS}: model.safetensors is not what was" in said
    assert f"going on from {out}/checkpoint-6" in said
    assert train(tmp_path, name, *words)[0] == 0
    assert_same(out, reference)


def test_missing_optimiser_state_is_refused_unless_a_fresh_one_is_asked_for(whole, tmp_path):
    name, file, reference = whole("sft")
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    (out / "extratime.json").unlink()
    for place in out.glob("checkpoint-*"):
        if place.name != "checkpoint-6":
            shutil.rmtree(place)
    (out / "checkpoint-6" / "optimizer.pt").unlink()
    code, said = train(tmp_path, name, "--config", file, "--output_dir", out)
    assert code == 1 and "optimizer.pt is missing" in said and "--fresh_optimizer true" in said
    code, said = train(tmp_path, name, "--config", file, "--output_dir", out, "--fresh_optimizer", "true")
    assert code == 0 and f"going on from {out}/checkpoint-6" in said
    assert (out / "model.safetensors").read_bytes() != (reference / "model.safetensors").read_bytes()


def test_a_run_that_stopped_between_its_last_step_and_its_end_takes_no_further_step(whole, tmp_path):
    name, file, reference = whole("sft")
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    for file_name in ("extratime.json", "model.safetensors"):
        (out / file_name).unlink()
    assert train(tmp_path, name, "--config", file, "--output_dir", out)[0] == 0
    assert not (out / f"checkpoint-{STEPS + 1}").exists()
    assert_same(out, reference)
