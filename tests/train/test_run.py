import json
import os
import shutil
from functools import partial

import pytest
import tiny
import torch
from launch import command_line, draws, start, stay_off_the_network, sums, train, use_hub, write_rows, write_yaml
from safetensors.torch import load_file

from extratime.models import manifest
from extratime.models.load import load
from extratime.train import run, self_eval, sft


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """The caller's W&B account and settings play no part."""
    for name in {"WANDB_MODE", "WANDB_DIR", *(name for name in os.environ if name.startswith("WANDB"))}:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, data and a finished run of two steps."""
    place = tmp_path_factory.mktemp("run")
    tiny.save(place / "base")
    write_rows(place / "data.jsonl", sums())
    write_rows(place / "draws.jsonl", draws())
    made = write_yaml(place / "sft.yaml", **plain(place))
    assert train(place, "sft", "--config", made, "--output_dir", place / "done")[0] == 0
    return place


def plain(place, **more):
    settings = {"model": place / "base", "data": place / "data.jsonl", "max_steps": 2, "use_cpu": True}
    return settings | {"per_device_train_batch_size": 2, "learning_rate": 0.01} | more


def words(file, out, *more):
    return [str(word) for word in ("--config", file, "--output_dir", out, *more)]


def test_an_unknown_key_is_an_error_that_names_file_key_and_nearest(tmp_path):
    file = write_yaml(tmp_path / "mine.yaml", learning_rte=0.1)
    with pytest.raises(ValueError, match=r"mine\.yaml: unknown key 'learning_rte'; did you mean 'learning_rate'\?"):
        run.parse(sft.Config, words(file, tmp_path / "out"))
    file = write_yaml(tmp_path / "mine.yaml", tolerance=0.1)
    with pytest.raises(ValueError, match="unknown key 'tolerance'"):
        run.parse(sft.Config, words(file, tmp_path / "out"))
    assert run.parse(self_eval.Config, words(file, tmp_path / "out"))[0].tolerance == 0.1


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "a: [", ""])
def test_a_recipe_that_is_no_mapping_of_settings_is_refused_by_name(text, tmp_path):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"odd\.yaml"):
        run.parse(sft.Config, words(tmp_path / "odd.yaml", tmp_path / "out"))


def test_a_missing_recipe_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml cannot be read"):
        run.parse(sft.Config, words(tmp_path / "none.yaml", tmp_path / "out"))


def test_an_unknown_override_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="--learning_rte"):
        run.parse(sft.Config, ["--output_dir", str(tmp_path), "--learning_rte", "1"])


def test_overrides_win_over_the_file_and_both_are_what_repeats_the_run(tmp_path):
    file = write_yaml(tmp_path / "a.yaml", learning_rate=0.1, max_steps=3, lr_scheduler_kwargs={"num_cycles": 2})
    args, settings = run.parse(sft.Config, words(file, tmp_path, "--learning_rate", "0.5", "--seed=7"))
    assert (args.learning_rate, args.max_steps, args.seed) == (0.5, 3, 7)
    told = {"learning_rate": 0.5, "max_steps": 3, "seed": 7, "lr_scheduler_kwargs": {"num_cycles": 2}}
    assert settings == told | {"output_dir": str(tmp_path)}
    again, _ = run.parse(sft.Config, words(write_yaml(tmp_path / "b.yaml", **settings), tmp_path))
    assert again.to_dict() | {"logging_dir": 0} == args.to_dict() | {"logging_dir": 0}


def test_a_cpu_computes_in_the_type_of_the_weights_unless_it_is_told_otherwise(tmp_path):
    def read(*more):
        return run.parse(sft.Config, ["--output_dir", str(tmp_path), *more])[0]

    assert read("--use_cpu", "true").bf16 is False
    assert read("--use_cpu", "true", "--bf16", "true").bf16 is True


@pytest.mark.parametrize("more", [["--save_strategy", "best"], ["--load_best_model_at_end", "true"]])
def test_picking_the_best_checkpoint_while_training_is_refused(more, tmp_path):
    with pytest.raises(ValueError, match=r"best"):
        run.parse(sft.Config, ["--output_dir", str(tmp_path), "--eval_strategy", "no", *more])


def test_logging_is_offline_without_an_account_and_as_the_environment_says_with_one(tmp_path, monkeypatch):
    args, _ = run.parse(sft.Config, ["--output_dir", str(tmp_path / "out")])

    def mode():
        monkeypatch.delenv("WANDB_MODE", raising=False)
        run.choose_wandb(args)
        return os.environ.get("WANDB_MODE")

    assert mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert mode() is None
    (tmp_path / "netrc").write_text("machine example.org login user password key\n")
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert mode() is None
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run.choose_wandb(args)
    assert os.environ["WANDB_MODE"] == "disabled"


def test_logging_can_be_turned_off(tmp_path):
    run.choose_wandb(run.parse(sft.Config, ["--output_dir", str(tmp_path / "out"), "--report_to", "none"])[0])
    assert "WANDB_MODE" not in os.environ and not (tmp_path / "out").exists()


def test_a_missing_data_file_is_an_error_before_anything_is_loaded(place, tmp_path):
    file = write_yaml(tmp_path / "a.yaml", **plain(place, data=tmp_path / "none.jsonl", model="/no/such/model"))
    with pytest.raises(ValueError, match=r"data file '.*none\.jsonl' does not exist"):
        sft.main(words(file, tmp_path / "out"))
    with pytest.raises(ValueError, match="data file '' does not exist"):
        self_eval.main(["--output_dir", str(tmp_path / "out"), "--use_cpu", "true"])
    assert not (tmp_path / "out").exists()


def test_a_finished_run_returns_at_once(place, capsys):
    before = {path: path.stat().st_mtime_ns for path in (place / "done").rglob("*")}
    sft.main(words(place / "sft.yaml", place / "done", "--logging_steps", "7"))
    assert "finished already" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (place / "done").rglob("*")}


def test_a_folder_of_a_run_with_other_settings_is_refused(place):
    with pytest.raises(ValueError, match=r"learning_rate: 0\.01 → 0\.5.*choose another --output_dir"):
        sft.main(words(place / "sft.yaml", place / "done", "--learning_rate", "0.5"))
    with pytest.raises(ValueError, match="recipe: sft → self_eval"):
        self_eval.main(words(place / "sft.yaml", place / "done"))


@pytest.fixture
def copy(place, tmp_path):
    """The finished run, its base and data in a place of their own, and the words that made it."""
    for name in ("base", "data.jsonl"):
        (shutil.copytree if (place / name).is_dir() else shutil.copy)(place / name, tmp_path / name)
    file = write_yaml(tmp_path / "sft.yaml", **plain(tmp_path))
    given = words(file, tmp_path / "done")
    assert train(tmp_path, "sft", *given)[0] == 0
    return tmp_path, given


def test_a_run_whose_data_or_base_changed_since_is_refused_finished_or_not(copy):
    folder, given = copy
    write_rows(folder / "data.jsonl", sums(seed=1))
    for _ in ("finished", "not finished"):
        with pytest.raises(ValueError, match=r"something else \(.*data\.jsonl: "):
            sft.main(given)
        (folder / "done" / "extratime.json").unlink(missing_ok=True)
    write_rows(folder / "data.jsonl", sums())
    tiny.save(folder / "base", seed=5)
    with pytest.raises(ValueError, match=r"something else \(.*base: "):
        sft.main(given)


def test_a_finished_run_that_was_harmed_is_refused(copy):
    folder, given = copy
    (folder / "done" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json is not what was written"):
        sft.main(given)


def test_never_resume_refuses_a_folder_that_holds_checkpoints(copy):
    folder, given = copy
    (folder / "done" / "extratime.json").unlink()
    with pytest.raises(ValueError, match="holds checkpoints"):
        sft.main([*given, "--resume", "never"])


def test_a_named_checkpoint_is_checked_before_it_is_used(copy):
    folder, given = copy
    (folder / "done" / "extratime.json").unlink()
    point = folder / "done" / "checkpoint-2"
    assert train(folder, "sft", *given, "--resume", point, "--max_steps", "3")[0] == 0
    (point / "model.safetensors").unlink()
    (folder / "done" / "extratime.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-2: model\.safetensors is missing"):
        sft.main([*given, "--resume", str(point)])


def test_what_changed_since_the_checkpoint_is_said(copy):
    folder, given = copy
    (folder / "done" / "extratime.json").unlink()
    code, said = train(folder, "sft", *given, "--max_steps", "3")
    assert code == 0 and "checkpoint-2, changed: max_steps: 2 → 3" in said


def test_the_result_is_a_model_that_loads_with_a_manifest_that_tells_all(place):
    folder = place / "done"
    said = manifest.verify(folder)
    assert (said.recipe, said.kind, said.base) == ("sft", "full", str(place / "base"))
    assert said.base_sha256 == manifest.hash_weights(place / "base")
    assert said.inputs == {
        str(place / "data.jsonl"): manifest.hash_file(place / "data.jsonl"),
        str(place / "base"): said.base_sha256,
    }
    assert said.settings["learning_rate"] == 0.01 and said.seeds == {"seed": 42}
    assert said.template_sha256 and {"torch", "transformers", "trl", "peft"} <= set(said.versions)
    beside = {path.name for path in folder.iterdir() if path.is_file()}
    assert set(said.files) == beside - {"README.md", manifest.NAME}
    loaded = load(folder)
    held = load_file(folder / "model.safetensors")
    assert all(torch.equal(weight, held[name]) for name, weight in loaded.model.state_dict().items())
    assert not any(
        torch.equal(held[name], weight) for name, weight in load_file(place / "base/model.safetensors").items()
    )


def test_a_model_of_the_hub_is_named_with_its_commit(place, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    kept = tmp_path / "hub" / "models--owner--toy"
    shutil.copytree(place / "base", kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    file = write_yaml(tmp_path / "a.yaml", **asked(place, "lora", model="owner/toy"))
    code, said = train(
        tmp_path, "self_eval", *words(file, tmp_path / "out"), before=partial(use_hub, str(tmp_path / "hub"))
    )
    assert code == 0, said
    told = manifest.verify(tmp_path / "out")
    assert (told.base, told.revision, told.base_sha256) == ("owner/toy", commit, None)
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("owner/toy", commit)


def asked(place, adapter, **more):
    settings = plain(place, data=place / "draws.jsonl", adapter=adapter, rank=4, **more)
    return settings | {"question": "ok?", "good": "n", "bad": "y"}


def test_an_adapter_names_its_base_as_the_recipe_does_and_loads_from_anywhere(place, tmp_path):
    file = write_yaml(tmp_path / "a.yaml", **asked(place, "alora"))
    assert train(tmp_path, "self_eval", *words(file, tmp_path / "out"))[0] == 0
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(place / "base")
    assert load(tmp_path / "out").adapters
    with pytest.raises(ValueError, match="is an activated adapter; name the model"):
        run.load_policy(run.parse(sft.Config, words(place / "sft.yaml", tmp_path, "--model", tmp_path / "out"))[0])


def test_the_command_line_runs_recipes_and_says_what_is_wrong_in_one_line(place, tmp_path):
    given = ["train", "sft", *words(place / "sft.yaml", tmp_path / "out")]
    code, said = start(tmp_path / "log", command_line, given).wait()
    assert code == 0 and manifest.verify(tmp_path / "out").recipe == "sft", said
    code, said = start(tmp_path / "log", command_line, [*given, "--data", "none.jsonl"]).wait()
    assert code == 2 and "extratime train: data file 'none.jsonl' does not exist" in said and "Traceback" not in said
    code, said = start(tmp_path / "log", command_line, ["train", "sftt"]).wait()
    assert code == 2 and "no training recipe 'sftt'" in said


def test_logging_to_wandb_needs_no_account_and_no_network(place, tmp_path):
    given = words(place / "sft.yaml", tmp_path / "out", "--logging_steps", "1")
    env = {"WANDB_MODE": "", "WANDB_API_KEY": "", "NETRC": str(tmp_path / "none"), "WANDB_SILENT": "true"}
    code, said = train(tmp_path, "sft", *given, before=stay_off_the_network, env=env)
    assert code == 0, said
    runs = list((tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 1 and runs[0].stat().st_size > 0
    assert manifest.verify(tmp_path / "out")
