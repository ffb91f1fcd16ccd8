"""DeepSpeed on two nodes of a real SLURM: a run whose nodes are taken ends like one that was left alone."""

import time
from pathlib import Path

import psutil
import pytest
import tiny
from launch import logged, sums, write_rows, write_yaml

from extratime.models import manifest

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 60


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    place = tmp_path_factory.mktemp("training")
    settings = {"model": tiny.save(place / "base"), "data": write_rows(place / "sft.jsonl", sums())}
    settings |= {"per_device_train_batch_size": 2, "max_steps": STEPS, "save_steps": 5, "save_total_limit": 2}
    settings |= {"logging_steps": 7, "learning_rate": 0.003, "use_cpu": True, "report_to": "none"}
    return write_yaml(place / "sft.yaml", **settings)


def begin(cluster, folder, recipe, out, *more):
    words = ("--nodes=2", "train", "zero2", "sft", "--config", recipe, "--output_dir", out, *more)
    (job,) = cluster.submit(folder, *words)
    return job


def log(folder, job, attempt):
    path = folder / "logs" / f"extratime-train-{job}.{attempt}.log"
    return path.read_text() if path.exists() else ""


def until(cluster, folder, job, attempt, met, seconds=200):
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, log(folder, job, attempt) + cluster.logs()
        cluster.wait(job, seconds, {"RUNNING", "COMPLETING"})  # and have a job that was taken begin at once
        time.sleep(0.05)


def steps(out):
    """Those of the newest checkpoint."""
    return max((int(place.name[11:]) for place in out.glob("checkpoint-*")), default=0)


def launcher(out):
    """One of the two that started the run into `out`."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if Path(words[0]).name == "python" and "scripts/slurm/launch.py" in words and str(out) in words:
            return process
    raise LookupError(f"no launcher runs for {out}")


def test_stopped_by_notice_and_by_force_it_ends_bitwise_like_a_run_that_was_left_alone(cluster, recipe, tmp_path):
    out, reference = tmp_path / "out", tmp_path / "reference"
    job = begin(cluster, tmp_path, recipe, out)
    until(cluster, tmp_path, job, 0, lambda: steps(out) >= 10)
    launcher(out).terminate()  # one alone is told: it passes that on, and all processes of both nodes agree
    until(cluster, tmp_path, job, 1, lambda: "going on from" in log(tmp_path, job, 1))
    kept = steps(out)
    assert f"SIGTERM: saved step {kept};" in log(tmp_path, job, 0) and 10 <= kept < STEPS
    until(cluster, tmp_path, job, 1, lambda: steps(out) > kept)
    cluster.run("scontrol", "requeue", job)  # as when the nodes are taken
    ended = cluster.wait(job, 200)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), log(tmp_path, job, 2)
    assert "SIGTERM: saved step" in log(tmp_path, job, 1) and "going on from" in log(tmp_path, job, 2)
    alone = begin(cluster, tmp_path, recipe, reference)
    assert cluster.wait(alone, 200)["JobState"] == "COMPLETED", log(tmp_path, alone, 0)
    assert (out / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    earlier = out / f"checkpoint-{STEPS - 5}" / "model.safetensors"
    assert earlier.read_bytes() != (out / "model.safetensors").read_bytes()  # five steps are not lost in rounding
    assert logged(out / f"checkpoint-{STEPS}") == logged(reference / f"checkpoint-{STEPS}")
    assert manifest.verify(out).settings == manifest.verify(reference).settings


def test_a_run_that_fails_is_not_begun_again(cluster, recipe, tmp_path):
    job = begin(cluster, tmp_path, recipe, tmp_path / "out", "--data", tmp_path / "nothing.jsonl")
    ended = cluster.wait(job, 200)
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", "0", "1:0")
    assert "nothing.jsonl' does not exist" in log(tmp_path, job, 0)
