"""What is submitted, and that the scripts are sound: no SLURM needed."""

import importlib.util
import os
import shlex
import shutil
import subprocess

import pytest
from launch import ROOT

FOLDER = ROOT / "scripts" / "slurm"


def submit(*words, site="scripts/slurm/site.sh"):
    env = os.environ | {"EXTRATIME_SITE": str(site)}
    return subprocess.run([FOLDER / "submit", *words], cwd="/", env=env, capture_output=True, text=True)


def printed(*words):
    done = submit("--dry-run", *words)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck (apt-get install shellcheck)")
    scripts = [path for path in FOLDER.iterdir() if path.is_file() and path.suffix != ".py"]
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert len(scripts) == 7 and done.returncode == 0, done.stdout


def test_a_dry_run_prints_the_options_of_the_site_and_then_those_of_the_call():
    (said,) = printed("--nodes=2", "--cpus-per-task=9", "train", "zero3", "sft", "--config", "a b.yaml")
    at = said.index("scripts/slurm/train.slurm")
    assert said[0] == "sbatch" and said[at + 1 :] == ["zero3", "sft", "--config", "a b.yaml"]
    assert "--partition=gpu" in said[:at] and "--gpus-per-node=8" in said[:at]
    assert said.index("--cpus-per-task=64") < said.index("--cpus-per-task=9")
    assert not (ROOT / "logs").exists()


def test_an_array_is_followed_by_a_report_and_a_single_evaluation_is_not():
    first, report = printed("--array=0-7", "evaluate", "r.yaml", "--set", "limit=8")
    assert "--array=0-7" in first and first[-3:] == report[-3:] == ["r.yaml", "--set", "limit=8"]
    assert "--dependency=afterany:JOB" in report and "scripts/slurm/report.slurm" in report
    assert "--array=0-7" not in report and len(printed("evaluate", "r.yaml")) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["traim", "x"], "no job traim; there are train, evaluate, serve, report"),
        (["--nodes", "2", "train", "x"], "option --nodes: write options of sbatch as --option=value"),
        (["--array=0-3", "train", "zero2", "sft"], "--array is for evaluate alone"),
        (["serve", "r.yaml"], "serve needs the command of a server after --"),
        (["train"], "scripts/slurm/submit [--dry-run]"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, complaint):
    done = submit("--dry-run", *words)
    assert done.returncode == 2 and complaint in done.stderr and not done.stdout


def test_a_profile_that_is_not_there_is_named():
    assert "site profile /nowhere.sh cannot be read" in submit("report", "x", site="/nowhere.sh").stderr


def test_each_node_is_told_its_place():
    spec = importlib.util.spec_from_file_location("slurm_launch", FOLDER / "launch.py")
    launch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launch)
    slurm = {
        "SLURM_NNODES": "4",
        "SLURM_NODEID": "3",
        "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
        "SLURM_JOB_ID": "123456",
    }
    said = launch.options(slurm, 8, "fsdp2", "sft")
    told = dict(zip(said[:-2:2], said[1:-2:2], strict=True))
    assert told["--num_machines"] == "4" and told["--num_processes"] == "32" and told["--machine_rank"] == "3"
    assert told["--main_process_ip"] == "10.0.0.7" and told["--main_process_port"] == "23456"
    assert said[-2:] == ["-m", "extratime.train.sft"]
    assert [launch.status(code) for code in (0, 1, -15, 143)] == [0, 1, 143, 143]
