"""The entropy of rollouts as a function of their temperature, and the temperature chosen for it."""

import json
import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from launch import reward_letters, train, write_yaml

from extratime.models import manifest
from extratime.models.tempnet import entropy
from extratime.train import temperature
from extratime.train.temperature import choose, counted, drawn_logits, mean_entropy, settle, solve


@pytest.fixture
def logits():
    return 3 * torch.randn(700, 50, generator=torch.Generator().manual_seed(0))


def test_entropy_is_the_mean_over_positions_of_the_tempered_law(logits):
    assert mean_entropy(logits, 1.0) == pytest.approx(entropy(logits.double(), 1.0).mean().item(), abs=1e-5)
    for told in (0.5, 1.5):
        law = torch.distributions.Categorical(logits=logits.double() / told)
        assert mean_entropy(logits, told) == pytest.approx(law.entropy().mean().item(), abs=1e-5)
        assert abs(mean_entropy(logits, told) - mean_entropy(logits, 1.0)) > 0.1


@pytest.mark.parametrize("told", [0.4, 1.0, 1.5])
def test_its_slope_is_the_mean_variance_of_the_logits_over_the_cubed_temperature(told, logits):
    law = (logits.double() / told).softmax(-1)
    mean = (law * logits).sum(-1, keepdim=True)
    variance = (law * (logits - mean) ** 2).sum(-1).mean().item()
    step = 1e-2
    slope = (mean_entropy(logits, told + step) - mean_entropy(logits, told - step)) / (2 * step)
    assert slope == pytest.approx(variance / told**3, rel=1e-2) and slope > 0


def test_half_precision_is_weighed_in_float32(logits):
    half = logits.bfloat16()
    assert mean_entropy(half, 0.7) == pytest.approx(mean_entropy(half.float(), 0.7), abs=1e-6)


@pytest.mark.parametrize("target", [0.5, 1.0, 2.0])
def test_bisection_finds_the_target(target, logits):
    assert mean_entropy(logits, solve(logits, target)) == pytest.approx(target, abs=1e-3)


def test_what_no_temperature_gives_is_refused(logits):
    even = torch.zeros(9, 50)
    assert [mean_entropy(even, told) for told in (0.3, 1.0, 1.6)] == pytest.approx([math.log(50)] * 3)
    for given, target in ((even, 0.3), (logits, 3.9), (logits, 0.01)):
        with pytest.raises(ValueError, match=rf"entropy: {target:g} nats cannot be had: the policy's is \d\.\d+ at"):
            solve(given, target)


def test_contexts_that_change_with_the_temperature_are_drawn_again(logits):
    drawn = []

    def draw(told):
        drawn.append(told)
        return logits / (1 + 0.2 * told)

    choice = choose(draw, 1.0)
    assert drawn[0] == 1.0 and len(drawn) <= 4 and drawn[-1] == choice.temperature
    assert choice.entropy == pytest.approx(1.0, abs=0.03) and choice.target == 1.0
    drawn.clear()
    assert choose(draw, 1.0, start=choice.temperature, rounds=1).entropy == pytest.approx(1.0, abs=0.03)
    assert len(drawn) == 2


def test_pads_never_count():
    ended = torch.tensor([[5, 6, 9, 0, 0], [9, 0, 0, 0, 0], [5, 5, 5, 5, 5], [5, 9, 9, 9, 0]])
    assert counted(ended, 9).sum(1).tolist() == [3, 1, 5, 2]
    model, tokenizer = tiny.model(), tiny.tokenizer()
    batch = [tokenizer("1+1=")["input_ids"], tokenizer("what is 22+33?")["input_ids"]]
    torch.manual_seed(0)
    found = drawn_logits(model, tokenizer, batch, 1.0, 6)
    torch.manual_seed(0)
    padded = tokenizer.pad({"input_ids": batch}, padding_side="left", return_tensors="pt")
    whole = model.generate(**padded, do_sample=True, top_k=0, max_new_tokens=6)
    expected, width = [], padded["input_ids"].shape[1]
    for ids, row in zip(batch, whole.tolist(), strict=True):
        said = row[width:]
        said = said[: said.index(263) + 1] if 263 in said else said
        expected.append(tiny.logits_of(model, [*ids, *said])[len(ids) - 1 : -1])
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=1e-4)


def settings(folder, **more):
    told = {"output_dir": str(folder), "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
    told |= {"generation_kwargs": None, "deepspeed_plugin": None, "temperature": 1.0, "device": "cpu", "seed": 3}
    return SimpleNamespace(**told | {"per_device_train_batch_size": 16, "max_completion_length": 12} | more)


PROMPTS = [f"{a}+{b}=" for a in range(16) for b in range(16)]


@pytest.mark.parametrize("target", [1.0, 2.5])
def test_fresh_rollouts_have_the_entropy_asked_for_and_the_folder_keeps_the_choice(target, tmp_path):
    model, tokenizer = tiny.model(scale=0.5), tiny.tokenizer()
    before = torch.random.get_rng_state()
    told = settle(settings(tmp_path, entropy=target), model, tokenizer, PROMPTS)
    assert torch.equal(before, torch.random.get_rng_state())
    kept = json.loads((tmp_path / temperature.NAME).read_text())
    assert kept["temperature"] == told and kept["entropy"] == pytest.approx(target, abs=0.15)
    torch.manual_seed(9)
    fresh = [drawn_logits(model, tokenizer, [tokenizer(text)["input_ids"] for text in PROMPTS], told, 12)]
    assert mean_entropy(torch.cat(fresh), told) == pytest.approx(target, abs=0.15)
    assert settle(settings(tmp_path, entropy=target), None, None, []) == told
    again = settle(settings(tmp_path, entropy=target + 0.3), model, tokenizer, PROMPTS)
    assert again > told


def test_a_chat_s_prompt_is_rendered(tmp_path):
    chat = [[{"role": "user", "content": text}] for text in PROMPTS[:2]]
    (ids, _) = temperature.encoded(chat, tiny.tokenizer())
    assert tiny.tokenizer().decode(ids).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "cut",
    [{"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}, {"repetition_penalty": 1.1}, {"generation_kwargs": {"a": 1}}],
)
def test_a_cut_law_with_a_target_is_refused(cut, tmp_path):
    with pytest.raises(ValueError, match=rf"entropy is that of the whole distribution, which {next(iter(cut))} would"):
        settle(settings(tmp_path, entropy=0.3, **cut), None, None, [])


def test_a_sharded_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="under ZeRO-3 no process holds a whole policy"):
        settle(settings(tmp_path, entropy=0.3, deepspeed_plugin=SimpleNamespace(zero_stage=3)), None, None, [])


def test_a_run_draws_at_the_chosen_temperature_and_says_so(tmp_path):
    tiny.save(tmp_path / "base", scale=0.5)
    told = {"model": tmp_path / "base", "tasks": ["sums_easy"], "problems": 16, "num_generations": 2, "max_steps": 2}
    told |= {"per_device_train_batch_size": 4, "max_completion_length": 6, "use_cpu": True, "entropy": 1.5}
    file = write_yaml(tmp_path / "r.yaml", **told, report_to="none")
    code, said = train(tmp_path, "grpo", "--config", file, "--output_dir", tmp_path / "out", before=reward_letters)
    assert code == 0, said
    kept = json.loads((tmp_path / "out" / temperature.NAME).read_text())
    assert f"rollouts at temperature {kept['temperature']:.3f}: entropy {kept['entropy']:.3f} nats" in said
    assert temperature.NAME in manifest.verify(tmp_path / "out").files
