"""Recipes on servers: how they start, what the tokenizer is for, what is refused, and a whole run with its replay."""

import json

import pytest
import tiny
from stub_server import Stub
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from extratime.evaluate.grid import EngineSpec, parse
from extratime.evaluate.named import RecipeError
from extratime.models import manifest
from extratime.models.engines.hf import HFEngine
from extratime.models.engines.open import open_engine, open_replay
from extratime.models.engines.openai import _HELLO, Endpoint, OpenAIEngine
from extratime.models.load import load
from extratime.models.request import Draw, Prompt, Sampling
from extratime.models.self_eval import SelfEval


def codes(bos=True):
    """The stub's own tokens: an id for each ASCII character, and id 1 before any text."""
    core = Tokenizer(models.WordLevel({chr(i): i for i in range(128)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if bos:
        core.post_processor = processors.TemplateProcessing("\x01 $A", special_tokens=[("\x01", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="\x01", chat_template=tiny.CHATML)


def spec(stub, tokenizer=None, **said):
    return EngineSpec("openai", server=stub.kind, url=stub.url, tokenizer=tokenizer and str(tokenizer), **said)


@pytest.fixture
def folder(tmp_path):
    codes().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(("kind", "sent"), [("vllm", [1, 97, 98]), ("transformers", "ab")])
def test_prompts_are_read_by_the_named_tokenizer(kind, sent, folder):
    with Stub(kind, bos=1) as stub:
        opened = open_engine("toy", {}, spec(stub, folder, slots=3))
        engine = opened.engine
        assert engine.profile.concurrency == 3
        for text in ("ab", "\x01ab"):
            assert engine.encode(text) == Prompt(text, (1, 97, 98))
            engine.submit(text, Draw(engine.encode(text), 0, Sampling(), 5))
        assert len(engine.poll()) + len(engine.poll()) == 2
        assert [arrival.body["prompt"] for arrival in stub.arrivals[-2:]] == [sent, sent]
        assert opened.render([{"role": "user", "content": "ab"}], True).startswith("<|im_start|>user\nab")
        engine.close()


@pytest.mark.parametrize("kind", ("vllm", "transformers"))
def test_another_models_tokenizer_is_refused(kind, tmp_path):
    codes(bos=False).save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "tiny")
    with Stub(kind, bos=1) as stub:
        for name in ("tiny", "other") if kind == "transformers" else ("tiny",):
            with pytest.raises(RuntimeError, match=r"with other tokens than .*set `tokenizer` to the one of 'toy'"):
                open_engine("toy", {}, spec(stub, tmp_path / name))
        with pytest.raises(FileNotFoundError, match="no tokenizer"):
            open_engine("toy", {}, spec(stub, tmp_path / "nothing"))
        with pytest.raises(ValueError, match="switches no adapters: leave out a, b"):
            open_engine("toy", {"a": "x", "b": "y"}, spec(stub))


def test_a_full_checkpoints_manifest_tells_the_question(folder):
    manifest.write(folder, manifest.Manifest("self_eval", "full", "embedded", self_eval=SelfEval()))
    with Stub("vllm", bos=1) as stub:
        opened = open_engine("toy", {}, spec(stub, folder))
        (said,) = opened.known["self_eval"]
        assert said["adapter"] is None and SelfEval().question in said["question"]
        opened.engine.close()


def test_a_configuration_beside_the_tokenizer_tells_the_model_s_sizes(folder, tmp_path):
    base = tiny.save(tmp_path / "base")
    config = load(base).model.config
    (folder / "config.json").write_text(config.to_json_string(use_diff=False))
    with Stub("vllm", bos=1) as stub:
        opened = open_engine("toy", {}, spec(stub, folder))
        assert opened.engine.profile.shape == HFEngine(load(base)).profile.shape
        opened.engine.close()
        (folder / "config.json").unlink()
        opened = open_engine("toy", {}, spec(stub, folder))
        assert opened.engine.profile.shape is None
        opened.engine.close()


def test_an_adapter_beside_other_weights_than_it_was_trained_with_is_refused(tmp_path):
    base = tiny.save(tmp_path / "base")
    adapter = tiny.save_adapter(base, tmp_path / "adapter", invocation=[5, 6])
    right, wrong = manifest.hash_weights(base), "0" * 64
    for told in (right, None, wrong):
        manifest.write(adapter, manifest.Manifest("self_eval", "alora", str(base), base_sha256=told))
        for name, beside in ((str(adapter), {}), (str(base), {"mine": str(adapter)})):
            if told != wrong:
                open_engine(name, beside, EngineSpec()).engine.close()
                continue
            with pytest.raises(ValueError, match=r"adapter '(mine|self_eval)' in .* was trained beside other weights"):
                open_engine(name, beside, EngineSpec())


def recipe(stub, output, **said):
    engine = {"kind": "openai", "server": stub.kind, "url": stub.url, "slots": 16}
    plain = {"model": "toy", "tasks": ["sums_easy"], "output": str(output), "engine": engine, "limit": 3}
    return plain | {"strategies": ["self_consistency"], "budgets": [4], "max_tokens": 12} | said


def test_a_chat_without_a_template_is_refused(tmp_path):
    with Stub("transformers") as stub:
        with pytest.raises(RecipeError, match=r"set engine\.tokenizer to .* or chat: false"):
            parse(recipe(stub, tmp_path))
        parse(recipe(stub, tmp_path, chat=False))
        with pytest.raises(RecipeError, match="engine: kind must be hf, early_exit, diffusion or openai, not 'vllm'"):
            parse(recipe(stub, tmp_path, engine={"kind": "vllm"}))
        assert not stub.arrivals


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("transformers", "vllm"))
def test_a_recipe_runs_on_a_server_and_replays_without_it(kind, folder, tmp_path):
    from extratime.evaluate.run import run_recipe

    with Stub(kind, bos=1) as stub:
        said = recipe(stub, tmp_path / "run")
        said["engine"]["tokenizer"] = str(folder)
        ran = run_recipe(parse(said))
        prompts = {str(arrival.body["prompt"]) for arrival in stub.arrivals[1:]}
    results = (ran / "results" / "0-of-1.jsonl").read_text()
    assert len(prompts) == 3 and len(results.splitlines()) == 3
    assert all("<|im_start|>user" in json.loads(line)["question"] for line in results.splitlines())
    assert all(json.loads(line)["cost"]["prefill"] > 0 for line in results.splitlines())
    run_recipe(parse(said), replay=True)
    assert (ran / "results" / "0-of-1.jsonl").read_text() == results


def test_a_replay_needs_the_tokenizer_where_a_server_read_prompts(tmp_path):
    with Stub("vllm") as stub:
        opened = open_engine("toy", {}, spec(stub))
        opened.save(tmp_path)
        opened.engine.close()
    with pytest.raises(FileNotFoundError, match=r"set engine\.tokenizer"):
        open_replay(tmp_path).engine.encode("ab")
    with Stub("transformers") as stub:
        opened = open_engine("toy", {}, spec(stub))
        opened.save(tmp_path)
        opened.engine.close()
    assert open_replay(tmp_path).engine.encode("ab") == Prompt("ab")


def test_start_names_what_is_wrong():
    with Stub("vllm") as stub:
        url = stub.url
        with pytest.raises(RuntimeError, match=r"does not serve 'other' but \['adapter', 'toy'\]"):
            OpenAIEngine(Endpoint("other", "vllm", url))
    with pytest.raises(RuntimeError, match=f"server at {url} does not answer"):
        OpenAIEngine(Endpoint("toy", "vllm", url))
    with Stub("transformers") as stub, pytest.raises(RuntimeError, match="HTTP 422"):
        OpenAIEngine(Endpoint("toy", "vllm", stub.url))
    with Stub("llama_cpp") as stub, pytest.raises(RuntimeError, match="does not answer like a vllm server"):
        OpenAIEngine(Endpoint("toy", "vllm", stub.url))
    with pytest.raises(ValueError, match="none of"):
        Endpoint("toy", "tgi")
    with pytest.raises(ValueError, match="http"):
        Endpoint("toy", "vllm", "127.0.0.1:8000")


def test_start_outlives_a_passing_fault():
    with Stub("vllm", faults={_HELLO: ["429", "500"]}) as stub:
        OpenAIEngine(Endpoint("toy", "vllm", stub.url, pause=0.01)).close()
        assert len(stub.arrivals) == 3
