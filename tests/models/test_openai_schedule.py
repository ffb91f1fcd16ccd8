"""Strategies on servers that fail: through the scheduler, with streams on disk."""

import functools

import pytest
from stub_server import Stub

from extratime.evaluate.grid import StrategySpec, bind
from extratime.evaluate.means import refuse_beyond_means
from extratime.evaluate.named import RecipeError
from extratime.evaluate.program import Problem, best, extend, sample
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.particle_filter import particle_filter
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.streams import Streams
from extratime.evaluate.verifiers.oracle import oracle
from extratime.models.engines.openai import Endpoint, OpenAIEngine
from extratime.models.request import Completion, Prompt

FAULTS = {
    "500": "HTTP 500: try later",
    "429": "HTTP 429",
    "reset": "ServerDisconnectedError",
    "html": "not JSON: <html>busy</html>",
    "truncated": "not JSON",
    "empty": "no choices",
    "null": "text is null",
    "silence": "no answer within 0.3 s",
}
STRATEGIES = {"bon": functools.partial(best_of_n, verify=oracle), "vote": self_consistency}


def said(text):
    return "42" if "42" in text else None


def cells(n, budget, strategies=STRATEGIES):
    problems = [Problem(f"p{i}", Prompt(f"p{i}?"), said, lambda text: "42" in text, max_tokens=24) for i in range(n)]
    return [Cell(f"{p.id}/{name}", p, run, budget) for p in problems for name, run in strategies.items()]


def run(stub, cells, folder=None, **options):
    options = {"attempts": 2, "pause": 0.01, "timeout": 0.3, "concurrency": 32} | options
    engine = OpenAIEngine(Endpoint("toy", stub.kind, stub.url, **options))
    streams = Streams(folder, "w" if folder else None)
    try:
        return Schedule({"policy": engine}, streams).run(cells)
    finally:
        streams.close()
        engine.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_one_reply_of_twenty_broken_costs_no_sibling_and_no_problem(fault):
    with Stub("transformers") as stub:
        whole = run(stub, cells(5, 20))
    with Stub("transformers", spoilt=(fault, 20)) as stub:
        results = run(stub, cells(5, 20))
        assert len(stub.draws) == 100
    assert [result.cell.key for result in results] == [result.cell.key for result in whole]
    assert not any(result.error for result in results)
    for result, sound in zip(results, whole, strict=True):
        assert len(result.answer.pool) == 20
        for got, want in zip(result.answer.pool, sound.answer.pool, strict=True):
            assert FAULTS[fault] in got.error if got.finish == "failed" else got == want
    lost = {response.path for result in results for response in result.answer.pool if response.finish == "failed"}
    assert len(lost) == 5


@pytest.mark.parametrize("kind", ("vllm", "transformers"))
def test_passing_faults_of_every_kind_change_nothing(kind):
    with Stub(kind) as stub:
        whole = run(stub, cells(8, 4), attempts=10)
    plan = {f"p{i}?": [*FAULTS, *FAULTS][i : i + 8] for i in range(8)}
    with Stub(kind, faults=plan | {tuple(map(ord, name)): faults for name, faults in plan.items()}) as stub:
        results = run(stub, cells(8, 4), attempts=10)
        assert not any(plan.values()) and len(stub.arrivals) > 8 * 4 + 60
    assert [(r.answer, r.cost, r.error) for r in results] == [(r.answer, r.cost, r.error) for r in whole]


def test_a_problem_without_any_reply_stays_with_its_cause():
    with Stub("transformers", faults={"p1?": ["500"] * 99}) as stub:
        results = run(stub, cells(3, 4))
    assert len(results) == 6
    failed = {result.cell.key: result.error for result in results if result.error}
    assert set(failed) == {"p1/bon", "p1/vote"}
    assert all("HTTP 500: try later" in error and stub.url in error for error in failed.values())


def test_the_key_is_sent_and_never_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Stub("transformers", faults={"p1?": ["401"] * 99}) as stub:
        results = run(stub, cells(3, 4), tmp_path)
        assert {arrival.key for arrival in stub.arrivals} == {"Bearer sk-secret"}
    assert "(key)" in repr(results) and "sk-secret" not in repr(results)
    assert "sk-secret" not in "".join(file.read_text() for file in tmp_path.iterdir())


def test_a_stepwise_strategy_reads_whole_paths_of_a_server_of_texts():
    def two_steps(problem, budget, rng):
        begun = yield from sample(problem.prompt, budget, max_tokens=5)
        whole = yield from extend(begun)
        assert all(b.n_tokens <= 5 and w.text.startswith(b.text) for b, w in zip(begun, whole, strict=True))
        return best(whole, [w.n_tokens for w in whole], "longest")

    with Stub("transformers") as stub:
        results = run(stub, cells(2, 4, {"two": two_steps, "pf": functools.partial(particle_filter, verify=oracle)}))
        bodies = [arrival.body for arrival in stub.arrivals if arrival.body["prompt"] in ("p0?", "p1?")]
    assert not any(result.error for result in results)
    assert [body["max_tokens"] for body in bodies] == [24] * 8
    assert max(response.n_tokens for result in results for response in result.answer.pool) > 5


def test_a_prompt_whose_response_has_no_ids_has_none_either():
    prompt = Prompt("a?", (1, 2))
    assert prompt.then(Completion(prompt, "b", 1)) == Prompt("a?b")
    assert prompt.then(Completion(prompt, "b", 1, (3,))) == Prompt("a?b", (1, 2, 3))
    assert prompt.then(Completion(prompt, "", 0)) == prompt


@pytest.mark.parametrize(
    ("kind", "verify", "reason"),
    [
        ("transformers", "likelihood", "has responses scored"),
        ("transformers", "self_eval", "probabilities of single tokens"),
        ("vllm", "self_eval", "adapter 'self_eval', but the engine's are: none"),
        ("vllm", "reward_model", "role 'verifier'"),
        ("vllm", "likelihood", None),
        ("sglang", "likelihood", None),
        ("transformers", "oracle", None),
    ],
)
def test_a_verifier_beyond_the_servers_means_is_refused(kind, verify, reason):
    bound = bind(StrategySpec("best_of_n", "bon", {"verify": verify}), {})
    with Stub(kind) as stub:
        engine = OpenAIEngine(Endpoint("toy", kind, stub.url))
        stub.arrivals.clear()
        if reason is None:
            refuse_beyond_means({"bon": bound, "vote": self_consistency}, {"policy": engine})
        else:
            with pytest.raises(RecipeError, match=f"bon: .*{reason}"):
                refuse_beyond_means({"bon": bound}, {"policy": engine})
        engine.close()
        assert not stub.arrivals
