"""Programs of a model in their jail, and the verifier that runs tests on them."""

import functools
import math
import os
import time

import pytest
from scipy.stats import binom
from toy import ToyEngine, problem, run

from extratime.evaluate.jail import passes
from extratime.evaluate.program import Answer, EngineError
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.verifiers.unit_tests import asserts, code, unit_tests
from extratime.models.request import Completion, Sample, fail

SQUARE = "def f(x):\n    return x * x"


def test_each_test_is_judged_alone():
    tests = (
        "assert f(2) == 4",
        "assert f(2) == 5",
        "f(",
        "x = f(3)",
        "f = None",
        "assert f(3) == x",
        "assert f(1) == 1",
    )
    assert passes(SQUARE, tests) == (True, False, False, True, True, False, True)


def test_a_broken_program_passes_nothing_and_no_tests_are_no_outcomes():
    for program in ("def f(", "1 / 0", "\0", "import nowhere"):
        assert passes(program, ("pass", "assert True")) == (False, False)
    assert passes(SQUARE, ()) == ()


LEAVING = ["exit(0)", "import os\nos._exit(0)", "import os\nos._exit(1)", "raise SystemExit", "import sys\nsys.exit()"]


@pytest.mark.parametrize("program", LEAVING)
def test_leaving_early_is_not_passing(program):
    assert passes(program, ("assert False", "pass")) == (False, False)


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time\ntime.sleep(999)", "x = 10 ** 10 ** 10", "def f():\n    f()\nf()"]
)
def test_what_takes_too_long_is_ended(program):
    start = time.monotonic()
    assert passes(program, ("pass",), seconds=0.2) == (False,)
    assert time.monotonic() - start < 60


def test_one_test_that_hangs_does_not_touch_the_others():
    tests = ("assert f(1) == 1", "while True: pass", "assert f(2) == 4")
    assert passes(SQUARE, tests, seconds=0.3) == (True, False, True)


def test_memory_is_bounded():
    assert passes("x = bytearray(1 << 27)", ("pass",), memory=1 << 30) == (True,)
    assert passes("x = bytearray(1 << 27)", ("pass",), memory=1 << 27) == (False,)


def test_files_are_read_but_never_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    touch = [
        f"open({str(file)!r}, 'w')",
        f"open({str(file)!r}, 'a')",
        f"import os\nos.open({str(file)!r}, os.O_WRONLY)",
        f"import os\nos.remove({str(file)!r})",
        f"import os\nos.rename({str(file)!r}, {str(tmp_path / 'other')!r})",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
        f"import os\nos.mkdir({str(tmp_path / 'new')!r})",
        f"import pathlib\npathlib.Path({str(tmp_path / 'new')!r}).touch()",
    ]
    for program in touch:
        assert passes(program, ("pass",)) == (False,), program
    assert file.read_text() == "kept" and os.listdir(tmp_path) == ["file"]
    assert passes(f"text = open({str(file)!r}).read()", ("assert text == 'kept'",)) == (True,)


@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.socket()",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import os\nos.fork()",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.kill(os.getppid(), 9)",
        "import ctypes",
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))",
    ],
)
def test_nothing_reaches_out(program):
    """What is refused raises, and what raises passes nothing; caught, the test goes on where it was."""
    assert passes(program, ("pass",)) == (False,)
    body = program.replace("\n", "\n    ")
    assert passes(f"try:\n    {body}\nexcept OSError as error:\n    said = str(error)", ("assert 'refused' in said",))[
        0
    ]


def test_the_environment_is_empty_and_only_the_standard_library_is_there(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    tests = (
        "import os\nassert 'SECRET' not in os.environ",
        "import numpy",
        "import extratime",
        "import json, heapq, re",
    )
    assert passes("", tests) == (True, False, False, True)


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="seconds > 0"):
        passes("", (), seconds=0)


# --- reading


def test_tests_are_lines_of_one_assert_each():
    text = "Here are tests.\n```python\nassert f(1) == 1  # one\n- assert f(2) == 4\n2. `assert f(3) == 9`\n"
    text += (
        "assert f(1) == 1  # one\n  assert f(4) ==\nassertion\nassert f(5) == 25; import os\nprint('assert x')\n```"
    )
    assert asserts(text) == [
        "assert f(1) == 1  # one",
        "assert f(2) == 4",
        "assert f(3) == 9",
    ]


def test_a_program_is_the_last_block_or_the_whole_text():
    assert code("a\n```python\nx = 1\n```\nb\n```py\nx = 2\n```") == "x = 2"
    assert code("a\n```\nx = 1") == "x = 1" and code(SQUARE) == SQUARE
    assert code("The answer is 4.") is None and code("  ") is None


# --- the verifier


def asked(texts, said, **options):
    """The request that the verifier makes, and its scores of `texts`."""
    p = problem(max_tokens=64)
    given = [t if isinstance(t, Completion) else Completion(p.prompt, t, 1) for t in texts]
    program = unit_tests(p, given, **options)
    request = next(program)
    try:
        program.send([Completion(request.prompt, said, 1) if isinstance(said, str) else said])
    except StopIteration as stop:
        return request, stop.value
    raise AssertionError("it asks once")


def test_scores_are_the_share_of_tests_passed():
    tests = "assert f(0) == 0\nassert f(2) == 4\nassert f(3) == 9\nassert f(-1) == 1"
    double = "def f(x):\n    return 2 * x"
    cut = fail(Completion(problem().prompt, SQUARE, 1), "gone")
    request, scores = asked([SQUARE, double, "I do not know.", cut, "```python\ndef f(\n```"], tests)
    assert scores == [1.0, 0.5, -math.inf, -math.inf, 0.0]
    assert isinstance(request, Sample) and (request.role, request.temperature, request.n) == ("judge", 0, 1)
    assert "p?" in request.prompt.text and " 8 " in request.prompt.text
    assert asked([SQUARE, double], tests, tests=1)[1] == [1.0, 1.0]
    assert asked([SQUARE], tests, role="policy")[0].role == "policy"


def test_without_tests_nothing_is_known():
    assert asked([SQUARE], "I cannot test this.")[1] == [-math.inf]
    with pytest.raises(EngineError, match="gone"):
        asked([SQUARE], fail(Completion(problem().prompt, "", 0), "gone"))


def test_answers_are_checked_as_text():
    scores = asked(
        ["=12", "=13", "nothing"], "assert int(answer) % 4 == 0\nassert len(answer) == 2", subject="answer"
    )[1]
    assert scores == [1.0, 0.5, -math.inf]


PROGRAMS = {"def f(x): return x * x  # =1": 0.3, "def f(x): return x + x  # =2": 0.4, "def f(x): return  # =3": 0.3}


def author(prompt, text):
    if text:
        return {"": 1.0}
    if "tests" in prompt:
        return {"assert f(2) == 4\nassert f(3) == 9\nassert f(4) == 16": 1.0}
    return PROGRAMS


def test_with_tests_that_tell_right_from_wrong_accuracy_is_pass_at_n():
    n, runs = 3, 250
    strategy = functools.partial(best_of_n, verify=unit_tests)
    cells = [Cell(f"{i}", problem(max_tokens=4), strategy, n, replicate=i) for i in range(runs)]
    results = run(ToyEngine(author, slots=64), cells)
    right = sum(result.answer.response.text.endswith("=1") for result in results)
    assert binom.ppf(0.0005, runs, 1 - 0.7**n) <= right <= binom.ppf(0.9995, runs, 1 - 0.7**n)
    assert all(result.cost.judged == 2 and result.cost.generated == 2 * n for result in results)
    assert {w for result in results for w in result.answer.weights} == {1.0, 1 / 3, 0.0}


def test_the_same_tests_serve_a_cell_and_are_paid_for_once():
    def twice(problem, budget, rng):
        given = [Completion(problem.prompt, SQUARE, 1)]
        first = yield from unit_tests(problem, given)
        again = yield from unit_tests(problem, given)
        return Answer(given[0], tuple(given * 2), (*first, *again), "")

    [result] = run(ToyEngine(author), [Cell("c", problem(max_tokens=4), twice, 1)])
    assert result.answer.weights == (1.0, 1.0) and result.cost.judged == 2
