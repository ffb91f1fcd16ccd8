"""How much a client costs: our `openai` engine, raw aiohttp and its_hub 1.2.0 against one local stub.

    python scripts/bench/clients.py [--json FILE] [--its-hub PYTHON]

its_hub pins other versions of what we use, so it may live in an environment of its own (`pip install
'its_hub[lm]==1.2.0'`), whose interpreter `--its-hub` names.

The stub (`tests/stub_server.py`) runs in a process of its own and takes 45 ms a request; 20 problems × N = 16 samples
each. Every client runs in fresh processes, and the rounds are interleaved so that other work on the machine hits all
alike. Figures are medians of the runs after a process's first, whose figure (connections are made then) stands in the
note; ratios are medians over rounds of ratios within a round, and where others use the same core, those of each
client's least disturbed runs tell more. CPU is that of the client's process, with its background threads. Where client
and stub share one core (`taskset -c 1`), the stub's own CPU is part of every request's time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from table import row, show

PROBLEMS, SAMPLES, SECONDS = 20, 16, 0.045
STUB = Path(__file__).parents[2] / "tests" / "stub_server.py"
IN_FLIGHT, REPEATS = (32, 128, 320), 5

Case: TypeAlias = tuple[str, int]


@contextmanager
def stub(host: str = "127.0.0.1") -> Iterator[str]:
    """A stub server in a process of its own; yields its address."""
    command = [sys.executable, str(STUB), "--delay", str(SECONDS), "--host", host, "--fixed"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    try:
        yield f"http://{host}:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait()


def run_ours(url: str, in_flight: int, n: int) -> Callable[[], int]:
    from extratime.models.engines.openai import Endpoint, OpenAIEngine
    from extratime.models.request import Draw, Drawn, Prompt, Sampling

    engine = OpenAIEngine(Endpoint("toy", "transformers", url, concurrency=in_flight))

    def work() -> int:
        for i in range(n):
            engine.submit(i, Draw(Prompt(f"problem {i // SAMPLES}"), i, Sampling(), 32))
        answered = 0
        while batch := engine.poll():
            answered += sum(isinstance(reply, Drawn) for _, reply in batch)
        return answered

    return work


def run_raw(url: str, in_flight: int, n: int) -> Callable[[], int]:
    import aiohttp

    loop = asyncio.new_event_loop()

    async def connect() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight))

    session = loop.run_until_complete(connect())

    async def worker(left: Iterator[int]) -> int:
        answered = 0
        for i in left:
            body = {"model": "toy", "prompt": f"problem {i // SAMPLES}", "max_tokens": 32, "seed": i}
            async with session.post(f"{url}/v1/completions", json=body) as response:
                answered += len((await response.json())["choices"])
        return answered

    async def all_of_them() -> int:
        left = iter(range(n))
        return sum(await asyncio.gather(*(worker(left) for _ in range(in_flight))))

    return lambda: loop.run_until_complete(all_of_them())


def run_its_hub(url: str, in_flight: int, n: int) -> Callable[[], int]:
    import logging

    from its_hub import LMOrchestrator, OpenAICompatibleLanguageModel, SelfConsistency

    logging.disable()
    model = OpenAICompatibleLanguageModel(f"{url}/v1", "none", "toy")
    vote = SelfConsistency(lambda text: text, orchestrator=LMOrchestrator(in_flight))

    def work() -> int:
        results = [vote.infer(model, f"problem {i}", SAMPLES, return_response_only=False) for i in range(n // SAMPLES)]
        return sum(len(result.responses) for result in results)

    return work


RUNS = {"ours": run_ours, "raw": run_raw, "its_hub": run_its_hub}


def measure(client: str, url: str, in_flight: int, n: int, repeats: int) -> dict[str, float]:
    """Requests/s and CPU milliseconds a request in this process: at first contact, then medians of `repeats`."""
    work = RUNS[client](url, in_flight, n)
    runs = []
    for _ in range(1 + repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        answered = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        runs.append({"answered": answered, "wall": wall, "rate": answered / wall, "cpu_ms": 1000 * cpu / answered})
    cold = {f"cold {key}": value for key, value in runs[0].items()}
    return cold | {"best rate": max(run["rate"] for run in runs)} | medians(runs[1:] or runs)


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(each[key] for each in runs) for key in runs[0]}


def apart(
    client: str, url: str, in_flight: int, n: int, repeats: int, timeout: float = 120, python: str = sys.executable
) -> dict[str, float]:
    """`measure` in a fresh process; empty if it does not finish in time."""
    command = [python, __file__, "--one", json.dumps([client, url, in_flight, n, repeats])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def interleaved(url: str, cases: list[Case], rounds: int, its_hub: str) -> dict[Case, list[dict[str, float]]]:
    """What each case gives in each round; every other round runs backwards."""
    seen: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    for i in range(rounds):
        for client, in_flight in cases[:: 1 if i % 2 == 0 else -1]:
            python = its_hub if client == "its_hub" else sys.executable
            seen[client, in_flight].append(apart(client, url, in_flight, PROBLEMS * SAMPLES, REPEATS, python=python))
    return seen


def ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]], key: str = "rate") -> float:
    """Median over rounds of ours ÷ theirs in the same round."""
    return statistics.median(a[key] / b[key] for a, b in zip(ours, theirs, strict=True))


def rows(rounds: int, its_hub: str) -> Iterator[dict[str, Any]]:
    cases = [(client, in_flight) for in_flight in IN_FLIGHT for client in ("ours", "raw")]
    cases += [("its_hub", 32)] if its_hub else []
    with stub() as url:
        seen = interleaved(url, cases, rounds, its_hub)
    for (client, in_flight), runs in seen.items():
        yield from figures(f"{client} at {in_flight}", medians(runs), bar=(client, in_flight) == ("ours", 128))
    yield from ratios(seen)
    yield thousand()


def figures(name: str, seen: dict[str, float], bar: bool) -> Iterator[dict[str, Any]]:
    cpu, note = seen["cpu_ms"], f"first contact {seen['cold cpu_ms']:.3f}"
    yield row(f"{name}: CPU ms a request", cpu, "≤ 0.30" if bar else "", cpu <= 0.3 if bar else None, note)
    yield row(f"{name}: requests/s", seen["rate"], note=f"first contact {seen['cold rate']:.0f}")


def ratios(seen: dict[Case, list[dict[str, float]]]) -> Iterator[dict[str, Any]]:
    ours, raw = seen["ours", 128], seen["raw", 128]
    value, cold, best = (ratio(ours, raw, key) for key in ("rate", "cold rate", "best rate"))
    note = f"first contact {cold:.2f}, least disturbed runs {best:.2f}"
    yield row("throughput ÷ raw aiohttp at 128", value, "≥ 0.90", value >= 0.9, note)
    if its_hub := seen.get(("its_hub", 32)):
        value, cold = ratio(ours, its_hub), ratio(ours, its_hub, "cold rate")
        note = f"ours at 128, its_hub by infer() problem by problem; first contact {cold:.2f}"
        yield row("throughput ÷ its_hub's own loop", value, "≥ 3", value >= 3, note)
        yield row("throughput ÷ its_hub's own loop, both at 32", ratio(seen["ours", 32], its_hub))
    else:
        note = "its_hub not found: pip install 'its_hub[lm]==1.2.0', or --its-hub PYTHON"
        yield row("throughput ÷ its_hub's own loop", None, "≥ 3", False, note)


def thousand() -> dict[str, Any]:
    """Whether 1,000 samples of one problem finish against a host name."""
    with stub("localhost") as url:
        seen = apart("ours", url, 128, 1000, repeats=0, timeout=60)
    done = seen.get("answered") == 1000
    return row("N = 1,000 against localhost: seconds", seen.get("wall"), "finishes", done, "128 in flight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--rounds", type=int, default=5)
    here = sys.executable if find_spec("its_hub") else ""
    parser.add_argument("--its-hub", default=here, metavar="PYTHON", help="interpreter that has its_hub")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return
    show(list(rows(arguments.rounds, arguments.its_hub)), arguments.json)


if __name__ == "__main__":
    main()
