"""How much a client costs: our `openai` engine, raw aiohttp and its_hub 1.2.0 against one local stub.

    python scripts/bench/clients.py [--json FILE]

The stub (`tests/stub_server.py`) runs in a process of its own and takes 45 ms a request; 20 problems × N = 16 samples
each. Every client runs in a fresh process, one warm-up first, and the rounds are interleaved so that other work on the
machine hits all alike; figures are medians. CPU is that of the client's process, background threads included.
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
from typing import Any

PROBLEMS, SAMPLES, SECONDS = 20, 16, 0.045
STUB = Path(__file__).parents[2] / "tests" / "stub_server.py"
IN_FLIGHT = (32, 128, 320)


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


def measure(client: str, url: str, in_flight: int, n: int, warm: int) -> dict[str, float]:
    """Wall and CPU seconds of `n` requests in this process, after `warm` requests to warm up."""
    if warm:
        RUNS[client](url, in_flight, warm)()
    work = RUNS[client](url, in_flight, n)
    wall, cpu = time.perf_counter(), time.process_time()
    answered = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"answered": answered, "wall": wall, "rate": answered / wall, "cpu_ms": 1000 * cpu / answered}


def apart(client: str, url: str, in_flight: int, n: int, warm: int = 64, timeout: float = 120) -> dict[str, float]:
    """`measure` in a fresh process; empty if it does not finish in time."""
    command = [sys.executable, __file__, "--one", json.dumps([client, url, in_flight, n, warm])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}


def interleaved(
    url: str, cases: list[tuple[str, int]], n: int, rounds: int
) -> dict[tuple[str, int], dict[str, float]]:
    """Medians over rounds in which every case runs once."""
    seen: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    for i in range(rounds):
        for case in cases[:: 1 if i % 2 == 0 else -1]:
            seen[case].append(apart(*case[:1], url, case[1], n))
    return {case: medians(results) for case, results in seen.items()}


def row(name: str, value: float | None, bar: str = "", holds: bool | None = None, note: str = "") -> dict[str, Any]:
    return {"name": name, "value": value, "bar": bar, "holds": holds, "note": note}


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    its_hub = find_spec("its_hub") is not None
    n = PROBLEMS * SAMPLES
    cases = [(client, in_flight) for in_flight in IN_FLIGHT for client in ("ours", "raw")]
    with stub() as url:
        got = interleaved(url, cases + ([("its_hub", 32)] if its_hub else []), n, rounds)
        steady = interleaved(url, [("ours", 128), ("raw", 128)], 10 * n, rounds)
    for (client, in_flight), seen in got.items():
        note = f"{client}, {in_flight} in flight, {n} requests"
        bar = (0.30, "≤ 0.30") if client == "ours" else None
        yield row(
            f"{client} CPU ms a request at {in_flight}",
            seen["cpu_ms"],
            bar[1] if bar else "",
            seen["cpu_ms"] <= bar[0] if bar else None,
            note,
        )
        yield row(f"{client} requests/s at {in_flight}", seen["rate"], note=note)
    yield from ratios(got, steady, its_hub, n)
    yield thousand()


def ratios(got: dict[Any, Any], steady: dict[Any, Any], its_hub: bool, n: int) -> Iterator[dict[str, Any]]:
    for name, seen, count in (("", got, n), (", steady", steady, 10 * n)):
        ratio = seen["ours", 128]["rate"] / seen["raw", 128]["rate"]
        yield row(f"throughput ÷ raw aiohttp at 128{name}", ratio, "≥ 0.90", ratio >= 0.9, f"{count} requests")
    yield row("CPU ms a request at 128, steady", (cpu := steady["ours", 128]["cpu_ms"]), "≤ 0.30", cpu <= 0.3)
    if its_hub:
        ratio = got["ours", 128]["rate"] / got["its_hub", 32]["rate"]
        yield row(
            "throughput ÷ its_hub's own loop", ratio, "≥ 3", ratio >= 3, "ours at 128; its_hub by infer() a problem"
        )
    else:
        yield row(
            "throughput ÷ its_hub's own loop",
            None,
            "≥ 3",
            False,
            "its_hub not installed: pip install 'its_hub[lm]==1.2.0'",
        )


def thousand() -> dict[str, Any]:
    """Whether 1,000 samples of one problem finish against a host name."""
    with stub("localhost") as url:
        seen = apart("ours", url, 128, 1000, warm=0, timeout=60)
    done = seen.get("answered") == 1000
    return row(
        "N = 1,000 against localhost, seconds", seen.get("wall"), "finishes", done, "128 in flight, first contact"
    )


def table(results: list[dict[str, Any]]) -> None:
    print(f"{'':48} {'value':>10}  {'bar':9} holds")
    for each in results:
        value = "–" if each["value"] is None else f"{each['value']:.3f}"
        holds = {True: "yes", False: "NO", None: ""}[each["holds"]]
        print(f"{each['name']:48} {value:>10}  {each['bar']:9} {holds:5} {each['note']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return
    results = list(rows(arguments.rounds))
    table(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
