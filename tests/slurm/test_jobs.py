"""How jobs end on a real SLURM: what is begun again and what is not, servers that come up and servers that don't."""

import contextlib
import os
import sys
import time
from pathlib import Path

import pytest

STANDS_IN = """#!/bin/bash
# Ends as told, where a real run would do so only by chance.
echo "attempt ${{SLURM_RESTART_COUNT:-0}}: $*"
((${{SLURM_RESTART_COUNT:-0}} > 0)) && exit 0
{does}
"""


def extratime_that(does, folder):
    """A PATH on which `extratime` does as told in its first attempt, and ends well in a later one."""
    program = folder / "bin" / "extratime"
    program.parent.mkdir()
    program.write_text(STANDS_IN.format(does=does))
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def place(folder, job, attempt=0, kind="evaluate"):
    return folder / "logs" / f"extratime-{kind}-{job}.{attempt}.log"


def log(*args, **more):
    return place(*args, **more).read_text()


@pytest.mark.parametrize(("code", "again"), [(143, True), (138, True), (1, False), (137, False), (0, False)])
def test_only_a_run_that_was_told_to_stop_begins_again(code, again, cluster, tmp_path):
    (job,) = cluster.submit(tmp_path, "evaluate", "r.yaml", path=extratime_that(f"exit {code}", tmp_path))
    ended = cluster.wait(job, 30)
    assert ended["JobState"] == ("COMPLETED" if again or not code else "FAILED")
    assert ended["Restarts"] == str(int(again))
    assert ended["ExitCode"] == ("0:0" if again else f"{code}:0")
    assert "attempt 0: evaluate r.yaml --shard 0/1" in log(tmp_path, job)
    assert not again or log(tmp_path, job, 1) == "attempt 1: evaluate r.yaml --shard 0/1\n"


WAITS = "trap 'exit 143' TERM; for i in {1..200}; do sleep 0.1; done; exit 1"


def running(cluster, folder, job, word="attempt"):
    cluster.wait(job, 30, {"RUNNING"})
    deadline = time.monotonic() + 20
    while not place(folder, job).exists() or word not in log(folder, job):
        assert time.monotonic() < deadline, cluster.logs()
        time.sleep(0.05)


def test_a_notice_to_the_steps_makes_the_job_begin_again(cluster, tmp_path):
    (job,) = cluster.submit(tmp_path, "evaluate", "r.yaml", path=extratime_that(WAITS, tmp_path))
    running(cluster, tmp_path, job)
    cluster.run("scancel", "--signal=TERM", job)  # what --signal and a preemption's grace time send
    assert cluster.wait(job, 30)["Restarts"] == "1"
    assert "told to stop: the job begins again" in log(tmp_path, job)


def test_a_job_whose_nodes_slurm_takes_begins_again_once(cluster, tmp_path):
    (job,) = cluster.submit(tmp_path, "evaluate", "r.yaml", path=extratime_that(WAITS, tmp_path))
    running(cluster, tmp_path, job)
    cluster.run("scontrol", "requeue", job)
    ended = cluster.wait(job, 30)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert "told to stop" not in log(tmp_path, job)


def test_a_cancelled_job_stays_cancelled(cluster, tmp_path):
    (job,) = cluster.submit(tmp_path, "evaluate", "r.yaml", path=extratime_that(WAITS, tmp_path))
    running(cluster, tmp_path, job)
    cluster.run("scancel", job)
    cluster.wait(job, 30, {"CANCELLED"})
    time.sleep(2)
    ended = cluster.show(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")


ASKED = ("--set", "engine.kind=openai")


def no_server(cluster, folder, *server, seconds=60, **more):
    """The log of a job whose server never answers; it must fail."""
    words = ("serve", "r.yaml", *ASKED, "--", *server)
    (job,) = cluster.submit(folder, *words, path=extratime_that("exit 0", folder), more=f"ready_within={seconds}")
    assert cluster.wait(job, 40)["ExitCode"] == "1:0"
    said = log(folder, job, kind="serve")
    assert "attempt" not in said  # no evaluation began
    return said


def test_a_server_that_ends_before_it_answers_is_an_error_with_its_last_words(cluster, tmp_path):
    said = no_server(cluster, tmp_path, "sh", "-c", "echo CUDA out of memory; exit 3")
    assert "serve.slurm: the server ended before it answered at http://127.0.0.1:" in said
    assert said.splitlines()[-1] == "CUDA out of memory"


def test_a_server_that_never_answers_is_stopped_with_all_it_started(cluster, tmp_path):
    mark = f"99.{os.getpid()}"
    said = no_server(cluster, tmp_path, "sh", "-c", f"echo loading; sleep {mark} & sleep {mark}", seconds=2)
    assert "did not answer at http://127.0.0.1:" in said and "within 2 seconds (ready_within)" in said
    assert said.splitlines()[-1] == "loading"
    assert not commands(f"sleep {mark}")


def commands(word):
    """The command lines on this machine that hold `word`."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode())
    return [line for line in lines if word in line]


PAGES = """
import http.server, os, pathlib, sys
pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.end_headers()
http.server.HTTPServer((sys.argv[2], int(sys.argv[4])), Page).serve_forever()
"""


def test_a_server_that_ends_during_the_evaluation_ends_the_job(cluster, tmp_path):
    server = tmp_path / "server.py"
    server.write_text(PAGES)
    evaluation = extratime_that(f"kill $(cat {tmp_path}/pid); sleep 60", tmp_path)
    words = ("serve", "r.yaml", *ASKED, "--", sys.executable, "-I", server)
    (job,) = cluster.submit(tmp_path, *words, path=evaluation)
    assert cluster.wait(job, 40)["ExitCode"] == "1:0"
    said = log(tmp_path, job, kind="serve")
    assert (
        "serve.slurm: the server ended before the evaluation did" in said and '"GET /v1/models HTTP/1.1" 200' in said
    )
