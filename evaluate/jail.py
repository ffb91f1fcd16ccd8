"""Running a model's Python where it can do little harm: each test of a program in a process of its own.

    main process  →  keeper, a bare interpreter  →  one child a test: the program, then the test

The keeper never runs the model's code; it counts a test as passed only if its child leaves with a number that was
drawn for it, so that neither `exit(0)` nor printed words nor a crash pass. It kills a child that takes too long. POSIX
only.

Guarded: processor time and the clock, address space, file size (0), open files, core dumps, and where the user is not
root new processes, by limits of the kernel. An audit hook refuses files opened for writing, all other changes to the
file system, sockets, subprocesses, signals to others and ctypes. The environment is empty, and only the standard
library can be imported.

Not guarded: reading files, which nothing can be done with; a very busy machine, whose clock may fail a slow program;
and malice. An audit hook is no sandbox (PEP 578): code that sets out to break it from inside the interpreter can, and
with it do what the user can, or pass its tests by equality of its own making. Where responses come from someone who
may wish harm, run the evaluation in a container without network.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from typing import Any

READY, PASSED, FAILED = "r", "1", "0"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATIENCE = 5
_REFUSED = ("os.", "shutil.", "socket.", "subprocess.", "ctypes.", "signal.", "fcntl.", "resource.", "pty.", "gc.")
_READING = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")


@functools.lru_cache(maxsize=4096)
def passes(program: str, tests: tuple[str, ...], seconds: float = 2.0, memory: int = 1 << 28) -> tuple[bool, ...]:
    """Whether each test, run after the program in the same names, ends without an exception.

    Args:
        program: Python source; may be broken, and then nothing passes.
        tests: Python source, such as `assert f(2) == 4`; each starts from a fresh run of the program.
        seconds: of processor time for the program and one test, rounded up; five times as long by the clock.
        memory: bytes of address space.

    Raises:
        RuntimeError: no keeper could be started; standard error says why.
    """
    if seconds <= 0 or memory <= 0:
        raise ValueError(f"a program needs seconds > 0 and memory > 0, not {seconds} and {memory}")
    command = [sys.executable, "-I", "-S", "-B", __file__]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env={}, cwd="/", start_new_session=True, **pipes) as keeper:
        try:
            order = json.dumps([program, tests, seconds, memory]).encode()
            said = keeper.communicate(order, timeout=60 + 2 * _PATIENCE * seconds * len(tests))[0].decode()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(keeper.pid, signal.SIGKILL)
    if not said.startswith(READY):
        raise RuntimeError(f"`{' '.join(command)}` did not start; standard error says why")
    return tuple(said[i : i + 1] == PASSED for i in range(1, len(tests) + 1))


def _keep(program: str, tests: list[str], seconds: float, memory: int) -> None:
    """The life of the keeper; all that follows runs there or below it."""
    _say(READY)
    for test in tests:
        mark = 2 + os.urandom(1)[0] % 254
        child = os.fork()
        if not child:
            _run(program, test, mark, seconds, memory)
        _say(PASSED if _status(child, seconds) == mark else FAILED)


def _say(word: str) -> None:
    sys.stdout.write(word)
    sys.stdout.flush()


def _status(child: int, seconds: float) -> int | None:
    """The number a child left with; None if a signal ended it, or the clock did."""
    deadline = time.monotonic() + _PATIENCE * seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _run(program: str, test: str, mark: int, seconds: float, memory: int) -> None:
    leave, run, status = os._exit, exec, 0
    try:
        _confine(seconds, memory)
        names: dict[str, Any] = {"__name__": "program"}
        compiled = [compile(text, name, "exec") for text, name in ((program, "<program>"), (test, "<test>"))]
        for code in compiled:
            run(code, names)
        status = mark
    finally:
        leave(status)


def _confine(seconds: float, memory: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in (0, 1, 2):
        os.dup2(nothing, file)
    os.closerange(3, 1 << 16)
    bounds = {"AS": memory, "CPU": math.ceil(seconds), "FSIZE": 0, "NOFILE": 64, "CORE": 0, "NPROC": 0}
    for name, bound in bounds.items():
        if kind := getattr(resource, f"RLIMIT_{name}", None):
            hard = resource.getrlimit(kind)[1]
            least = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
            resource.setrlimit(kind, (least, least))

    def refuse(event: str, args: tuple[Any, ...], reading: Any = _READING, refused: Any = _REFUSED) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & _WRITING
        if writes or (event.startswith(refused) and event not in reading):
            raise PermissionError(f"{event} is refused in here")

    sys.addaudithook(refuse)


if __name__ == "__main__":
    _keep(*json.load(sys.stdin))
