"""`accelerate launch` on every node of a SLURM job, as a scheduler wants it: told to stop, it says how the run ended.

    srun python scripts/slurm/launch.py PROCESSES CONFIG RECIPE WORD…

    srun python scripts/slurm/launch.py 8 zero3 self_eval --config recipes/self_eval/llama-3.1-8b.yaml

accelerate's own launcher kills the run half a minute after it was told to stop, saved or not, and exits with 1
whatever the run said. This one passes the signal on, waits, and exits with the run's own status: 128 + signal where
the run was told to stop and saved. SLURM signals all processes of a step or the launcher alone, depending on the
cluster, so that the run may be told twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

import psutil
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

TOLD = (signal.SIGTERM, signal.SIGUSR1)


def options(slurm: Mapping[str, str], processes: int, config: str, recipe: str) -> list[str]:
    """What `accelerate launch` is told: this node's place among those of the job, which meet on its first one.

    Args:
        slurm: the environment of a step.
        processes: on each node.
        config: name of a file in recipes/accelerate.
        recipe: name of a file in train.
    """
    nodes = int(slurm["SLURM_NNODES"])
    said = {
        "config_file": f"recipes/accelerate/{config}.yaml",
        "num_machines": nodes,
        "num_processes": nodes * processes,
        "machine_rank": slurm["SLURM_NODEID"],
        "main_process_ip": slurm["SLURM_LAUNCH_NODE_IPADDR"],
        "main_process_port": 20000 + int(slurm["SLURM_JOB_ID"]) % 20000,
        "deepspeed_multinode_launcher": "standard",
    }
    return [word for key, value in said.items() for word in (f"--{key}", str(value))] + [
        "-m",
        f"extratime.train.{recipe}",
    ]


def pass_on(number: int, frame: FrameType | None) -> None:
    """Tell the run's processes on this node."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def status(code: int) -> int:
    """The exit status of a process as a shell has it."""
    return 128 - code if code < 0 else code


def main(argv: Sequence[str]) -> int:
    """Run one node's processes; returns their exit status."""
    processes, config, recipe, *words = argv
    for number in TOLD:
        signal.signal(number, pass_on)
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP"  # the rest is passed on
    parsed = launch_command_parser().parse_args([*options(os.environ, int(processes), config, recipe), *words])
    try:
        launch_command(parsed)
    except ChildFailedError as error:
        return status(error.get_first_failure()[1].exitcode)
    except subprocess.CalledProcessError as error:
        return status(error.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
