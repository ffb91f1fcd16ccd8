import json
from copy import deepcopy as copy
from types import SimpleNamespace

import pytest
import tiny
import torch
from launch import sums, write_rows, write_yaml
from safetensors.torch import load_file
from transformers import DataCollatorForSeq2Seq

from extratime.evaluate.grid import EngineSpec
from extratime.models import manifest
from extratime.models.engines.open import open_engine
from extratime.models.load import load
from extratime.models.request import Draw, Sampling
from extratime.models.tempnet import Temperatures, best_constant, entropy, loss, solve
from extratime.train import tempnet

CHAT = {
    "prompt": [{"role": "user", "content": "1+1?"}],
    "completion": [{"role": "assistant", "content": "2"}],
}


@pytest.mark.parametrize("row", [sums(1)[0], CHAT], ids=["text", "chat"])
def test_labels_stand_on_the_completion_and_its_end(row):
    tokenizer = tiny.tokenizer()
    made = tempnet.tokens(row, tokenizer, None)
    said = [label for label in made["labels"] if label != -100]
    words = row["completion"] if isinstance(row["completion"], str) else row["completion"][0]["content"]
    assert tokenizer.decode(said).strip() == words + "<|im_end|>"
    assert made["input_ids"][-len(said) :] == said
    short = tempnet.tokens(row, tokenizer, 5)
    assert short["input_ids"] == made["input_ids"][:5] and short["labels"] == made["labels"][:5]


def test_positions_are_those_before_the_labels():
    model, tokenizer = tiny.model().eval(), tiny.tokenizer()
    rows = [tempnet.tokens(row, tokenizer, None) for row in sums(5)]
    logits, labels = tempnet.positions(model, DataCollatorForSeq2Seq(tokenizer)(rows))
    expected = []
    for row in rows:
        at = [i - 1 for i, label in enumerate(row["labels"]) if label != -100]
        expected.append(tiny.logits_of(model, row["input_ids"])[at])
    assert labels.tolist() == [label for row in rows for label in row["labels"] if label != -100]
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-4, rtol=1e-4)


@pytest.fixture
def recipe(tmp_path):
    tiny.save(tmp_path / "base", scale=0.6)
    write_rows(tmp_path / "sums.jsonl", sums(1000))

    def file(**more):
        told = {"model": tmp_path / "base", "data": tmp_path / "sums.jsonl", "use_cpu": True, "report_to": "none"}
        told |= {"disable_tqdm": True, "per_device_train_batch_size": 32, "save_strategy": "no", "width": 128}
        file = write_yaml(tmp_path / "r.yaml", **told, **more)
        return ["--config", str(file), "--output_dir", str(tmp_path / "out")]

    return file


def test_it_learns_what_the_solver_knows_and_runs_beside_its_model(recipe, tmp_path):
    said = Temperatures(entropy=2.0, low=0.05, high=3.0, width=128, normalise=False)
    told = {"entropy": 2.0, "low": 0.05, "high": 3.0, "normalise": False}
    tempnet.main(recipe(**told, max_steps=400, learning_rate=0.003))
    made = manifest.verify(tmp_path / "out")
    assert (made.recipe, made.kind, made.base) == ("tempnet", "tempnet", str(tmp_path / "base"))
    assert made.temperatures == said
    model, tokenizer = load(tmp_path / "base").model, tiny.tokenizer()
    held = [tempnet.tokens(row, tokenizer, None) for row in sums(1200) if row not in sums(1000)]
    logits, labels = tempnet.positions(model, DataCollatorForSeq2Seq(tokenizer)(held))
    net = tempnet.tempnet.load(said, tmp_path / "out")

    def mean(tau):
        return loss(logits, labels, tau.float(), said.entropy).mean().item()

    constant = mean(torch.full((len(logits),), best_constant(logits, said)))
    oracle = mean(solve(logits, said))
    with torch.no_grad():
        tau = net(logits)
        wrong = net(logits.roll(7, 0))
    assert (constant - mean(tau)) / (constant - oracle) > 0.6
    assert (constant - mean(wrong)) / (constant - oracle) < 0.1
    assert (entropy(logits, tau) - said.entropy).abs().mean() < 0.5
    plain, cool = (open_engine(str(tmp_path / name), {}, EngineSpec()) for name in ("base", "out"))
    assert plain.engine.fingerprint != cool.engine.fingerprint
    asks = [
        [Draw(opened.engine.encode("1+1="), 5, law, 9) for law in (Sampling(0), Sampling())]
        for opened in (plain, cool)
    ]
    replies = [tiny.serve(opened.engine, ask) for opened, ask in zip((plain, cool), asks, strict=True)]
    assert tiny.same(replies[0][0], replies[1][0])
    assert replies[1][1].logprobs != replies[1][1].tempered


def test_it_begins_at_rows_of_all_kinds_though_tasks_come_in_turn(recipe, tmp_path, monkeypatch):
    """A first task whose answers are sure would set a temperature that no other task has."""
    seen = []
    monkeypatch.setattr(tempnet.TempNet, "settle", lambda self, logits: seen.append(len(logits)))
    short, long = ({"prompt": "?", "completion": "a" * n} for n in (1, 40))
    write_rows(tmp_path / "sums.jsonl", [short] * 100 + [long] * 100)
    tempnet.main(recipe(max_steps=1))
    assert seen[0] > 32 * len(tempnet.tokens(short, tiny.tokenizer(), None)["labels"])


def test_a_step_moves_units_of_the_first_layer_no_farther_the_wider_the_vocabulary(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(tempnet, "FAR", 0.25)
    begun = []
    settle = tempnet.TempNet.settle
    monkeypatch.setattr(tempnet.TempNet, "settle", lambda net, x: (settle(net, x), begun.append((copy(net), x))))
    tempnet.main(recipe(max_steps=1, learning_rate=0.01, lr_scheduler_type="constant"))
    (net, logits), weights = begun[0], load_file(tmp_path / "out/model.safetensors")
    share = 0.25 / net.features(logits).abs().sum(-1).mean().item()
    moved = {name: (weights[name] - old).abs().max().item() for name, old in net.state_dict().items()}
    assert share < 0.1
    assert moved["transformation.weight"] == pytest.approx(0.01 * share, rel=0.02)
    assert moved["projection.weight"] == pytest.approx(0.01, rel=0.02)


def test_a_part_set_apart_keeps_what_else_its_weights_were_told():
    net = tempnet.TempNet(Temperatures(width=4), 8)
    biases = [weight for name, weight in net.named_parameters() if name.endswith("bias")]
    others = [weight for name, weight in net.named_parameters() if not name.endswith("bias")]
    optimiser = torch.optim.SGD([{"params": others, "weight_decay": 0.1}, {"params": biases}], lr=1.0)
    tempnet.set_apart(optimiser, net.transformation, lr=0.5)
    told = {id(w): (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for w in g["params"]}
    assert told[id(net.transformation.weight)] == (0.5, 0.1) and told[id(net.transformation.bias)] == (0.5, 0.0)
    assert told[id(net.projection.weight)] == (1.0, 0.1) and told[id(net.projection.bias)] == (1.0, 0.0)


def test_a_policy_that_learns_with_its_network_is_saved_with_it(recipe, tmp_path):
    said = {"entropy": 2.0, "low": 0.05, "high": 3.0, "normalise": False, "joint": True}
    tempnet.main(recipe(max_steps=60, learning_rate=0.003, **said))
    out = tmp_path / "out"
    made = manifest.verify(out)
    assert (made.recipe, made.kind) == ("tempnet", "full") and tempnet.tempnet.BESIDE in made.files
    assert not [key for key in load_file(out / "model.safetensors") if key.startswith("tempnet")]
    rows = [tempnet.tokens(row, tiny.tokenizer(), None) for row in sums(100)]
    batch = DataCollatorForSeq2Seq(tiny.tokenizer())(rows)
    net = tempnet.tempnet.load(made.temperatures, out)
    losses = []
    for folder, tau in ((tmp_path / "base", lambda h: torch.ones(len(h))), (out, net)):
        logits, labels = tempnet.positions(load(folder).model, batch)
        with torch.no_grad():
            losses.append(loss(logits, labels, tau(logits), 2.0).mean().item())
    assert losses[1] < losses[0] - 0.5
    opened = open_engine(str(out), {}, EngineSpec())
    asks = [Draw(opened.engine.encode("1+1="), 5, law, 9) for law in (Sampling(0), Sampling())]
    greedy, drawn = tiny.serve(opened.engine, asks)
    ids = torch.tensor([opened.engine.encode("1+1=").ids])
    plain = load(out).model.generate(ids, max_new_tokens=9, do_sample=False)[0, ids.shape[1] :].tolist()
    assert list(greedy.tokens) == plain[: len(greedy.tokens)] and len(greedy.tokens) > 0
    assert drawn.logprobs != drawn.tempered


def test_the_schedule_moves_the_policy_alone(recipe, tmp_path):
    nets = []
    for rate in ("0", "0.01"):
        words = recipe(max_steps=3, learning_rate=0.0, joint=True)
        tempnet.main([*words, "--tempnet_learning_rate", rate, "--output_dir", str(tmp_path / rate)])
        held, base = load(tmp_path / rate).model.state_dict(), load(tmp_path / "base").model.state_dict()
        assert all(torch.equal(held[key], base[key]) for key in base)
        nets.append(load_file(tmp_path / rate / tempnet.tempnet.BESIDE))
    moved = (nets[1]["transformation.weight"] - nets[0]["transformation.weight"]).abs().max().item()
    assert moved == pytest.approx(0.03, rel=0.2)  # three full steps of Adam


def test_the_policy_s_gradient_in_joint_training_has_no_factor_of_the_temperature(recipe, tmp_path):
    policy = tiny.model()
    policy.tempnet = tempnet.TempNet(Temperatures(low=0.3, high=0.5, width=8), 264)
    batch = DataCollatorForSeq2Seq(tiny.tokenizer())([tempnet.tokens(row, tiny.tokenizer(), None) for row in sums(3)])
    session = SimpleNamespace(model=policy)
    logits, labels, tau = tempnet.JointTrainer.tempered(session, policy, batch)
    (slope,) = torch.autograd.grad(loss(logits, labels, tau, 1.0).sum(), logits, retain_graph=True)
    h = logits.detach() / tau.detach()[:, None]
    torch.testing.assert_close(slope, h.softmax(-1) - torch.nn.functional.one_hot(labels, 264), atol=1e-5, rtol=0)
    loss(logits, labels, tau, 1.0).mean().backward()
    assert all(weight.grad is not None for weight in policy.parameters())


def test_nothing_to_learn_from_is_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match="temperatures need 0 < low < high"):
        tempnet.main(recipe(max_steps=1, low=5.0))
    (tmp_path / "sums.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no rows"):
        tempnet.main(recipe(max_steps=1))


def test_the_folder_says_what_the_network_is(recipe, tmp_path):
    tempnet.main(recipe(max_steps=1, high=1.2))
    said = json.loads((tmp_path / "out" / manifest.NAME).read_text())
    assert said["temperatures"] == {"entropy": 1.0, "low": 0.01, "high": 1.2, "width": 128, "normalise": True}
    assert set(said["files"]) >= {"model.safetensors", "tokenizer.json"}


def test_sharding_the_model_is_refused(monkeypatch):
    for plugin in (None, SimpleNamespace(zero_stage=2)):
        tempnet.refuse_sharding(plugin)
    refused = r"neither ZeRO-3 nor FSDP can shard it: launch with recipes/accelerate/zero2\.yaml"
    with pytest.raises(ValueError, match=refused):
        tempnet.refuse_sharding(SimpleNamespace(zero_stage=3))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=refused):
        tempnet.refuse_sharding(None)
