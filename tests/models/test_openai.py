import itertools
import time
from math import exp, inf, log

import pytest
from stub_server import END, LOGPROB, Stub, piece, spell

from extratime.models.engines.openai import Endpoint, OpenAIEngine
from extratime.models.engines.servers import SERVERS, Unanswerable, align, probabilities
from extratime.models.engines.wire import _wait
from extratime.models.request import Completion, Draw, Drawn, Failure, Probe, Prompt, Read, Sampling, Score, Work

PLAIN = Sampling()
KINDS = ("vllm", "sglang", "llama_cpp", "transformers")
ONCE = ("500", "429", "reset", "html", "truncated", "empty", "null", "abort", "error", "silence")


@pytest.fixture
def engine_for():
    engines = []

    def make(stub, **options):
        options = {"attempts": 3, "pause": 0.01, "timeout": 0.5, "concurrency": 16} | options
        engines.append(OpenAIEngine(Endpoint("toy", stub.kind, stub.url, **options)))
        stub.arrivals.clear()
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def draw(prompt, seed=7, **options):
    prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
    return Draw(prompt, seed, **{"sampling": PLAIN, "max_tokens": 30} | options)


def collect(engine, requests):
    for ticket, request in requests.items():
        engine.submit(ticket, request)
    replies = {}
    while batch := engine.poll():
        for ticket, reply in batch:
            assert ticket not in replies
            replies[ticket] = reply
    return replies


def one(engine, request):
    return collect(engine, {"only": request})["only"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_server_kind_draws_the_same_seed_again(kind, engine_for):
    with Stub(kind) as stub:
        engine = engine_for(stub)
        replies = collect(engine, {(seed, copy): draw("a", seed) for seed in range(20) for copy in range(2)})
        assert len(replies) == 40 and all(isinstance(reply, Drawn) for reply in replies.values())
        assert all(replies[seed, 0] == replies[seed, 1] for seed in range(20))
        assert len({reply.text for reply in replies.values()}) > 10
        assert engine.counts == sum((reply.work for reply in replies.values()), Work())
        assert engine.seconds["decode"] > 0 and engine.seconds["prefill"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_ends_cover_the_text_and_count_every_token(kind, engine_for):
    with Stub(kind) as stub:
        for reply in collect(engine_for(stub), {seed: draw("a", seed) for seed in range(40)}).values():
            assert len(reply.ends) == reply.work.decode
            assert list(reply.ends) == sorted(reply.ends) and reply.ends[-1] == len(reply.text)
            if kind != "transformers":
                assert len(reply.tokens) + reply.eos == len(reply.ends) == len(reply.logprobs)
                assert spell(list(reply.tokens)) == reply.text and END not in reply.tokens
                assert set(reply.logprobs) == {LOGPROB} and reply.tempered == reply.logprobs


@pytest.mark.parametrize("fault", ONCE)
def test_a_passing_fault_is_survived_with_the_same_seed(fault, engine_for):
    with Stub("vllm", faults={"b": [fault]}) as stub:
        engine = engine_for(stub)
        replies = collect(engine, {"faulty": draw("b"), "whole": draw("c")})
        assert all(isinstance(reply, Drawn) for reply in replies.values())
        first, second = stub.asked("b")
        assert first.body == second.body
        assert one(engine, draw("b")).text == replies["faulty"].text


@pytest.mark.parametrize("fault", ONCE)
def test_a_lasting_fault_fails_its_own_ticket_only(fault, engine_for):
    with Stub("vllm", faults={"broken": [fault] * 9}) as stub:
        engine = engine_for(stub, timeout=0.3)
        requests = {i: draw("broken" if i == 11 else "a", i) for i in range(20)}
        replies = collect(engine, requests)
        assert set(replies) == set(range(20))
        assert [ticket for ticket, reply in replies.items() if isinstance(reply, Failure)] == [11]
        assert "sent 3 times" in replies[11].error and stub.url in replies[11].error
        assert len(stub.asked("broken")) == 3
        assert engine.counts == sum((reply.work for reply in replies.values()), Work())


def test_broken_replies_with_a_bill_are_counted(engine_for):
    with Stub("vllm", faults={"b": ["empty", "null"]}) as stub:
        engine = engine_for(stub)
        thrice, once = one(engine, draw("b")), one(engine, draw("b"))
        assert thrice.text == once.text
        assert thrice.work == once.work + once.work + once.work
        assert engine.counts == thrice.work + once.work


def test_failures_name_their_cause(engine_for):
    causes = {
        "500": "HTTP 500: try later",
        "400": "HTTP 400",
        "reset": "ServerDisconnectedError",
        "html": "not JSON: <html>busy</html>",
        "truncated": "not JSON",
        "empty": "no choices",
        "null": "text is null",
        "abort": "finish_reason is 'abort'",
        "silence": "no answer within 0.3 s",
        "error": "usage",
        "no ids": "tells 0 token ids",
        "no form": "out of form",
        "no numbers": "out of form",
    }
    with Stub("vllm", faults={name: [name] * 9 for name in causes}) as stub:
        engine = engine_for(stub, timeout=0.3)
        replies = collect(engine, {name: draw(name, 3) for name in causes})
        assert {name: causes[name] in reply.error for name, reply in replies.items()} == dict.fromkeys(causes, True)
        assert len(stub.asked("400")) == 1


def test_retry_after_is_waited_for(engine_for):
    with Stub("vllm", faults={"b": ["429", "429"]}) as stub:
        assert isinstance(one(engine_for(stub), draw("b")), Drawn)
        times = [arrival.at for arrival in stub.asked("b")]
        assert len(times) == 3 and all(b - a >= 0.3 for a, b in itertools.pairwise(times))


def test_a_wait_longer_than_the_time_out_is_not_waited_for(engine_for):
    with Stub("vllm", faults={"b": ["429 later"]}) as stub:
        assert "asks to wait 1000 s" in one(engine_for(stub), draw("b")).error


def test_retry_after_may_be_a_date():
    assert _wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert _wait("Fri, 31 Dec 2100 23:59:59 GMT") > 1e6
    assert _wait("2.5") == 2.5 and _wait("soon") == 0 and _wait("") == 0


def test_silent_server_never_shortens_an_answer(engine_for):
    with Stub("transformers", faults={"b": ["silence"]}) as stub:
        engine = engine_for(stub, timeout=0.2)
        assert one(engine, draw("b")) == one(engine, draw("b"))


def test_seeds_follow_the_draw_and_the_place_in_it(engine_for):
    with Stub("vllm") as stub:
        engine = engine_for(stub)
        prompt = Prompt("ab", (97, 98))
        collect(engine, dict(enumerate([draw(prompt, 1), draw(prompt, 2), draw(prompt, 1, have=(99,))])))
        seeds = [arrival.body["seed"] for arrival in stub.arrivals]
        assert len(set(seeds)) == 3 and all(0 <= seed < 2**63 for seed in seeds)
    with Stub("sglang") as stub:
        collect(engine_for(stub), {i: draw("a", 2**64 - 1 - i) for i in range(20)})
        assert all(0 <= arrival.body["seed"] < 2**31 for arrival in stub.arrivals)


def test_prefixes_are_continued_in_ids(engine_for):
    prompt = Prompt("ab", (97, 98))
    with Stub("vllm") as stub:
        one(engine_for(stub), draw(prompt, have=(200, 99), have_text=" stepc"))
        assert stub.arrivals[0].body["prompt"] == [97, 98, 200, 99]
        assert stub.arrivals[0].body["max_tokens"] == 28


@pytest.mark.parametrize("kind", ("vllm", "sglang"))
def test_stop_strings_end_a_draw_with_its_last_token_whole(kind, engine_for):
    with Stub(kind) as stub:
        replies = collect(engine_for(stub), {i: draw("a", i, pause=("\n\n",), max_tokens=60) for i in range(40)})
        stopped = [reply for reply in replies.values() if "\n\n" in reply.text]
        assert len(stopped) > 10
        for reply in stopped:
            assert not reply.eos and reply.text == spell(list(reply.tokens))
            assert "\n\n" not in reply.text[: reply.ends[-2] if len(reply.ends) > 1 else 0]
        assert any(reply.text.endswith(".\n\nThen") for reply in stopped)


@pytest.mark.parametrize("kind", ("llama_cpp", "transformers"))
def test_servers_that_drop_stop_strings_get_none(kind, engine_for):
    with Stub(kind) as stub:
        replies = collect(engine_for(stub), {i: draw("a", i, until=("\n\n",)) for i in range(10)})
        assert all("stop" not in arrival.body for arrival in stub.arrivals)
        assert all(reply.eos or reply.work.decode == 30 for reply in replies.values())


def test_laws_are_spelt_out_in_full(engine_for):
    law = Sampling(0.7, 0.9, 20, 0.05)
    with Stub("vllm") as stub:
        reply = one(engine_for(stub), draw("a", sampling=law))
        body = stub.arrivals[0].body
        assert [body[key] for key in ("temperature", "top_p", "top_k", "min_p")] == [0.7, 0.9, 20, 0.05]
        assert body["repetition_penalty"] == 1.0 and reply.logprobs and not reply.tempered
        one(engine_for(stub), draw("a"))
        assert [stub.arrivals[-1].body[key] for key in ("temperature", "top_p", "top_k")] == [1.0, 1.0, -1]
    assert SERVERS["llama_cpp"].law(law)["samplers"] == ["temperature", "top_k", "top_p", "min_p"]
    assert '"do_sample": false' in SERVERS["transformers"].law(Sampling(0.0))["generation_config"]


def test_tempered_logprobs_are_never_passed_for_raw_ones(engine_for):
    with Stub("sglang") as stub:
        hot = one(engine_for(stub), draw("a", sampling=Sampling(0.5)))
        assert hot.logprobs == () and set(hot.tempered) == {LOGPROB}


@pytest.mark.parametrize("kind", ("vllm", "sglang", "llama_cpp"))
def test_probe_reads_target_probabilities(kind, engine_for):
    asked = Completion(Prompt("ab", (97, 98)), " step", 1, (200,))
    with Stub(kind) as stub:
        engine = engine_for(stub)
        reply = one(engine, Probe(asked, "?", (" Yes", " No")))
        assert reply.values == pytest.approx((exp(-0.25), exp(-1.5)))
        body = stub.arrivals[0].body
        assert body["prompt"] == [97, 98, 200, ord("?")] and body["max_tokens"] == 1 and body["model"] == "toy"
        assert engine.counts == reply.work and reply.work.decode == 1
        missing = one(engine, Probe(asked, "?", ("Maybe",)))
        assert isinstance(missing, Failure) and "Maybe" in missing.error and "3 most likely" in missing.error
        assert engine.seconds["prefill"] > 0


@pytest.mark.parametrize(
    ("told", "yes", "no"),
    [
        ({" No": 0.9, "a": 0.06, "b": 0.03}, 0.01, 0.9),  # what is left
        ({" No": 0.9, "a": 0.004}, 0.004, 0.9),  # no more than the least told
        ({" Yes": 0.7, "a": 0.31}, 0.7, 0.0),  # rounded up by the server
        ({" Yes": 0.0, " No": 0.5}, 0.0, 0.5),  # zero is told, too
    ],
)
def test_a_verdict_that_a_sure_judge_leaves_no_place_has_what_is_left(told, yes, no):
    tops = {token: log(p) if p else -inf for token, p in told.items()}
    choice = {"text": "x", "finish_reason": "length", "logprobs": {"top_logprobs": [tops]}}
    reply = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    values, _ = probabilities(SERVERS["vllm"], (" Yes", " No"), reply)
    assert values == pytest.approx((yes, no))
    with pytest.raises(Unanswerable, match="most likely"):
        probabilities(SERVERS["vllm"], ("Maybe", "So"), reply)


def test_probe_of_text_asks_in_text(engine_for):
    with Stub("vllm") as stub:
        one(engine_for(stub), Probe(Completion(Prompt("ab"), " step", 1), "?", (" Yes",)))
        assert stub.arrivals[0].body["prompt"] == "ab step?"


def test_score_reads_the_echoed_prompt(engine_for):
    with Stub("vllm") as stub:
        reply = one(engine_for(stub), Score(Prompt("ab", (97, 98)), "cd"))
        assert reply == Read((-0.99, -1.0), reply.work) and reply.work.prefill == 4


def test_what_a_server_cannot_do_is_refused_before_any_work(engine_for):
    probe = Probe(Completion(Prompt("a"), "", 0), "?", (" Yes",))
    with Stub("transformers") as stub:
        engine = engine_for(stub, concurrency=1)
        profile = engine.profile
        assert not (profile.token_ids or profile.logprobs or profile.resumes or profile.probes or profile.scores)
        with pytest.raises(ValueError, match="cannot score"):
            engine.submit(0, Score(Prompt("a"), "b"))
        with pytest.raises(ValueError, match="cannot be probed"):
            engine.submit(0, probe)
        with pytest.raises(ValueError, match="nothing to read"):
            engine.submit(0, draw("a", max_tokens=0))
        with pytest.raises(ValueError, match="cannot continue a path"):
            engine.submit(0, draw("a", have_text=" step"))
        assert engine.poll() == [] and not stub.arrivals
    with Stub("vllm") as stub, pytest.raises(ValueError, match="cannot switch to the adapter 'adapter'"):
        engine_for(stub).submit(0, Probe(probe.completion, "?", (" Yes",), adapter="adapter"))


def test_seeds_of_transformers_hold_only_one_at_a_time(engine_for):
    with Stub("transformers") as stub:
        assert engine_for(stub, concurrency=None).profile.seeds
        assert not engine_for(stub, concurrency=4).profile.seeds


def test_a_ticket_is_used_once_at_a_time(engine_for):
    with Stub("vllm") as stub:
        engine = engine_for(stub)
        engine.submit("t", draw("a"))
        with pytest.raises(ValueError, match="already in use"):
            engine.submit("t", draw("a"))
        assert [ticket for ticket, _ in engine.poll()] == ["t"] and engine.poll() == []
        engine.submit("t", draw("a"))
        assert len(engine.poll()) == 1


def test_cancel_waiting_flying_and_finished(engine_for):
    with Stub("vllm", delay=0.2) as stub:
        engine = engine_for(stub, concurrency=1, timeout=5)
        for ticket in "abc":
            engine.submit(ticket, draw(ticket))
        while not stub.asked("a"):
            time.sleep(0.01)
        assert engine.cancel("b") is None and engine.cancel("nobody") is None
        assert engine.cancel("a") == Drawn("", ())
        assert [ticket for ticket, _ in engine.poll()] == ["c"]
        engine.submit("d", draw("d"))
        while engine.counts.decode == 0 or not engine.seconds["decode"]:
            time.sleep(0.01)
        time.sleep(0.5)
        assert engine.cancel("d").text and engine.poll() == []
        assert not stub.asked("b")


def test_no_more_in_flight_than_allowed_and_all_slots_used(engine_for):
    with Stub("transformers", delay=0.02) as stub:
        assert len(collect(engine_for(stub, concurrency=10), {i: draw("a", i) for i in range(100)})) == 100
        assert stub.peak == 10


def test_a_thousand_draws_by_host_name(engine_for):
    with Stub("transformers", host="localhost") as stub:
        replies = collect(engine_for(stub, concurrency=64, timeout=30), {i: draw("a", i) for i in range(1000)})
        assert sum(isinstance(reply, Drawn) for reply in replies.values()) == 1000


def test_url_with_v1_and_key_from_the_environment(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret\n")
    with Stub("vllm") as stub:
        engine = OpenAIEngine(Endpoint("toy", "vllm", stub.url + "/v1/", key_env="MY_KEY"))
        assert isinstance(one(engine, draw("a")), Drawn) and stub.arrivals[-1].key == "Bearer secret"
        assert engine.encode("ab") == Prompt("ab", (97, 98)) and engine.profile.max_context == 4096
        engine.close()
        engine.close()


def test_a_quoted_key_is_left_out_of_errors(monkeypatch, engine_for):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Stub("vllm", faults={"a": ["401"]}) as stub:
        failure = one(engine_for(stub), draw("a"))
        assert "HTTP 401: wrong key: Bearer (key)" in failure.error and "sk-secret" not in failure.error
    with pytest.raises(ValueError, match="must hold no password") as fault:
        Endpoint("toy", "vllm", "http://me:sk-secret@127.0.0.1")
    assert "sk-secret" not in str(fault.value)


def test_a_prompt_begins_as_the_tokenizer_has_it(engine_for):
    with Stub("vllm", bos=1) as stub:
        engine = engine_for(stub)
        assert engine.encode("ab") == Prompt("ab", (1, 97, 98))
        one(engine, Score(Prompt("ab", (1, 97)), "c"))
        assert stub.arrivals[-1].body["prompt"] == [1, 97, ord("c")]


def test_fingerprint_tells_weights_apart():
    with Stub("vllm") as stub:
        names = [("toy", ""), ("toy", ""), ("toy", "step 10"), ("adapter", "")]
        engines = [OpenAIEngine(Endpoint(model, "vllm", stub.url, revision)) for model, revision in names]
        prints = [engine.fingerprint for engine in engines]
        for engine in engines:
            engine.close()
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_work_counts_cached_prompt_tokens(engine_for):
    with Stub("vllm", cached=2) as stub:
        work = one(engine_for(stub), draw(Prompt("abc", (97, 98, 99)), max_tokens=1)).work
        assert work == Work(prefill=1, decode=1, cached=2, pairs=3 + 4, decode_pairs=4)


def test_alignment_of_tokens_and_text():
    assert align("ab c", ["a", "b", " c"], False) == ("ab c", (1, 2, 4))
    assert align("a.\n\n", ["a", ".\n\nThen"], True) == ("a.\n\nThen", (1, 8))
    assert align("é!", ["\ufffd", "\ufffd", "!"], False) == ("é!", (0, 0, 2))
    assert align("é.\n\n", ["\ufffd", "\ufffd", ".\n\nB"], True) == ("é.\n\nB", (0, 0, 5))
    assert align("ab", ["a", "<special>", "b"], False) == ("ab", (1, 1, 2))
    assert align("", [], False) == ("", ())
    assert piece(END) == "<end>"
