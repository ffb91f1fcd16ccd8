import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from launch import sums, write_rows, write_yaml
from transformers import DataCollatorForSeq2Seq

from extratime.evaluate.grid import EngineSpec
from extratime.models import manifest
from extratime.models.early_exit import Controller, EarlyExit
from extratime.models.engines.early_exit import EarlyExitEngine
from extratime.models.engines.open import open_engine
from extratime.models.load import load
from extratime.models.request import Draw, Sampling, Work
from extratime.train import early_exit, run
from extratime.train.tempnet import tokens

RECIPES = sorted((Path(__file__).parents[2] / "recipes/early_exit").glob("*.yaml"))


def batch(rows=5):
    tokenizer = tiny.tokenizer()
    return DataCollatorForSeq2Seq(tokenizer)([tokens(row, tokenizer, None) for row in sums(rows)])


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_states_are_those_after_each_exit_and_last_what_the_head_reads(kind):
    model, inputs, seen = tiny.model(kind, layers=4), batch(), {}
    for number in (1, 3):
        model.model.layers[number - 1].register_forward_hook(lambda _, __, out, n=number: seen.update({n: out}))
    found, labels = early_exit.states(model, inputs, (1, 3))
    real = inputs["labels"][:, 1:] != -100
    for at, number in enumerate((1, 3)):
        assert torch.equal(found[at], seen[number][:, :-1][real])
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1][real]
    torch.testing.assert_close(model.lm_head(found[-1]), logits)
    assert labels.tolist() == inputs["labels"][:, 1:][real].tolist()


def test_the_translators_loss_is_the_sum_of_cross_entropies_and_right_is_by_the_likeliest():
    head, read, wanted = tiny.model().lm_head, torch.randn(3, 7, 32), torch.randint(0, 264, (7,))
    logs = head(read).log_softmax(-1)
    by_hand = -sum(logs[i, n, wanted[n]] for i in range(3) for n in range(7)) / 7
    torch.testing.assert_close(early_exit.translators_loss(head, read, wanted), by_hand)
    best = logs.argmax(-1)
    found = early_exit.right(head, list(read), best[1])
    assert found[1].all() and torch.equal(found, best == best[1])


@pytest.fixture
def recipe(tmp_path):
    tiny.save(tmp_path / "base", layers=3, scale=0.6)
    write_rows(tmp_path / "sums.jsonl", sums(200))

    def file(**more):
        told = {"model": tmp_path / "base", "data": tmp_path / "sums.jsonl", "use_cpu": True, "report_to": "none"}
        told |= {"disable_tqdm": True, "per_device_train_batch_size": 8, "save_strategy": "no", "exits": [1, 2]}
        told |= {"rank": 8, "weight_decay": 0.1}
        return ["--config", str(write_yaml(tmp_path / "r.yaml", **told | more)), "--output_dir", str(tmp_path / "out")]

    return file


def test_it_learns_and_runs_from_its_folder_alone(recipe, tmp_path):
    early_exit.main(recipe(max_steps=240, learning_rate=0.01, exit=0.5))
    said = manifest.verify(tmp_path / "out")
    assert (said.recipe, said.kind, said.base) == ("early_exit", "early_exit", str(tmp_path / "base"))
    assert said.early_exit == EarlyExit((1, 2), 8, 0.5, 1.0)
    model, made = load(tmp_path / "base").model, early_exit.early_exit.load(said.early_exit, tmp_path / "out")
    hidden, wanted = early_exit.states(model, batch(64), (1, 2))
    head, norm, plain = model.lm_head, model.model.norm, Controller(said.early_exit, 32)
    with torch.no_grad():
        before, after = (early_exit.translators_loss(head, c(hidden[:-1], norm)[0], wanted) for c in (plain, made))
        read, told = made(hidden[:-1], norm)
    assert after < before - 2
    labels = early_exit.early_exit.labels(early_exit.right(head, [*read, hidden[-1]], wanted))
    shares = labels.flatten().bincount(minlength=3) / labels.numel()
    by_share = -(shares[shares > 0] * shares[shares > 0].log()).sum().item()
    assert early_exit.early_exit.loss(told, labels).item() < by_share - 0.02

    opened = [open_engine(str(tmp_path / "out"), {}, EngineSpec(**spec)) for spec in ({}, {"kind": "early_exit"})]
    assert opened[0].engine.fingerprint == opened[1].engine.fingerprint
    assert isinstance(opened[0].engine, EarlyExitEngine) and opened[0].tokenizer is not None
    ask = Draw(opened[0].engine.encode("1+1="), 5, Sampling(0), 9)
    replies = [tiny.serve(each.engine, [ask])[0] for each in opened]
    assert replace(replies[0], work=Work()) == replace(replies[1], work=Work())


def test_the_translators_stand_still_while_the_classifier_learns(recipe, tmp_path):
    words = ["--lr_scheduler_type", "constant"]
    for steps in (4, 8):
        out = ["--output_dir", str(tmp_path / f"{steps}")]
        early_exit.main([*recipe(max_steps=steps, share=4 / steps), *words, *out])
    first, both = (early_exit.early_exit.load(EarlyExit((1, 2), 8), tmp_path / name) for name in ("4", "8"))
    assert first.up.any() and not first.classifier.weight.any() and both.classifier.weight.any()
    assert torch.equal(first.up, both.up) and torch.equal(first.down, both.down)


def test_the_control_learns_other_positions_labels(recipe, tmp_path):
    made = []
    for shuffle in ("false", "true"):
        words = ["--output_dir", str(tmp_path / shuffle), "--shuffle_labels", shuffle]
        early_exit.main([*recipe(max_steps=80, learning_rate=0.01), *words])
        made.append(early_exit.early_exit.load(EarlyExit((1, 2), 8), tmp_path / shuffle))
    assert torch.equal(made[0].up, made[1].up)
    assert not torch.equal(made[0].classifier.weight, made[1].classifier.weight)


def test_thresholds_of_a_recipe_go_before_the_checkpoint_s_and_name_the_streams(recipe, tmp_path):
    early_exit.main(recipe(max_steps=2))
    open_as = {name: EngineSpec(**spec) for name, spec in SPECS.items()}
    marks = {}
    for name, spec in open_as.items():
        engine = open_engine(str(tmp_path / "out"), {}, spec).engine
        marks[name] = engine.fingerprint
        assert (engine._said.exit, engine._said.stop) == WANTED[name]
    base = open_engine(str(tmp_path / "base"), {}, EngineSpec()).engine.fingerprint
    assert len({*marks.values(), base}) == len(SPECS) + 1
    early_exit.main([*recipe(max_steps=3), "--output_dir", str(tmp_path / "other")])
    assert open_engine(str(tmp_path / "other"), {}, EngineSpec()).engine.fingerprint not in marks.values()


SPECS = {"own": {}, "eager": {"exit": 0.2}, "off": {"exit": 1}, "stops": {"kind": "early_exit", "stop": 0.5}}
WANTED = {"own": (0.9, 1.0), "eager": (0.2, 1.0), "off": (1, 1.0), "stops": (0.9, 0.5)}


def test_a_model_without_a_controller_and_a_controller_of_another_model_are_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"base holds no controller of early exit: train one"):
        open_engine(str(tmp_path / "base"), {}, EngineSpec(kind="early_exit"))
    with pytest.raises(ValueError, match=r"leave out engine\.exit and engine\.stop"):
        open_engine(str(tmp_path / "base"), {}, EngineSpec(exit=0.5))
    with pytest.raises(ValueError, match="thresholds of a controller, of which openai knows none"):
        EngineSpec(kind="openai", stop=0.5)
    early_exit.main(recipe(max_steps=2))
    tiny.save(tmp_path / "base", layers=3, seed=5)
    with pytest.raises(ValueError, match="was trained beside other weights"):
        open_engine(str(tmp_path / "out"), {}, EngineSpec())


def test_what_cannot_be_learned_is_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match="exits must be layers"):
        early_exit.main(recipe(max_steps=1, exits=[2, 1]))
    with pytest.raises(ValueError, match=r"must lie before the last of the model's 3 layers"):
        early_exit.main(recipe(max_steps=1, exits=[1, 3]))


def test_the_folder_says_what_the_controller_is(recipe, tmp_path):
    early_exit.main(recipe(max_steps=2, stop=0.95))
    said = json.loads((tmp_path / "out" / manifest.NAME).read_text())
    assert said["early_exit"] == {"exits": [1, 2], "rank": 8, "exit": 0.9, "stop": 0.95}
    assert set(said["files"]) >= {"model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipes_are_read(file, tmp_path):
    args, _ = run.parse(early_exit.Config, ["--config", str(file), "--output_dir", str(tmp_path), "--use_cpu", "true"])
    assert args.early_exit.exits[-1] < {"sums": 30, "qwen2.5-1.5b": 28, "llama-3.1-8b": 32}[file.stem]
