"""What the scheduler costs: time outside of engines and strategies, for each completion that a program is given.

    python scripts/bench/scheduler.py [--recipe recipes/evaluate/catalogue.yaml] [--limit 4] [--json FILE]

Every cell of the recipe runs twice in one process: drawn by the `hf` engine, then answered by the streams alone. Time
is taken apart at two seams: calls of engines, and steps of programs (a strategy's own arithmetic and its verifiers').
What is left is the scheduler's: fibers, lanes, budgets, cutting of texts, charging, and the writing of streams. Where
timing itself costs, the scheduler pays for it here. Microseconds are of this thread's CPU, so that they do not hang on
what else the machine does; the share is of wall time, waits for the disk included.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from time import perf_counter, thread_time

from table import at_most, row, show

import extratime.evaluate.run as running
from extratime.evaluate.grid import read_recipe
from extratime.evaluate.program import Gather
from extratime.evaluate.schedule import Schedule
from extratime.models.request import Completion

RECIPE = Path(__file__).parents[2] / "recipes/evaluate/catalogue.yaml"


class Clock:
    """Seconds by kind, of wall time and of CPU, and how many completions programs were given."""

    def __init__(self):
        self.wall, self.cpu, self.completions = Counter(), Counter(), 0

    def timed(self, kind, call, *args):
        began, busy = perf_counter(), thread_time()
        try:
            return call(*args)
        finally:
            self.wall[kind] += perf_counter() - began
            self.cpu[kind] += thread_time() - busy

    def program(self, program):
        """A program whose steps are timed, and those of all that it gathers."""
        step, value = program.send, None
        while True:
            try:
                request = self.timed("programs", step, value)
            except StopIteration as stop:
                return stop.value
            if isinstance(request, Gather):
                request = replace(request, programs=tuple(map(self.program, request.programs)))
            try:
                value, step = (yield request), program.send
            except Exception as error:
                value, step = error, program.throw
            if isinstance(value, list):
                self.completions += sum(isinstance(reply, Completion) for reply in value)


class TimedEngine:
    """An engine whose calls are timed."""

    def __init__(self, engine, clock):
        self.engine, self.clock = engine, clock

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def submit(self, *args):
        return self.clock.timed("engines", self.engine.submit, *args)

    def poll(self):
        return self.clock.timed("engines", lambda: list(self.engine.poll()))

    def cancel(self, ticket):
        return self.clock.timed("engines", self.engine.cancel, ticket)


class TimedSchedule(Schedule):
    """A schedule whose engines and programs are timed, and all of it."""

    clock = Clock()

    def __init__(self, engines, *args):
        timed = {id(engine): TimedEngine(engine, self.clock) for engine in engines.values()}
        super().__init__({role: timed[id(engine)] for role, engine in engines.items()}, *args)

    def run(self, cells):
        cells = [replace(cell, strategy=self._timed(cell.strategy)) for cell in cells]
        return self.clock.timed("run", super().run, cells)

    def _timed(self, strategy):
        return lambda problem, budget, rng: self.clock.program(strategy(problem, budget, rng))


def measured(recipe, words):
    """The clock of one run of a recipe."""
    TimedSchedule.clock = Clock()
    running.run_recipe(read_recipe(recipe, words))
    return TimedSchedule.clock


def own(seconds):
    """What is the scheduler's of a run's seconds."""
    return seconds["run"] - seconds["engines"] - seconds["programs"]


def rows(name, clock, hf):
    yield row(f"{name}: completions given to programs", clock.completions)
    for kind in ("run", "engines", "programs"):
        yield row(f"{name}: {kind}, seconds", clock.wall[kind], note=f"{clock.cpu[kind]:.2f} of CPU")
    yield at_most(f"{name}: scheduler, µs a completion", 1e6 * own(clock.cpu) / clock.completions, 50)
    if hf:
        yield at_most(f"{name}: scheduler, share of wall time", own(clock.wall) / clock.wall["run"], 0.02)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--limit", type=int, default=4, help="problems of each task")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    running.Schedule = TimedSchedule
    with tempfile.TemporaryDirectory() as folder:
        words = [f"limit={args.limit}", f"output={folder}/run"]
        found = [*rows("drawn", measured(args.recipe, words), hf=True)]
        found += rows("answered by streams", measured(args.recipe, words), hf=False)
    show(found, args.json)


if __name__ == "__main__":
    main()
