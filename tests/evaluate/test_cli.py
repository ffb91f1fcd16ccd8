"""The command line: its words, its exit codes, and what an interrupt leaves."""

import json
import os
import signal
import time

import pytest
import tiny
from launch import command_line, start

from extratime.evaluate.cli import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recipe(checkpoint, tmp_path):
    file = tmp_path / "recipe.yaml"
    said = {
        "model": str(checkpoint),
        "tasks": ["sums_easy"],
        "strategies": ["self_consistency"],
        "budgets": [2],
        "max_tokens": 8,
        "limit": 3,
        "chat": False,
        "engine": {"dtype": "float32", "device": "cpu", "slots": 4},
        "output": str(tmp_path / "run"),
    }
    file.write_text(json.dumps(said))
    return file


def said(capsys, *argv):
    """Exit status, what was printed, and what was complained about."""
    try:
        status = main([str(word) for word in argv])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize("command", [(), ("evaluate",), ("import",), ("report",)])
def test_help_says_how(capsys, command):
    status, out, _ = said(capsys, *command, "--help")
    assert status == 0 and "usage: extratime" in out
    if not command:
        assert all(name in out for name in ("train", "evaluate", "import", "report", "recipes/evaluate/demo.yaml"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required: command"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["report"], "required: folder"),
        (["report", "x", "--colour"], "unknown argument '--colour'; `extratime report --help`"),
        (["evaluate", "x", "--shards", "1/2"], "unknown argument '--shards'"),
        (["evaluate", "x", "--shard", "3"], "'3' is not I/N, such as 3/8"),
        (["evaluate", "x", "--shard", "a/b"], "'a/b' is not I/N"),
        (["evaluate", "x", "--shard", "8/8"], "'8/8': the shard must be in 0 … 7"),
        (["evaluate", "x", "--shard", "-1/8"], "shard"),
        (["evaluate", "/nowhere.yaml"], "extratime evaluate: /nowhere.yaml: cannot be read"),
        (["report", "/nowhere"], "extratime report: "),
        (["train", "nothing"], "no training recipe 'nothing'; there are "),
        (["train", "guard"], "no training recipe 'guard'"),
        (["train", "../evaluate/cli"], "no training recipe"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(capsys, argv, words):
    status, out, complaint = said(capsys, *argv)
    assert (status, out) == (2, "")
    assert words in complaint and "Traceback" not in complaint


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("budget=3", "unknown key 'budget'"),
        ("budgets", "'budgets' is not key=value"),
        ("budgets=[0]", "at least 1"),
        ("strategies=[best_of_m]", "no strategy 'best_of_m'"),
        ("tasks=[sums_easy, sums_eazy]", "no task 'sums_eazy'"),
        ("model=/nowhere", "/nowhere"),
    ],
)
def test_a_wrong_setting_is_named(capsys, recipe, setting, words):
    status, _, complaint = said(capsys, "evaluate", recipe, "--set", setting)
    assert status == 2 and words in complaint.splitlines()[-1]
    assert not (recipe.parent / "run" / "results").exists()


def test_verbose_shows_where_an_error_comes_from():
    with pytest.raises(ValueError, match="cannot be read"):
        main(["--verbose", "evaluate", "/nowhere.yaml"])


def test_a_dry_run_prints_the_plan_of_a_shard_and_writes_nothing(capsys, recipe):
    status, out, _ = said(capsys, "evaluate", recipe, "--dry-run", "--set", "model=/nowhere", "--shard", "0/2")
    assert status == 0
    assert "model     /nowhere" in out and "sums_easy: 2 documents" in out
    assert not (recipe.parent / "run").exists()


def test_evaluate_reports_and_a_shard_waits_for_the_others(capsys, recipe):
    folder = recipe.parent / "run"
    status, out, _ = said(capsys, "evaluate", recipe, "--shard", "1/2")
    assert status == 0 and f"{folder}: done; `extratime report {folder}` makes the leaderboard" in out
    assert not (folder / "leaderboard.md").exists()
    status, out, _ = said(capsys, "evaluate", recipe, "--shard", "0/2", "--no-report")
    assert status == 0 and not (folder / "leaderboard.md").exists()
    status, out, _ = said(capsys, "report", folder)
    assert status == 0 and "self_consistency" in out and out.splitlines()[-1].startswith("page: ")
    assert said(capsys, "report", recipe)[:2] == (0, out)
    assert "leaderboard" not in said(capsys, "report", recipe, "--set", "output=/nowhere")[1]
    assert (folder / "leaderboard.md").is_file()


def test_an_interrupt_keeps_what_was_drawn_and_says_how_to_go_on(capsys, recipe, tmp_path):
    words = ["evaluate", str(recipe), "--no-report", "--set", "limit=100", "--set", "max_tokens=96"]
    stream = tmp_path / "run" / "streams" / "0-of-1.jsonl"
    job = start(tmp_path / "log", command_line, words)
    while job.process.is_alive() and not (stream.exists() and stream.stat().st_size > 1000):
        time.sleep(0.005)
    os.kill(job.process.pid, signal.SIGINT)
    status, log = job.wait()
    assert (status, log.splitlines()[-1]) == (130, "stopped; the same command goes on from here")
    kept = stream.read_text()
    assert len(kept) > 1000
    assert said(capsys, *words)[0] == 0
    assert stream.read_text().startswith(kept) and stream.stat().st_size > len(kept)
    assert said(capsys, *words, "--replay")[0] == 0
