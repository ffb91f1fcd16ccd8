import json
import os
import shutil
import signal
import sys

import pytest

from extratime.train.checkpoints import Marker, damage, forget_old, last_good, numbered, publish, read_marker

FEW = ("model.safetensors", "global/deep.json")
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "global/deep.json")


def written(output, step, files=FILES):
    """A folder as a trainer leaves it, not yet published."""
    folder = output / ".partial" / f"checkpoint-{step}"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"{name} at {step}".encode() * 99)
    return folder


def save(output, step, files=FILES):
    place = output / f"checkpoint-{step}"
    publish(written(output, step, files), place, Marker(step, 1, {"lr": 0.1}, {"data": "hash"}, {}))
    return place


def test_a_published_checkpoint_is_whole_and_says_what_it_is(tmp_path):
    place = save(tmp_path, 4)
    marker = read_marker(place)
    assert (marker.step, marker.world, marker.settings, marker.inputs) == (4, 1, {"lr": 0.1}, {"data": "hash"})
    assert set(marker.files) == set(FILES)
    assert damage(place) is None and last_good(tmp_path) == place
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_any_harm_to_any_file_is_noticed_and_the_one_before_is_taken(name, harm, tmp_path, capsys):
    before, newest = save(tmp_path, 2), save(tmp_path, 4)
    path = newest / name
    content = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if harm == "flip" else content[:-1])
    assert name in damage(newest)
    assert last_good(tmp_path) == before
    said = capsys.readouterr().err
    assert f"passing over a damaged checkpoint: {newest}: {name}" in said


@pytest.mark.parametrize("marker", [None, "", "{}", "{broken", '{"step": 1}', "[]"])
def test_a_checkpoint_without_a_sound_marker_was_never_finished(marker, tmp_path):
    before, newest = save(tmp_path, 2), save(tmp_path, 10)
    if marker is None:
        (newest / "complete.json").unlink()
    else:
        (newest / "complete.json").write_text(marker)
    assert "complete.json cannot be read" in damage(newest)
    assert last_good(tmp_path) == before


def test_no_checkpoint_is_not_the_same_as_none_that_is_whole(tmp_path):
    assert last_good(tmp_path) is None
    for step in (1, 2):
        (save(tmp_path, step) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint is whole .*checkpoint-2.*checkpoint-1.*fresh_optimizer"):
        last_good(tmp_path)


def test_missing_optimiser_state_is_damage_unless_a_fresh_one_is_asked_for(tmp_path):
    place = save(tmp_path, 1)
    for name in ("optimizer.pt", "scheduler.pt"):
        (place / name).unlink()
        assert damage(place) and damage(place, fresh_optimizer=True) is None
    (place / "model.safetensors").unlink()
    assert damage(place, fresh_optimizer=True)


def test_optimiser_state_of_another_kind_of_run_does_not_pass(tmp_path):
    plain = save(tmp_path, 1)
    sharded = save(
        tmp_path, 2, ("model.safetensors", "scheduler.pt", "global_step2/bf16_zero_pp_rank_0_optim_states.pt")
    )
    assert damage(plain) is None and damage(sharded, "DeepSpeed") is None
    assert "for a run under DeepSpeed" in damage(plain, "DeepSpeed")
    assert "for a run under FSDP" in damage(plain, "FSDP")
    assert "for a run without DeepSpeed" in damage(sharded)
    assert last_good(tmp_path) == plain and last_good(tmp_path, "DeepSpeed") == sharded


def test_saving_a_step_again_replaces_it(tmp_path):
    damaged = save(tmp_path, 3)
    (damaged / "optimizer.pt").unlink()
    assert damage(save(tmp_path, 3)) is None
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]


def test_old_checkpoints_go_but_never_because_of_a_later_damaged_one(tmp_path):
    for step in (2, 4, 6, 8, 10):
        save(tmp_path, step)
    forget_old(tmp_path, 8, 2)
    assert [p.name for p in numbered(tmp_path)] == ["checkpoint-10", "checkpoint-8", "checkpoint-6"]
    for keep in (None, 0):
        forget_old(tmp_path, 10, keep)
        assert len(numbered(tmp_path)) == 3


def test_numbers_are_ordered_as_numbers_and_other_names_are_left_alone(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-x", "checkpoint-", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-11").write_text("a file")
    assert [p.name for p in numbered(tmp_path)] == ["checkpoint-10", "checkpoint-9"]


def publish_and_die(output, count):
    """Publish step 2 in a forked process that kills itself at an audited event; whether it got that far."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(name, args):
            nonlocal seen
            if name in EVENTS and str(output) in str(args):
                seen += 1
                if seen == count:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        publish(output / ".partial" / "checkpoint-2", output / "checkpoint-2", Marker(2, 1, {}, {}, {}))
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.scandir", "os.listdir")


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint_or_none(again, tmp_path):
    count, died = 0, True
    while died:
        count += 1
        output = tmp_path / str(count)
        save(output, 1, FEW)
        if again:
            save(output, 2, FEW)
        written(output, 2, FEW)
        died = publish_and_die(output, count)
        assert all(damage(place, fresh_optimizer=True) is None for place in numbered(output))
        assert last_good(output, fresh_optimizer=True).name in ("checkpoint-1", "checkpoint-2")
        shutil.rmtree(output)
    assert count > 12


def test_the_marker_is_the_last_file_to_be_written(tmp_path):
    place = save(tmp_path, 5)
    times = {path.name: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    assert max(times, key=times.get) == "complete.json"
    assert json.loads((place / "complete.json").read_text())["files"]
