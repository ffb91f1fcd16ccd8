"""A reward model behind a server that fails in every way: its rewards are those of the logits, or an error by name."""

import json
import math
import re

import pytest
import tiny
from stub_server import Stub, logit
from transformers import LlamaForSequenceClassification, LlamaForTokenClassification

from extratime.evaluate.grid import VerifierSpec, parse
from extratime.evaluate.named import RecipeError
from extratime.evaluate.run import run_recipe
from extratime.models import manifest
from extratime.models.engines.open import _verifier
from extratime.models.manifest import Manifest
from extratime.models.request import Completion, Failure, Probe, Prompt, Score
from extratime.models.steps import Steps, reader

SEPARATOR = "\n"


@pytest.fixture
def save(tmp_path):
    """A folder of tokenizer and configuration; the weights are the server's."""

    def save(kind=LlamaForTokenClassification, labels=1, problem=None, context=64):
        config = tiny.model(context=context).config
        config.num_labels, config.problem_type, config.architectures = labels, problem, [kind.__name__]
        config.save_pretrained(tmp_path / "toy")
        tiny.tokenizer().save_pretrained(tmp_path / "toy")
        return str(tmp_path / "toy")

    return save


def engine(stub, folder, **more):
    return _verifier(VerifierSpec("toy", url=stub.url, tokenizer=folder, **more))


def ask(engine, *texts):
    for i, (prompt, said) in enumerate(texts):
        engine.submit(i, Score(Prompt(prompt), said))
    told = {}
    while answered := engine.poll():
        told |= dict(answered)
    return [told[i] for i in range(len(texts))]


def expected(prompt, said, tell):
    ids, ends = reader(tiny.tokenizer(), SEPARATOR)(prompt, said)
    return [tell(logit(list(ids[: end + 1]))) for end in ends]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


TEXTS = [("q?", "one\ntwo"), ("q?", "three\n"), ("why?", "a\nb\nc")]


@pytest.mark.parametrize(
    ("labels", "problem", "tell"),
    [(1, None, float), (1, "multi_label_classification", sigmoid), (2, None, lambda x: sigmoid(-2 * x))],
)
def test_steps_are_read_off_the_logits_of_their_last_tokens(save, labels, problem, tell):
    with Stub(labels=labels) as stub:
        made = engine(stub, save(labels=labels, problem=problem), separator=SEPARATOR)
        for reply, text in zip(ask(made, *TEXTS), TEXTS, strict=True):
            assert reply.values == pytest.approx(expected(*text, tell), abs=1e-5)
            assert reply.work.prefill == len(reader(tiny.tokenizer(), SEPARATOR)(*text)[0])
        sent = stub.arrivals[-1].body
        assert (sent["task"], sent["use_activation"], sent["model"]) == ("token_classify", False, "toy")
        assert made.counts.prefill == sum(len(a.body["input"]) for a in stub.arrivals[1:]) and made.seconds["prefill"]
        made.close()


def test_a_manifest_tells_what_ends_a_step(save, tmp_path):
    folder = save()
    manifest.write(tmp_path / "toy", Manifest("prm", "full", "base", steps=Steps(SEPARATOR)))
    with Stub() as stub:
        made = engine(stub, folder)
        (reply,) = ask(made, TEXTS[0])
        assert reply.values == pytest.approx(expected(*TEXTS[0], float))
        made.close()


def test_a_whole_text_is_one_number(save):
    with Stub() as stub:
        made = engine(stub, save(LlamaForSequenceClassification))
        replies = ask(made, *TEXTS)
        for reply, (prompt, said) in zip(replies, TEXTS, strict=True):
            ids = tiny.tokenizer()(prompt + said, add_special_tokens=False).input_ids
            assert reply.values == pytest.approx((logit(ids),))
        assert stub.arrivals[-1].body["task"] == "classify"
        made.close()


@pytest.mark.parametrize(
    "fault", ["500", "429", "reset", "html", "truncated", "one token less", "no data", "words", "too many labels"]
)
def test_a_fault_that_passes_changes_nothing(save, fault):
    ids, _ = reader(tiny.tokenizer(), SEPARATOR)(*TEXTS[0])
    with Stub(faults={ids: [fault, fault]}) as stub:
        made = engine(stub, save(), separator=SEPARATOR)
        replies = ask(made, *TEXTS)
        for reply, text in zip(replies, TEXTS, strict=True):
            assert reply.values == pytest.approx(expected(*text, float))
        assert sum(tuple(a.body["input"]) == ids for a in stub.arrivals) == 3
        assert made.counts == sum((r.work for r in replies[1:]), replies[0].work)
        made.close()


@pytest.mark.parametrize(
    ("fault", "why"),
    [("400", "HTTP 400"), ("one token less", r"tells of \d+ tokens where \d+ were sent"), ("nan", "NaN or infinity")],
)
def test_a_fault_that_stays_fails_its_own_text_and_is_never_a_low_reward(save, fault, why):
    ids, _ = reader(tiny.tokenizer(), SEPARATOR)(*TEXTS[1])
    with Stub(faults={ids: [fault] * 9}) as stub:
        made = engine(stub, save(), separator=SEPARATOR)
        first, second, third = ask(made, *TEXTS)
        assert isinstance(second, Failure) and re.search(why, second.error)
        for reply, text in ((first, TEXTS[0]), (third, TEXTS[2])):
            assert reply.values == pytest.approx(expected(*text, float))
        made.close()


def test_too_long_texts_and_texts_without_a_step_do_not_reach_the_server(save):
    with Stub() as stub:
        made = engine(stub, save(), separator=SEPARATOR)
        long, none, good = ask(made, ("q?", "x" * 100), ("q?", ""), TEXTS[0])
        assert isinstance(long, Failure) and "its context is 64" in long.error and none.values == ()
        assert len(good.values) == 2 and len(stub.arrivals) == 2
        with pytest.raises(ValueError, match="only scores; it cannot answer a Probe"):
            made.submit(9, Probe(Completion(Prompt("q?"), "a", 1), "?", ("a",)))
        made.close()


def test_a_cancelled_text_gets_no_reply(save):
    with Stub(delay=0.05) as stub:
        made = engine(stub, save(), separator=SEPARATOR)
        for i, (prompt, said) in enumerate([*TEXTS, ("q?", "x" * 100)]):
            made.submit(i, Score(Prompt(prompt), said))
        assert made.cancel(1) is None and isinstance(made.cancel(3), Failure)
        told = {}
        while answered := made.poll():
            told |= dict(answered)
        assert set(told) == {0, 2}
        made.close()


def test_what_cannot_be_served_is_said_at_the_start(save, tmp_path):
    folder = save()
    with Stub() as stub:
        with pytest.raises(RuntimeError, match=r"does not serve 'other' but \['adapter', 'toy'\]"):
            _verifier(VerifierSpec("other", url=stub.url, tokenizer=folder, separator=SEPARATOR))
        with pytest.raises(ValueError, match=r"convention rlhflow reads: leave verifier\.url out"):
            engine(stub, folder, convention="rlhflow")
        with pytest.raises(ValueError, match=r"set verifier\.separator"):
            engine(stub, folder)
        url = stub.url
    with pytest.raises(RuntimeError, match="does not answer for model 'toy'"):
        _verifier(VerifierSpec("toy", url=url, tokenizer=folder, separator=SEPARATOR))
    with pytest.raises(ValueError, match="must hold no password"):
        _verifier(VerifierSpec("toy", url="http://a:b@127.0.0.1:1", tokenizer=folder, separator=SEPARATOR))
    with pytest.raises(FileNotFoundError, match="no tokenizer at /nowhere"):
        _verifier(VerifierSpec("toy", url=url, tokenizer="/nowhere", separator=SEPARATOR))
    said = {"model": "m", "tasks": ["sums_easy"], "strategies": ["greedy"], "output": "o"}
    with pytest.raises(RecipeError, match="verifier: dtype and device are the server's own"):
        parse(said | {"verifier": {"model": "m", "url": url, "dtype": "float32"}})


def test_a_recipe_s_verifier_may_be_served_and_replays(save, tmp_path):
    with Stub() as stub:
        said = {
            "model": str(tiny.save(tmp_path / "policy")),
            "verifier": {"model": "toy", "url": stub.url, "tokenizer": save(context=200), "separator": SEPARATOR},
            "tasks": ["sums_easy"],
            "strategies": [{"best_of_n": {"verify": "reward_model"}}],
            "budgets": [4],
            "max_tokens": 8,
            "limit": 3,
            "chat": False,
            "engine": {"dtype": "float32", "device": "cpu"},
            "output": str(tmp_path / "run"),
        }
        folder = run_recipe(parse(said))
    results = (folder / "results" / "0-of-1.jsonl").read_text()
    texts = {r["id"]: r["text"] for r in map(json.loads, (folder / "responses" / "0-of-1.jsonl").open())}
    for line in map(json.loads, results.splitlines()):
        wanted = [expected(line["question"], texts[name], float)[-1:] for name, _ in line["pool"]]
        assert [[w] if w is not None else [] for _, w in line["pool"]] == [pytest.approx(w) for w in wanted]
    run_recipe(parse(said | {"model": "/nowhere"}), replay=True)
    assert (folder / "results" / "0-of-1.jsonl").read_text() == results
