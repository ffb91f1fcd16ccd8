"""The embedded model: made once, whole, and drawn from like `generate`."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tiny import serve

from extratime.models.engines.hf import HFEngine
from extratime.models.load import embedded_folder, load
from extratime.models.request import Completion, Draw, Probe, Sampling, Score

pytestmark = pytest.mark.slow
pytest.importorskip("gguf")
ASKS = ["What is 17 + 25?", "Name a colour of the sky and say why it has it.", "Hi"]


@pytest.fixture(scope="module")
def loaded():
    return load(dtype="float32", chat=True)


@pytest.fixture(scope="module")
def runs(loaded):
    return HFEngine(loaded, slots=2)


def rendered(loaded, ask):
    chat = [{"role": "user", "content": ask}]
    return loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def test_greedy_is_generate_and_makes_sense(loaded, runs):
    asks = [runs.encode(rendered(loaded, ask)) for ask in ASKS]
    replies = serve(runs, [Draw(ask, 0, Sampling(0.0), 24) for ask in asks])
    for ask, reply in zip(asks, replies, strict=True):
        ids = torch.tensor([ask.ids])
        assert ask.ids == tuple(loaded.tokenizer(ask.text).input_ids)
        with torch.inference_mode():
            out = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
        wanted = out[0, len(ask.ids) :]
        assert list(reply.tokens) == wanted[: len(reply.tokens)].tolist()
        assert len(wanted) == len(reply.ends)
        assert reply.text == loaded.tokenizer.decode(wanted, skip_special_tokens=True)
    assert replies[0].text.startswith("17 + 25 = ")


def test_scores_and_probes_are_those_of_a_plain_pass(loaded, runs):
    ask = runs.encode(rendered(loaded, ASKS[0]))
    said = " 17 + 25 = 42."
    question = "<|im_end|>\n<|im_start|>user\nIs that right?<|im_end|>\n<|im_start|>assistant\n"
    score, probe = serve(runs, [Score(ask, said), Probe(Completion(ask, said, 9), question, ("Yes", "No"))])
    tokens = loaded.tokenizer(said).input_ids
    asked = [*ask.ids, *tokens, *loaded.tokenizer(question).input_ids]
    with torch.inference_mode():
        told = loaded.model(torch.tensor([asked])).logits[0].log_softmax(-1)
    wanted = [told[len(ask.ids) - 1 + i, t].item() for i, t in enumerate(tokens)]
    assert list(score.values) == pytest.approx(wanted, abs=1e-3)
    targets = [loaded.tokenizer(t).input_ids[0] for t in ("Yes", "No")]
    assert list(probe.values) == pytest.approx(told[-1].exp()[targets].tolist(), rel=1e-2)


def test_the_folder_is_an_ordinary_checkpoint():
    folder = embedded_folder()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert str(os.path.expanduser("~")) not in json.dumps(config)


@pytest.mark.timeout(600)
def test_two_processes_at_once_make_one_whole_folder(tmp_path):
    code = "from extratime.models.load import load; print(load(dtype='float32').fingerprint)"
    env = os.environ | {"EXTRATIME_CACHE": str(tmp_path)}
    makers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) for _ in "ab"]
    marks = {maker.communicate(timeout=580)[0].split()[-1] for maker in makers}
    assert marks == {load(dtype="float32").fingerprint}
    assert [p.name for p in tmp_path.iterdir()] == [embedded_folder().name]
