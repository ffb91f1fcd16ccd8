r"""The grader: agreement with math_verify, the four outcomes, limits, threads, deaths, and what votes agree on."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from extratime.evaluate.grade import Grader, answer_key, grade, grade_many, strip_thinking

HOSTILE = [
    r"$9^{9^{9^{9}}}$",
    r"$(2^{100000})!$",
    "$" + r"\frac{1}{" * 3000 + "2" + "}" * 3001 + "$",
    "$" + "(" * 20_000 + "1" + ")" * 20_000 + "$",
    "(" * 100_000 + "1" + ")" * 100_000,
    r"\boxed{" * 100_000,
    "é𝟙٣−∞" * 10_000,
    "\0" * 1000 + r"\boxed{\0}",
    "\ud800\udfff" * 1000,
    "a" * 1_000_000,
    "$" * 1_000_000,
    r"\boxed{" + "9" * 1_000_000 + "}",
]


@pytest.fixture(scope="module")
def hasty() -> Iterator[Grader]:
    grader = Grader(size=2, seconds=0.5)
    yield grader
    grader.close()


def children() -> set[int]:
    listing = subprocess.run(["ps", "-eo", "pid,ppid,stat,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in listing.splitlines()[1:]]
    return {int(pid) for pid, parent, _, args in rows if int(parent) == os.getpid() and "evaluate.grade" in args}


def wait_until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("response", "gold", "outcome"),
    [
        ("So the answer is 5.", "5", "right"),
        (r"Thus \boxed{\frac{2}{4}}.", "0.5", "right"),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", "right"),
        (r"\boxed{x = 3}", "3", "right"),
        (r"\boxed{2, 1}", r"\{1, 2\}", "right"),
        (r"\boxed{50\%}", r"50\%", "right"),
        ("The answer is 1,234", "1234", "right"),
        (r"\boxed{\sqrt{2}+1}", r"1+\sqrt 2", "right"),
        ("The answer is 6.", "5", "wrong"),
        (r"\boxed{1}", r"\sqrt{2} + 1", "wrong"),
        ("I do not know.", "5", "unparsed"),
        (r"\boxed{}", "5", "unparsed"),
        (r"\boxed{1{}", "5", "unparsed"),
        ("", "5", "unparsed"),
        ("a\0b \ud800 answer is 5", "5", "right"),
        ("5", r"We add $2+3$ and find $\boxed{5}$.", "right"),
    ],
)
def test_outcomes(response: str, gold: str, outcome: str) -> None:
    assert grade(response, gold) == outcome


@settings(max_examples=40, deadline=None)
@given(
    st.integers(-99, 99), st.integers(-99, 99), st.integers(1, 12), st.sampled_from([r"\boxed{{{}}}", "is {}.", "{}"])
)
def test_agrees_with_math_verify_in_this_process(answer: int, gold: int, denominator: int, form: str) -> None:
    response, marked = form.format(f"{answer}/{denominator}"), f"${gold}$"
    theirs = verify(parse(marked, parsing_timeout=None), parse(response, parsing_timeout=None), timeout_seconds=None)
    assert grade(response, marked) == ("right" if theirs else "wrong")


@pytest.mark.parametrize("gold", ["", "no number here{", r"\boxed{1{}"])
def test_an_unreadable_gold_is_an_error_that_names_it(gold: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(gold))):
        grade("5", gold)


def test_a_missing_response_is_an_error() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        grade(None, "5")  # type: ignore[arg-type]


def test_grade_many_keeps_the_order_and_raises_for_a_bad_gold() -> None:
    pairs = [(str(i), str(i - i % 3)) for i in range(60)]
    assert grade_many(pairs) == ["wrong" if i % 3 else "right" for i in range(60)]
    with pytest.raises(ValueError, match="bad gold"):
        grade_many([("1", "1"), ("1", "bad gold{"), ("1", "1")])


def test_hostile_answers_from_eight_threads_leave_the_grader_sound(hasty: Grader) -> None:
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda response: hasty.grade(response, "5"), HOSTILE))
    assert outcomes[0] == "timeout"
    assert set(outcomes) <= {"timeout", "unparsed", "wrong"}
    assert [grade(str(i), "3") for i in (3, 4)] == ["right", "wrong"]


def test_a_timed_out_check_leaves_no_process_behind() -> None:
    before = children()
    grader = Grader(size=1, seconds=0.5)
    for _ in range(3):
        assert grader.grade(r"$9^{9^{9^{9}}}$", "5") == "timeout"
    assert len(children() - before) == 1  # the successor; no zombie
    grader.close()
    assert children() == before


def test_running_out_of_memory_is_a_time_out_long_before_the_clock() -> None:
    grader = Grader(size=1, seconds=300.0, memory=200 << 20)
    assert grader.answer_key(r"\boxed{2^{2^{36}}}") is None
    assert grader.grade("5", "5") == "right"
    grader.close()


def test_a_child_killed_from_outside_is_replaced_and_the_answer_stands() -> None:
    before = children()
    grader = Grader(size=1)
    assert grader.grade("5", "5") == "right"
    for _ in range(2):
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)
        assert grader.grade("5", "5") == "right"
    grader.close()


@pytest.mark.slow
def test_a_child_killed_during_its_check_gets_one_more_chance_only() -> None:
    before = children()
    grader = Grader(size=1, seconds=60.0)
    assert grader.grade("5", "5") == "right"
    with ThreadPoolExecutor(1) as threads:
        outcome = threads.submit(grader.grade, r"$9^{9^{9^{9}}}$", "5")
        killed: set[int] = set()
        while not outcome.done():
            busy = {pid for pid in children() - before - killed if "R" in state(pid) and cpu_seconds(pid) > 1.5}
            for pid in busy:
                os.kill(pid, signal.SIGKILL)
            killed |= busy
            time.sleep(0.05)
    assert outcome.result() == "timeout" and len(killed) == 2
    grader.close()


def state(pid: int) -> str:
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout


def cpu_seconds(pid: int) -> float:
    shown = subprocess.run(["ps", "-o", "cputimes=", "-p", str(pid)], capture_output=True, text=True).stdout
    return float(shown.strip() or 0)


@pytest.mark.parametrize("response", ["5", r"$9^{9^{9^{9}}}$"], ids=["idle", "busy"])
def test_children_end_when_their_parent_is_killed(response: str) -> None:
    code = f"""
import threading, time
from extratime.evaluate.grade import Grader
grader = Grader(size=1, seconds=1000)
grader.grade("5", "5")
threading.Thread(target=grader.grade, args=({response!r}, "5"), daemon=True).start()
time.sleep(1)
print("up", flush=True)
time.sleep(1000)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "up\n"
    found = subprocess.run(["ps", "--ppid", str(parent.pid), "-o", "pid="], capture_output=True, text=True).stdout
    orphans = [int(pid) for pid in found.split()]
    assert orphans
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(alive(pid) for pid in orphans))


def alive(pid: int) -> bool:
    return state(pid)[:1] not in ("", "Z")


def test_a_child_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    grader = Grader(size=1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="did not start"):
            grader.grade("5", "5")
    monkeypatch.undo()
    assert grader.grade("5", "5") == "right"
    grader.close()


def test_a_forked_process_gets_children_of_its_own() -> None:
    assert grade("5", "5") == "right"
    pid = os.fork()
    if pid == 0:
        os._exit(0 if [grade(str(i), "3") for i in range(5)].count("right") == 1 else 1)
    assert [grade(str(i), "3") for i in range(5)].count("right") == 1
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_asyncio_stays_responsive_during_a_check(hasty: Grader) -> None:
    async def main() -> tuple[str, int]:
        check = asyncio.create_task(asyncio.to_thread(hasty.grade, r"$9^{9^{9^{9}}}$", "5"))
        ticks = 0
        while not check.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return check.result(), ticks

    outcome, ticks = asyncio.run(main())
    assert outcome == "timeout" and ticks > 5


@pytest.mark.parametrize(
    ("responses", "key"),
    [
        (["1/2", "0.5", r"$\frac{1}{2}$", r"\boxed{\frac{2}{4}}", "The answer is 0.50.", r"\boxed{x = 1/2}"], "1/2"),
        (["0.1", r"\boxed{\frac{1}{10}}"], "1/10"),
        (["1,234", "1234", r"first 7, then \boxed{1234.0}"], "1234"),
        ([r"\boxed{(x+1)^2}", r"\boxed{x^2+2x+1}"], "x**2 + 2*x + 1"),
        ([r"\boxed{\frac{\sqrt{8}}{2}}", r"\boxed{\sqrt 2}"], "sqrt(2)"),
        ([r"\boxed{1,2}", r"\boxed{\{2, 1\}}"], "{1, 2}"),
        ([r"\boxed{5\&6}", r"so \boxed{5\&6}"], r"5\&6"),
        (["I do not know.", "", r"\boxed{}"], None),
    ],
)
def test_equal_answers_share_a_key(responses: list[str], key: str | None) -> None:
    assert {answer_key(response) for response in responses} == {key}


def test_different_answers_have_different_keys() -> None:
    responses = ["1", "-1", "0.3", "0.33", r"\boxed{x}", r"\boxed{(1,2)}", r"\boxed{[1,2]}", r"\boxed{\{1,2\}}"]
    assert len({answer_key(response) for response in responses}) == len(responses)


@pytest.mark.parametrize("response", [r"\boxed{\frac{7}{3}}", "is 12.", r"\boxed{50\%}", r"\boxed{2k+2}", r"$\pi/2$"])
def test_a_response_that_can_be_right_has_a_key(response: str) -> None:
    gold = re.sub(r"is |\.$|\\boxed\{(.*)\}$|\$", r"\1", response)
    assert grade(response, gold) == "right" and answer_key(response) is not None


def test_a_key_that_takes_too_long_is_none(hasty: Grader) -> None:
    assert hasty.answer_key(r"$9^{9^{9^{9}}}$") is None


@pytest.mark.parametrize(
    ("response", "left"),
    [
        ("no tags", "no tags"),
        ("<think>a</think>b", "b"),
        ("a<think>b</think>c<think>d</think>e", "ace"),
        ("a<think>b", "a"),
        ("a</think>b", "b"),
        ("a</think>b<think>c</think>d<think>e", "bd"),
        ("<think>one <think> quoted</think>b", "b"),
        ("<think>a</think>b</think>c", "c"),
        ("<think></think>", ""),
        ("<think>\na\n</think>\n\nb\n", "\n\nb\n"),
        ("", ""),
    ],
)
def test_strip_thinking(response: str, left: str) -> None:
    assert strip_thinking(response) == left


def test_thinking_is_stripped_before_extraction_when_asked() -> None:
    response = r"<think>Perhaps \boxed{4}?</think>The answer is 5.<think>or \boxed{6}"
    assert grade(response, "5") == "wrong"
    assert grade(response, "5", no_thinking=True) == "right"
    assert grade_many([(response, "5")], no_thinking=True) == ["right"]
    assert answer_key(response, no_thinking=True) == "5"
    assert grade("<think>5", "5", no_thinking=True) == "unparsed"


@pytest.mark.parametrize("arguments", [{"size": 0}, {"seconds": 0.0}])
def test_impossible_limits_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="size >= 1 and seconds > 0"):
        Grader(**arguments)  # type: ignore[arg-type]


def test_importing_starts_nothing_and_needs_no_torch() -> None:
    code = "import sys, extratime.evaluate.grade as g; print([m in sys.modules for m in ('torch', 'sympy')])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path("/"))
    assert shown.stdout == "[False, False]\n"
