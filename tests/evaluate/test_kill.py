"""Crash safety: whatever is killed, split, merged or replayed, the report is the same, byte for byte."""

import functools
import os
import random
import shutil
import signal

import pytest
from toy import Silent, ToyEngine, lines, plain, problem, run, told

from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.adaptive_best_of_n import adaptive_best_of_n
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.dvts import dvts
from extratime.evaluate.strategies.particle_filter import particle_filter
from extratime.evaluate.streams import Streams
from extratime.evaluate.verifiers.reward_model import reward_model
from extratime.evaluate.verifiers.self_eval import self_eval

STRATEGIES = {
    "best_of_n": functools.partial(best_of_n, verify=self_eval),
    "adaptive": functools.partial(adaptive_best_of_n, threshold=0.6),
    "dvts": functools.partial(dvts, width=2),
    "filter": functools.partial(particle_filter, verify=reward_model),
}
PROBLEMS = [f"p{i}" for i in range(8)]


class Counting(ToyEngine):
    """Tells the file descriptor `fd`, if there is one, of each poll."""

    fd = None

    def poll(self):
        if self.fd is not None:
            os.write(self.fd, b".")
        return super().poll()


def engine(kind=Counting, slots=8, seed=0):
    value = lambda text: [len(text) % 7 / 7 + 0.1]  # noqa: E731
    return kind(told(lines), slots=slots, seed=seed, value=value, yes=lambda said, adapter: len(said.text) % 5 / 5)


def cells(problems=PROBLEMS):
    return [
        Cell(f"{id}/{name}@{budget}", problem(id, max_tokens=10), strategy, budget)
        for id in problems
        for name, strategy in STRATEGIES.items()
        for budget in (2, 4)
    ]


def report(results):
    return "\n".join(sorted(map(plain, results))).encode()


@pytest.fixture(scope="module")
def whole():
    return report(run(engine(), cells()))


def finish(folder, writer="0-of-1"):
    streams = Streams(folder, writer)
    results = run(engine(), cells(), streams)
    streams.close()
    return report(results)


def run_and_be_killed(folder, polls):
    """A run in a process of its own, killed with SIGKILL after so many polls; whether it was still at work."""
    heard, told_by_child = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            Counting.fd = told_by_child
            finish(folder)
        finally:
            os._exit(0)
    os.close(told_by_child)
    for _ in range(polls):
        os.read(heard, 1)
    os.kill(pid, signal.SIGKILL)
    os.close(heard)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def polls_of_a_run():
    seen = []

    class Seen(ToyEngine):
        def poll(self):
            seen.append(None)
            return super().poll()

    run(engine(Seen), cells())
    return len(seen)


def test_killed_at_twenty_random_points_the_report_is_the_same(tmp_path, whole):
    rng, total, killed, kept = random.Random(0), polls_of_a_run(), 0, set()
    for i in range(20):
        folder = tmp_path / str(i)
        killed += run_and_be_killed(folder, rng.randrange(total))
        kept.add(sum(file.stat().st_size for file in folder.glob("*")))
        assert finish(folder) == whole
        assert report(run(engine(Silent), cells(), Streams(folder))) == whole
        shutil.rmtree(folder)
    assert killed >= 18 and len(kept) > 10  # most died at work, at different places


def test_killed_again_and_again_in_one_folder_the_report_is_the_same(tmp_path, whole):
    rng = random.Random(1)
    for _ in range(8):
        run_and_be_killed(tmp_path, rng.randrange(12))
        with open(tmp_path / "0-of-1.jsonl", "ab") as file:
            file.write(b'0badc0de {"path":["torn' + b"\n" * rng.randrange(2))
    assert finish(tmp_path) == whole


@pytest.mark.parametrize(("slots", "seed"), [(1, 0), (37, 1), (8, 2)])
def test_slots_and_service_order_change_nothing(tmp_path, whole, slots, seed):
    streams = Streams(tmp_path, "one")
    assert report(run(engine(slots=slots, seed=seed), cells(), streams)) == whole
    streams.close()
    assert report(run(engine(Silent), cells(), Streams(tmp_path))) == whole


def test_eight_shards_merge_to_one_run_in_any_order(tmp_path, whole):
    parts, order = {}, list(range(8))
    random.Random(3).shuffle(order)
    for i in order:
        streams = Streams(tmp_path / "shards", f"{i}-of-8")
        parts[i] = run(engine(slots=i + 1, seed=i), cells(PROBLEMS[i::8]), streams)
        streams.close()
    assert report(result for part in parts.values() for result in part) == whole
    for trial in range(4):
        folder = tmp_path / f"merged{trial}"
        folder.mkdir()
        random.Random(trial).shuffle(order)
        for place, i in enumerate(order):
            shutil.copy(tmp_path / "shards" / f"{i}-of-8.jsonl", folder / f"{place}.jsonl")
        assert report(run(engine(Silent), cells(), Streams(folder))) == whole


def test_a_run_and_its_shards_may_lie_in_one_folder(tmp_path, whole):
    for writer, problems in (("0-of-2", PROBLEMS[::2]), ("0-of-1", PROBLEMS), ("1-of-2", PROBLEMS[1::2])):
        streams = Streams(tmp_path, writer)
        run(engine(), cells(problems), streams)
        streams.close()
    assert report(run(engine(Silent), cells(), Streams(tmp_path))) == whole


def test_a_damaged_folder_is_drawn_again_where_it_was_damaged(tmp_path, whole):
    assert finish(tmp_path) == whole
    file = tmp_path / "0-of-1.jsonl"
    data, rng = bytearray(file.read_bytes()), random.Random(5)
    for at in rng.sample(range(len(data)), 30):
        data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data[: len(data) - 20])
    with pytest.raises(AssertionError, match="a replay asked the engine"):
        run(engine(Silent), cells(), Streams(tmp_path))
    assert finish(tmp_path) == whole
    assert report(run(engine(Silent), cells(), Streams(tmp_path))) == whole


def test_a_longer_run_adds_to_a_shorter_one(tmp_path, whole):
    streams = Streams(tmp_path, "one")
    small = [cell for cell in cells(PROBLEMS[:4]) if cell.budget == 2]
    run(engine(), small, streams)
    streams.close()
    before = (tmp_path / "one.jsonl").read_bytes()
    assert finish(tmp_path, "one") == whole
    assert (tmp_path / "one.jsonl").read_bytes().startswith(before)
