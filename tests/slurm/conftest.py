"""A real SLURM that the tests start as root: two nodes on this machine, configuration, key and ports of their own."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from launch import QUIET, ROOT, free_port

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
NODES = ("n0", "n1")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
CONFIGURATION = """
ClusterName=extratime
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthInfo=socket={place}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool.%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait={kill_wait}
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={n0} CPUs=8 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
SITE = """
every=(--mem=0)
train=() evaluate=() serve=() report=()
processes=1
ready_within=60
logs={logs}
prefix=()
activate() {{ PATH={path}; }}
{more}
"""
KILL_WAIT = 20
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"}


@dataclass
class Cluster:
    """The running SLURM: its folder, and the environment that its commands need."""

    place: Path
    env: dict

    def run(self, *words, **more):
        """A command of SLURM or of ours; what it printed."""
        command = [str(word) for word in words]
        env = self.env | {key: str(value) for key, value in more.items()}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, folder, *words, path=PATH, more="", **env):
        """Submit through `scripts/slurm/submit` with a site profile in `folder`; the numbers of the jobs."""
        site = folder / "site.sh"
        site.write_text(SITE.format(logs=folder / "logs", path=path, more=more))
        return self.run("scripts/slurm/submit", *words, EXTRATIME_SITE=site, **env).split()

    def show(self, job):
        """What the controller says of a job, or of one task of an array."""
        text = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in text.splitlines()[0].split() if "=" in word)

    def wait(self, job, seconds=120, states=frozenset(ENDED)):
        """The job, once it is in one of `states`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if (found := self.show(job))["JobState"] in states:
                return found
            # SLURM lets a job that begins again wait for two minutes; its node refuses it within the second only.
            if found["Reason"] == "BeginTime" and ahead(found["StartTime"]) > 10:
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")
            time.sleep(0.1)
        raise TimeoutError(f"job {job}: {found}\n{self.logs()}")

    def logs(self):
        """The ends of the daemons' logs."""
        return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in self.place.glob("*.log"))


def ahead(moment):
    """Seconds until a moment that SLURM told, 0 where it does not know."""
    return 0.0 if moment == "Unknown" else (datetime.fromisoformat(moment) - datetime.now()).total_seconds()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The cluster; a test that asks for it is skipped where it cannot be had."""
    missing = [name for name in NEEDED if not shutil.which(name, path=PATH)]
    if missing:
        pytest.skip(f"no SLURM here: {', '.join(missing)} not found (apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons start jobs as root only, and this is another user")
    place = tmp_path_factory.mktemp("cluster")
    made = Cluster(place, {**os.environ, **QUIET, "PATH": PATH, "SLURM_CONF": str(place / "slurm.conf")})
    daemons = []
    try:
        start(made, daemons)
        yield made
    finally:
        stop(made, daemons)


def start(cluster, daemons):
    place, host = cluster.place, socket.gethostname().partition(".")[0]
    for name in ("state", "munge"):
        (place / name).mkdir(mode=0o755)
    key = place / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    ports = {name: free_port() for name in ("controller", *NODES)}
    said = CONFIGURATION.format(host=host, place=place, kill_wait=KILL_WAIT, **ports)
    (place / "slurm.conf").write_text(said)
    munge = [f"--{name}={place}/munge/{name.removesuffix('-file')}" for name in ("key-file", "pid-file", "seed-file")]
    words = [*munge, f"--log-file={place}/munge.log", f"--socket={place}/munge/socket", "--force", "--foreground"]
    nodes = [["slurmd", "-D", "-N", name] for name in NODES]
    for command in (["munged", *words], ["slurmctld", "-D"], *nodes):
        log = open(place / f"{command[0]}.log", "a")  # noqa: SIM115  (the daemon's, as long as it runs)
        daemons.append(subprocess.Popen(command, env=cluster.env, stdout=log, stderr=log, start_new_session=True))
        time.sleep(0.3)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and all(daemon.poll() is None for daemon in daemons):
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=cluster.env, capture_output=True, text=True)
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    pytest.skip(f"SLURM does not start here: {cluster.logs()}")


def stop(cluster, daemons):
    """Cancel what still runs, then the daemons, last started first."""
    if all(daemon.poll() is None for daemon in daemons) and len(daemons) == 2 + len(NODES):
        subprocess.run(["scancel", "--me", "--signal=KILL", "--full"], env=cluster.env, timeout=30)
        subprocess.run(["scancel", "--me"], env=cluster.env, timeout=30)
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
