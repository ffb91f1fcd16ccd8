"""Scores and probes are those of plain forward passes, and cost what is new to the engine."""

import random

import pytest
import torch
from tiny import engine, logits_of, pairs, prompt, save, save_adapter, serve, tokenizer

from extratime.models.engines.hf import HFEngine
from extratime.models.load import load
from extratime.models.request import Completion, Draw, Failure, Probe, Prompt, Read, Sampling, Score, Work

TOKENIZER = tokenizer()
QUESTION = "<|im_end|>better?"
ASKED = tuple(TOKENIZER(QUESTION).input_ids)
TARGETS = ("a", "b", "12")
IDS = [TOKENIZER(t).input_ids[0] for t in TARGETS]


def plain_score(made, ask, said):
    told = logits_of(made, (*ask.ids, *said)).log_softmax(-1)[len(ask.ids) - 1 : -1]
    return told.gather(1, torch.tensor(said)[:, None])[:, 0].tolist()


def drawn(runs, ask, tokens, seed=0):
    """A completion that the engine has read itself."""
    (reply,) = serve(runs, [Draw(ask, seed, Sampling(), tokens)])
    return Completion(ask, reply.text, len(reply.ends), reply.tokens)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model, a plain LoRA and an activated one on it."""
    at = tmp_path_factory.mktemp("models")
    base = save(at / "base", scale=0.15)
    return base, save_adapter(base, at / "lora"), save_adapter(base, at / "alora", invocation=ASKED[:4])


@pytest.fixture
def runs(folders):
    base, lora, alora = folders
    loaded = load(base, adapters={"lora": lora, "alora": alora})
    loaded.model.generation_config.eos_token_id = None
    loaded.tokenizer.eos_token = None
    return HFEngine(loaded, slots=4)


# Scores


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_scores_are_those_of_a_plain_pass(kind):
    runs = engine(kind, scale=0.15)
    asks = [
        Score(prompt(n, n), text)
        for n, text in ((1, "x"), (9, "abc12\n\n yes"), (30, "é"), (9, "other"), (5, "a" * 90))
    ]
    for ask, reply in zip(asks, serve(runs, asks), strict=True):
        said = TOKENIZER(ask.continuation).input_ids
        assert list(reply.values) == pytest.approx(plain_score(runs._run.model, ask.prompt, said), abs=1e-4)


def test_a_long_score_is_read_in_pieces():
    runs, ask = engine(context=2048, scale=0.15), prompt(20)
    said = "".join(random.Random(0).choice("xyz") for _ in range(900))
    (reply,) = serve(runs, [Score(ask, said)])
    assert list(reply.values) == pytest.approx(plain_score(runs._run.model, ask, TOKENIZER(said).input_ids), abs=1e-4)
    assert reply.work == Work(prefill=19 + 900, pairs=pairs(0, 919))


def test_scores_after_one_prompt_read_it_once():
    runs, ask = engine(), prompt(40)
    replies = serve(runs, [Score(ask, text) for text in ("yes", "nooo", "q")])
    assert runs.counts == sum((r.work for r in replies), Work())
    assert runs.counts.prefill == 39 + 3 + 4 + 1
    assert runs.counts.cached == 2 * 39
    assert runs.counts.decode == 0


def test_scores_of_nothing_and_after_nothing():
    runs = engine(context=32)
    nothing, lone, long = serve(runs, [Score(prompt(3), ""), Score(Prompt("", ()), "x"), Score(prompt(30), "abxyzd")])
    assert nothing == Read(())
    assert isinstance(lone, Failure) and "empty prompt" in lone.error
    assert isinstance(long, Failure) and "context is 32" in long.error


def test_scores_are_answered_between_draws():
    runs = engine(slots=2, eos=False, scale=0.15)
    runs.submit("draw", Draw(prompt(6), 0, Sampling(), 200))
    runs.submit("short", Draw(prompt(6), 1, Sampling(), 3))
    assert [ticket for ticket, _ in runs.poll()] == ["short"]
    runs.submit("score", Score(prompt(8), "yes"))
    ((ticket, reply),) = runs.poll()
    assert ticket == "score"
    said = TOKENIZER("yes").input_ids
    assert list(reply.values) == pytest.approx(plain_score(runs._run.model, prompt(8), said), abs=1e-4)
    ((_, whole),) = runs.poll()
    (alone,) = serve(engine(eos=False, scale=0.15), [Draw(prompt(6), 0, Sampling(), 200)])
    assert whole.tokens == alone.tokens


def test_cancelled_questions_are_not_answered():
    runs = engine()
    runs.submit("a", Score(prompt(3), "x"))
    assert runs.cancel("a") is None
    assert runs.poll() == []


# Probes of the plain model


def test_a_probe_is_the_softmax_after_the_question(runs):
    plain = runs._run.model.get_base_model()
    said = [drawn(runs, prompt(n, n), 12, n) for n in (3, 17, 30)]
    for completion, reply in zip(said, serve(runs, [Probe(c, QUESTION, TARGETS) for c in said]), strict=True):
        with runs._run.model.disable_adapter():
            logits = logits_of(plain, (*completion.prompt.ids, *completion.tokens, *ASKED))
        assert list(reply.values) == pytest.approx(logits[-1].softmax(-1)[IDS].tolist(), rel=1e-3)


def test_a_probe_without_ids_or_question_is_read_from_text(runs):
    completion = Completion(Prompt("ab"), "c12", 2)
    by_text, bare = serve(runs, [Probe(completion, QUESTION, TARGETS), Probe(completion, "", TARGETS)])
    ids = tuple(TOKENIZER("ab").input_ids + TOKENIZER("c12").input_ids)
    with runs._run.model.disable_adapter():
        for reply, path in ((by_text, ids + ASKED), (bare, ids)):
            wanted = logits_of(runs._run.model, path)[-1].softmax(-1)[IDS].tolist()
            assert list(reply.values) == pytest.approx(wanted, rel=1e-3)


def test_a_probe_reads_the_question_only():
    runs = engine(eos=False)
    completion = drawn(runs, prompt(20), 12)
    # The token drawn last has not been through the model.
    (first,) = serve(runs, [Probe(completion, QUESTION, TARGETS)])
    assert first.work == Work(prefill=len(ASKED) + 1, cached=31, pairs=pairs(31, len(ASKED) + 1))
    more = drawn(runs, prompt(20), 20)
    (inner,) = serve(runs, [Probe(Completion(more.prompt, "", 12, more.tokens[:12]), QUESTION, TARGETS)])
    assert inner.work == Work(prefill=len(ASKED), cached=32, pairs=pairs(32, len(ASKED)))
    assert inner.values == pytest.approx(first.values, rel=1e-4)


def test_a_probe_changes_no_path():
    runs, draw = engine(eos=False), Draw(prompt(9), 0, Sampling(), 30)
    (part,) = serve(runs, [Draw(prompt(9), 0, Sampling(), 14)])
    serve(runs, [Probe(Completion(draw.prompt, part.text, 14, part.tokens), QUESTION, TARGETS)])
    (rest,) = serve(runs, [Draw(prompt(9), 0, Sampling(), 30, have=part.tokens)])
    assert rest.work.prefill == 0
    assert part.tokens + rest.tokens == serve(engine(eos=False), [draw])[0].tokens


def test_wrong_probes_are_refused_at_once(runs):
    completion = Completion(prompt(3), "x", 1)
    with pytest.raises(ValueError, match="'yes' is 3 tokens"):
        runs.submit(0, Probe(completion, QUESTION, ("yes",)))
    with pytest.raises(ValueError, match="no adapter 'other' is loaded; there are: lora, alora"):
        runs.submit(0, Probe(completion, QUESTION, TARGETS, "other"))
    with pytest.raises(ValueError, match="does not contain what switches 'alora' on"):
        runs.submit(0, Probe(completion, "other", TARGETS, "alora"))
    with pytest.raises(ValueError, match="there are: none"):
        engine().submit(0, Probe(completion, QUESTION, TARGETS, "lora"))


# Probes under adapters


def asked_of_adapter(folder, base, ids):
    """Probabilities of the targets by PEFT itself, adapter on."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()
    return logits_of(made, ids)[-1].softmax(-1)[IDS].tolist()


@pytest.mark.parametrize("name", ["lora", "alora"])
def test_a_probe_under_an_adapter_is_what_peft_says(runs, folders, name):
    base, *adapters = folders
    folder = dict(zip(("lora", "alora"), adapters, strict=True))[name]
    said = [drawn(runs, prompt(n, n), 10 + n, n) for n in (4, 11, 19)]
    replies = serve(runs, [Probe(c, QUESTION, TARGETS, name) for c in said])
    plain = serve(runs, [Probe(c, QUESTION, TARGETS) for c in said])
    for completion, reply, other in zip(said, replies, plain, strict=True):
        wanted = asked_of_adapter(folder, base, (*completion.prompt.ids, *completion.tokens, *ASKED))
        assert list(reply.values) == pytest.approx(wanted, rel=1e-3)
        assert reply.values != pytest.approx(other.values, rel=0.05)


def test_an_activated_adapter_reads_the_question_only(runs):
    completion = drawn(runs, prompt(25), 10)
    serve(runs, [Draw(completion.prompt, 0, Sampling(), 12, have=completion.tokens)])
    (reply,) = serve(runs, [Probe(completion, QUESTION, TARGETS, "alora")])
    assert reply.work == Work(prefill=len(ASKED), cached=35, pairs=pairs(35, len(ASKED)))


def test_questions_of_different_lengths_switch_an_adapter_on_where_it_belongs(runs, folders):
    whole, part = drawn(runs, prompt(25), 10), drawn(runs, prompt(25), 14)
    inner = Completion(part.prompt, "", 6, part.tokens[:6])
    replies = serve(runs, [Probe(c, QUESTION, TARGETS, "alora") for c in (part, inner)])
    # One of them was read on already, so its last token is in the cache.
    assert [r.work.prefill for r in replies] == [len(ASKED) + 1, len(ASKED)]
    assert whole.tokens == part.tokens[:10]
    for completion, reply in zip((part, inner), replies, strict=True):
        wanted = asked_of_adapter(folders[2], folders[0], (*completion.prompt.ids, *completion.tokens, *ASKED))
        assert list(reply.values) == pytest.approx(wanted, rel=1e-3)


def test_paths_read_under_an_adapter_are_not_taken_for_the_policys(runs, folders):
    parts = sorted((drawn(runs, prompt(9, n), 10, n) for n in (1, 2)), key=lambda c: c.prompt.ids)
    # Questions of such different lengths are answered one after the other, in the same row.
    serve(runs, [Probe(c, QUESTION * n, TARGETS, "lora") for c, n in zip(parts, (1, 5), strict=True)])
    rests = serve(runs, [Draw(c.prompt, 0, Sampling(0.0), 24, have=c.tokens) for c in parts])
    alone = serve(HFEngine(load(folders[0])), [Draw(c.prompt, 0, Sampling(0.0), 24, have=c.tokens) for c in parts])
    for rest, wanted in zip(rests, alone, strict=True):
        assert rest.logprobs[: len(wanted.ends)] == pytest.approx(wanted.logprobs, abs=1e-4)


def test_a_plain_adapter_reads_again_what_is_new_to_it(runs):
    long = drawn(runs, prompt(25), 20)
    parts = [Completion(long.prompt, "", n, long.tokens[:n]) for n in (8, 14, 20)]
    works = [serve(runs, [Probe(part, QUESTION, TARGETS, "lora")])[0].work for part in parts]
    # A response's last token is read together with the question, and again when the response has grown.
    assert [w.prefill for w in works] == [33 + len(ASKED), 7 + len(ASKED), 7 + len(ASKED)]
    assert [w.cached for w in works] == [0, 32, 38]


def test_an_adapter_leaves_the_policy_as_it_is(runs, folders):
    draw = Draw(prompt(9), 5, Sampling(), 24)
    alone = HFEngine(load(folders[0]))
    (before,) = serve(runs, [draw])
    completion = Completion(draw.prompt, "", 24, before.tokens)
    for name in ("lora", "alora", None):
        serve(runs, [Probe(completion, QUESTION, TARGETS, name)])
    (again,) = serve(runs, [Draw(prompt(9), 5, Sampling(), 24)])
    assert again.tokens == before.tokens
    assert again.logprobs == pytest.approx(before.logprobs, abs=1e-5)
    (bare,) = serve(alone, [draw])
    assert bare.tokens == before.tokens[: len(bare.tokens)]
    assert list(bare.logprobs) == list(before.logprobs[: len(bare.logprobs)])
    assert alone.fingerprint == runs.fingerprint


def test_probes_of_all_kinds_together_are_each_answered(runs):
    said = [drawn(runs, prompt(n, n), 9, n) for n in range(3, 40)]
    asks = [Probe(c, QUESTION, TARGETS, (None, "lora", "alora")[i % 3]) for i, c in enumerate(said)]
    together = serve(runs, asks)
    for ask, reply in zip(asks, together, strict=True):
        assert reply.values == pytest.approx(serve(runs, [ask])[0].values, rel=1e-3)
