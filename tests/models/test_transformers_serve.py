"""A real server: `transformers serve` with the embedded model, asked by whole strategies."""

import functools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from extratime.evaluate.grid import EngineSpec
from extratime.evaluate.program import Problem
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.streams import Streams
from extratime.evaluate.verifiers.oracle import oracle
from extratime.models.engines.open import open_engine
from extratime.models.load import embedded_folder
from extratime.models.request import Draw, Failure, Sampling, Score

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("transformers", path=os.path.dirname(sys.executable)) is None, reason="no serve"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address and model name of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model, url = str(embedded_folder()), f"http://127.0.0.1:{port}"
    program = os.path.join(os.path.dirname(sys.executable), "transformers")
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with open(tmp_path_factory.mktemp("serve") / "log", "w+") as log:
        process = subprocess.Popen([program, "serve", model, *options], stdout=log, stderr=log)
        try:
            wait(process, url, log)
            yield url, model
        finally:
            process.terminate()
            process.wait(30)


def wait(process, url, log, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=1).close()
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"transformers serve did not start: {log.read()[-2000:]}")


def connect(server, model=None, url=None, what="transformers"):
    at, served = server
    spec = EngineSpec("openai", server=what, url=url or at, tokenizer=served, timeout=120.0)
    return open_engine(model or served, {}, spec)


@pytest.fixture
def opened(server):
    opened = connect(server)
    yield opened
    opened.engine.close()


def first_word(text):
    return text.split()[0] if text.split() else None


def test_strategies_answer_with_the_servers_draws(opened):
    chats = {name: [{"role": "user", "content": f"Say {name}."}] for name in ("yes", "no")}
    problems = [
        Problem(name, opened.engine.encode(opened.render(chat, True)), first_word, lambda text: "I" in text, 12)
        for name, chat in chats.items()
    ]
    strategies = {"bon": functools.partial(best_of_n, verify=oracle), "vote": self_consistency}
    cells = [Cell(f"{p.id}/{name}", p, run, 3) for p in problems for name, run in strategies.items()]
    results = Schedule({"policy": opened.engine}, Streams()).run(cells)
    assert not any(result.error for result in results)
    texts = [response.text for response in results[0].answer.pool]
    assert len(set(texts)) == 3 and texts == [response.text for response in results[1].answer.pool]
    assert all(0 < response.n_tokens <= 12 for result in results for response in result.answer.pool)
    assert opened.engine.counts.decode == sum(r.n_tokens for i in (0, 2) for r in results[i].answer.pool)
    assert opened.engine.counts.prefill == 3 * sum(len(p.prompt.ids) for p in problems)


def test_a_seed_draws_again_and_the_model_may_end(opened):
    asked = opened.render([{"role": "user", "content": "Say hi."}], True)
    prompt, nearly = opened.engine.encode(asked), opened.engine.encode(asked + "Hi! How can I help you today?")
    draws = [Draw(prompt, seed, Sampling(0.8), 8) for seed in (1, 1, 2)] + [Draw(nearly, 0, Sampling(0.0), 8)]
    for ticket, draw in enumerate(draws):
        opened.engine.submit(ticket, draw)
    replies = {}
    while batch := opened.engine.poll():
        replies |= dict(batch)
    assert not any(isinstance(reply, Failure) for reply in replies.values())
    assert replies[0] == replies[1] != replies[2] and not replies[0].eos
    assert replies[3].eos and replies[3].text == "" and replies[3].ends == (0,) and replies[3].work.decode == 1


def test_what_it_cannot_do_is_refused(opened):
    with pytest.raises(ValueError, match="cannot score"):
        opened.engine.submit(0, Score(opened.engine.encode("a"), "b"))
    with pytest.raises(ValueError, match="cannot continue"):
        opened.engine.submit(0, Draw(opened.engine.encode("a"), 0, Sampling(), 9, have_text=" b"))


def test_a_wrong_model_or_address_is_named(server):
    with pytest.raises(RuntimeError, match=r"for model 'other'.*pinned to"):
        connect(server, model="other")
    with pytest.raises(RuntimeError, match=r"at http://127\.0\.0\.1:9 does not answer"):
        connect(server, url="http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match=f"vllm server at {server[0]} does not answer|does not serve"):
        connect(server, what="vllm")
