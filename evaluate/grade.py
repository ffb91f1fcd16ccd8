r"""Checking of mathematical answers that can neither hang nor take the process down.

`math_verify` compares answers with sympy, which a response such as `9^{9^{9^{9}}}` keeps busy for ever, and its own
time-outs are signals, for the main thread only. Here checks run in child processes, under a wall-clock limit (the
parent kills and replaces the child) and a memory limit, for any thread or `asyncio.to_thread`. POSIX only. Outcomes:

    right, wrong: what `math_verify.verify` says.
    unparsed: the response holds no answer that sympy can read, and its text is not the gold's.
    timeout: the check ran out of time or memory, or two children in a row died of it (one death may be an accident).

An unreadable gold and a child that can't start are errors. A memory error that sympy itself swallows looks like a
failed comparison. The start of a child is not on the check's clock. One deliberate difference from math_verify: a
gold without mark-up (`$`, `\(`, `\[`, `\boxed`) is read as LaTeX as a whole, not searched for its last number.

When the parent is gone, an idle child leaves, and the kernel ends one at work (SIGIO; SIGALRM where that isn't sent).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import re
import resource
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from multiprocessing import Pipe, connection
from typing import Any, Literal, cast

Outcome = Literal["right", "wrong", "unparsed", "timeout"]

_MODULE = "extratime.evaluate.grade"
_TIMEOUT = ("timeout", None)


def strip_thinking(response: str) -> str:
    """Remove `<think>…</think>` blocks, an unclosed one to the end, and what leads up to a lone `</think>`."""
    head, *blocks = response.split("<think>")
    after = (block.partition("</think>")[2] for block in blocks)
    return "".join(part.rpartition("</think>")[2] for part in (head, *after))


class _Child:
    """The parent's end of one child process. `idle`: it is ready, and no check was left in the middle."""

    def __init__(self, seconds: float, memory: int) -> None:
        self.seconds, self.memory, self.ready, self.idle = seconds, memory, False, False
        self.pipe, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-m", _MODULE, str(seconds), str(memory)]
            self.process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)

    def ask(self, message: bytes) -> tuple[str, str | None]:
        with contextlib.suppress(EOFError, ConnectionError):
            self.ready = self.ready or (self.pipe.poll(120.0) and bool(self.pipe.recv_bytes()))
        if not self.ready:
            raise RuntimeError(f"`{sys.executable} -m {_MODULE}` did not start; standard error says why")
        self.idle = False
        self.pipe.send_bytes(message)
        kind, value = json.loads(self.pipe.recv_bytes()) if self.pipe.poll(self.seconds) else _TIMEOUT
        self.idle = kind != "timeout"  # out of memory, too: start afresh
        return kind, value

    def settled(self) -> _Child | None:
        """This child if it can go on, else (killed) its successor; none where even the start failed."""
        if self.idle:
            return self
        self.kill()
        return _Child(self.seconds, self.memory) if self.ready else None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


class Grader:
    """A pool of killable children that check answers; they start when first needed and end with this process.

    At most `size` checks run at once (`min(4, CPU count)`), each within `seconds` and `memory` bytes of address space.
    """

    def __init__(self, size: int | None = None, seconds: float = 5.0, memory: int = 1 << 30) -> None:
        self.size = min(4, os.cpu_count() or 1) if size is None else size
        if self.size < 1 or seconds <= 0:
            raise ValueError(f"a grader needs size >= 1 and seconds > 0, got size={size}, seconds={seconds}")
        self.seconds, self.memory = seconds, memory
        self._empty()
        _graders.add(self)

    def _empty(self) -> None:
        self._slots: queue.LifoQueue[_Child | None] = queue.LifoQueue()  # last in, first out: the warm ones
        for _ in range(self.size):
            self._slots.put(None)

    def grade(self, response: str, gold: str, *, no_thinking: bool = False) -> Outcome:
        r"""Compare the answer in a response with the gold answer; safe to call from any thread.

        Args:
            response: A whole response; its answer is the last `\boxed{}`, "answer is …", formula or number.
            gold: The right answer, bare (`\frac{1}{2}`) or marked up (`$…$`, a solution with `\boxed{…}`).
            no_thinking: Strip `<think>` blocks from the response first.

        Raises:
            ValueError: The gold can't be read as mathematics.
            RuntimeError: A child can't start, or failed in a way that is no property of the answer.
        """
        kind, _ = self._ask("grade", strip_thinking(response) if no_thinking else response, gold)
        if kind == "gold":
            raise ValueError(f"the gold answer {gold[:200]!r} can't be read as mathematics; correct or drop it")
        return cast(Outcome, kind)

    def grade_many(self, pairs: Iterable[tuple[str, str]], *, no_thinking: bool = False) -> list[Outcome]:
        """Grade (response, gold) pairs in parallel; outcomes come in the order of the pairs."""
        with ThreadPoolExecutor(self.size) as threads:
            return list(threads.map(lambda pair: self.grade(*pair, no_thinking=no_thinking), pairs))

    def answer_key(self, response: str, *, no_thinking: bool = False) -> str | None:
        r"""What a response votes for: the same for equal simple answers (`1/2`, `0.5`, `\frac{1}{2}`, `x = 0.5`).

        An answer that sympy can't read (`\boxed{50\%}`) votes by its text, since `grade` compares that too. None where
        there is no answer, or no key within the limits.
        """
        return self._ask("key", strip_thinking(response) if no_thinking else response)[1]

    def close(self) -> None:
        """End the children, each after its check; a later check starts new ones."""
        for child in [self._slots.get() for _ in range(self.size)]:
            if child:
                child.kill()
            self._slots.put(None)

    def _ask(self, *request: str) -> tuple[str, str | None]:
        if not all(isinstance(text, str) for text in request):
            raise TypeError(f"responses and golds are strings, got {[type(text).__name__ for text in request[1:]]}")
        message = json.dumps(request).encode()  # ASCII: lone surrogates and NULs travel as escapes
        for _ in range(2):
            child = self._slots.get()
            try:
                child = child or _Child(self.seconds, self.memory)
                kind, value = child.ask(message)
            except (EOFError, ConnectionError):
                continue
            finally:
                self._slots.put(child and child.settled())
            if kind == "error":
                raise RuntimeError(f"checking {request!r:.300} failed:\n{value}")
            return kind, value
        return _TIMEOUT


_graders: weakref.WeakSet[Grader] = weakref.WeakSet()  # a forked process must not use its parent's pipes
_shared = Grader()
grade, grade_many, answer_key = _shared.grade, _shared.grade_many, _shared.answer_key
os.register_at_fork(after_in_child=lambda: list(map(Grader._empty, _graders)))


def _serve(seconds: float, memory: int) -> None:
    """The life of a child; all that follows runs there."""
    pipe = connection.Connection(os.dup(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    logging.disable(logging.CRITICAL)
    _grade(r"The answer is $\frac{1}{2}$.", "0.5")  # loads sympy and compiles the patterns
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(0, fcntl.F_GETFL)
    pipe.send_bytes(b"ready")
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = json.loads(pipe.recv_bytes())
            fcntl.fcntl(0, fcntl.F_SETFL, flags | os.O_ASYNC)
            signal.alarm(int(seconds) + 2)
            reply = json.dumps(_answer(*request)).encode()
            signal.alarm(0)
            fcntl.fcntl(0, fcntl.F_SETFL, flags)
            pipe.send_bytes(reply)


def _answer(kind: str, *texts: str) -> tuple[str, str | None]:
    try:
        return _grade(*texts) if kind == "grade" else ("key", _key(*texts))
    except MemoryError:
        return _TIMEOUT
    except Exception:
        return "error", traceback.format_exc()


def _grade(response: str, gold: str) -> tuple[str, str | None]:
    from math_verify import verify

    golds, answers = _parse_gold(gold), _parse(response)
    if _unreadable(golds):
        return "gold", None
    options = {"timeout_seconds": None, "raise_on_error": True}
    if any(_attempt(False, verify, one, other, **options) for one in golds for other in answers):
        return "right", None
    return "unparsed" if _unreadable(answers) else "wrong", None


def _key(response: str) -> str | None:
    parsed = _parse(response)
    text = str(parsed[-1]).strip() if parsed else None
    return text if _unreadable(parsed) else _attempt(text, _canonical, parsed[0])


def _canonical(answer: Any) -> str:
    from sympy import Eq, Expr, Float, Rational, Symbol

    named = isinstance(answer, Eq) and isinstance(answer.lhs, Symbol)
    answer = (answer.rhs if named else answer).doit()
    exact = answer.xreplace({number: Rational(str(number)) for number in answer.atoms(Float)}).doit()
    return str(exact.expand() if isinstance(exact, Expr) else exact)


@lru_cache(maxsize=256)
def _parse_gold(gold: str) -> list[Any]:
    marked_up = re.search(r"\$|\\\(|\\\[|\\boxed", gold)
    return _parse(gold if marked_up else f"${' '.join(gold.split())}$")


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    return cast(list[Any], _attempt([], parse, text, parsing_timeout=None, raise_on_error=True))


def _unreadable(parsed: list[Any]) -> bool:
    return all(isinstance(one, str) for one in parsed)


def _attempt(otherwise: Any, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return call(*args, **options)
    except MemoryError:
        raise
    except Exception:  # math_verify's own rule: what can't be parsed or compared is no answer, or another one
        return otherwise


if __name__ == "__main__":
    _serve(float(sys.argv[1]), int(sys.argv[2]))
