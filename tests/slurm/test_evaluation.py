"""Evaluations on a real SLURM with real models: shards that are killed, and a real server."""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny
from launch import ROOT, write_yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def recipe(tmp_path):
    settings = {"model": tiny.save(tmp_path / "base"), "tasks": ["sums_easy"], "budgets": [2, 8], "max_tokens": 128}
    settings |= {"strategies": ["self_consistency", {"best_of_n": {"verify": "likelihood"}}], "limit": 24}
    settings |= {"chat": False, "engine": {"dtype": "float32", "device": "cpu", "slots": 2}}
    return write_yaml(tmp_path / "recipe.yaml", **settings, output=tmp_path / "run")


def lines(folder):
    """The whole lines of each shard's stream."""
    kept = {}
    for file in sorted((folder / "streams").glob("*.jsonl")):
        kept[file.name] = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return kept


def pieces(kept):
    """How often each piece of a path was written: (path, first token)."""
    records = [json.loads(line.partition(" ")[2]) for found in kept.values() for line in found]
    return Counter((json.dumps(record["path"]), record["start"]) for record in records if "path" in record)


def test_shards_that_are_killed_lose_and_repeat_no_draw_and_the_report_follows(cluster, recipe, tmp_path):
    run = tmp_path / "run"
    job, report = cluster.submit(tmp_path, "--array=0-7%2", "evaluate", recipe)
    struck = {}
    deadline = time.monotonic() + 300
    while len(struck) < 2:
        assert time.monotonic() < deadline, cluster.logs()
        for i in range(8):
            stream = run / "streams" / f"{i}-of-8.jsonl"
            if i not in struck and len(struck) < 2 and stream.exists() and stream.stat().st_size > 20_000:
                # One by SIGKILL and then by hand, as a node that fails; one as SLURM takes a node away.
                cluster.run("scancel", "--signal=KILL", f"{job}_{i}") if not struck else None
                cluster.run("scontrol", "requeue", f"{job}_{i}")
                struck[i] = lines(run)[stream.name]
        time.sleep(0.05)
    for i in range(8):
        assert cluster.wait(f"{job}_{i}", 400)["JobState"] == "COMPLETED", cluster.logs()
    assert [cluster.show(f"{job}_{i}")["Restarts"] for i in struck] == ["1", "1"]
    kept = lines(run)
    for i, before in struck.items():
        assert kept[f"{i}-of-8.jsonl"][: len(before)] == before and len(kept[f"{i}-of-8.jsonl"]) > len(before) > 0
    assert set(pieces(kept).values()) == {1}
    ended = cluster.wait(report, 100)
    assert ended["JobState"] == "COMPLETED", (tmp_path / "logs" / f"extratime-report-{report}.0.log").read_text()
    assert_same_report(run, tmp_path / "alone", recipe)


def assert_same_report(run, alone, recipe):
    """The results and the report of the shards are those of one process on the same streams."""
    alone.mkdir()
    for name in ("streams", "tokenizer"):
        shutil.copytree(run / name, alone / name)
    for file in (run / "engine.json", *run.glob("run-*.json")):  # what replaying cannot tell: shapes and seconds
        shutil.copy(file, alone)
    words = [Path(sys.executable).parent / "extratime", "evaluate", recipe, "--replay", "--set", f"output={alone}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert results(run) == results(alone)
    merged, replayed = (json.loads((folder / "leaderboard.json").read_text()) for folder in (run, alone))
    assert merged["rows"] and merged["rows"] == replayed["rows"]


def results(folder):
    """Every record of a run folder, in any order."""
    return Counter(line for file in (folder / "results").iterdir() for line in file.read_text().splitlines())


def test_a_real_server_is_waited_for_asked_and_stopped(cluster, tmp_path):
    if not shutil.which("transformers", path=str(Path(sys.executable).parent)):
        pytest.skip("no transformers serve")
    base = tiny.save(tmp_path / "base")
    engine = {"kind": "openai", "server": "transformers", "tokenizer": str(base)}
    settings = {"model": base, "tasks": ["sums_easy"], "budgets": [2], "strategies": ["self_consistency"], "limit": 2}
    settings |= {"chat": False, "max_tokens": 8, "engine": engine, "output": tmp_path / "run"}
    recipe = write_yaml(tmp_path / "recipe.yaml", **settings)
    server = ("transformers", "serve", base, "--device", "cpu", "--dtype", "float32")
    (job,) = cluster.submit(tmp_path, "serve", recipe, "--", *server)
    ended = cluster.wait(job, 240)
    said = (tmp_path / "logs" / f"extratime-serve-{job}.0.log").read_text()
    assert ended["JobState"] == "COMPLETED", said
    assert "the server answers at http://127.0.0.1:" in said and (tmp_path / "run" / "leaderboard.md").exists()
    results = [json.loads(line) for line in (tmp_path / "run" / "results" / "0-of-1.jsonl").read_text().splitlines()]
    assert len(results) == 2 and not any(result["error"] for result in results)
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in running if str(base).encode() in line]
