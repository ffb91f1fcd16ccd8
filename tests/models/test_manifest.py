import json
import os
import signal
import sys

import pytest
import tiny

from extratime.models import manifest
from extratime.models.manifest import NAME, Manifest, hash_file, hash_template, hash_weights, read, verify, write
from extratime.models.self_eval import SelfEval

FILES = {"model.safetensors": b"weights", "config.json": b"{}", "tokenizer.json": b"[]"}
FULL = Manifest(
    "self_eval",
    "alora",
    "owner/base",
    revision="abc",
    base_sha256="1" * 64,
    self_eval=SelfEval("Better?", "No", "Yes", chat=False),
    template_sha256="2" * 64,
    settings={"lr": 0.1, "modules": ["a", "b"], "none": None},
    seeds={"seed": 3},
    inputs={"data.jsonl": "3" * 64},
    versions={"torch": "2"},
)


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").write_text("prose")
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "optimizer.pt").write_text("state")
    return tmp_path


def test_what_is_written_is_read_back(folder):
    written = write(folder, FULL)
    assert read(folder) == verify(folder) == written
    assert written.files == {name: hash_file(folder / name) for name in FILES}
    assert hash_file(folder / "config.json") == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize("name", FILES)
def test_any_changed_byte_or_missing_file_is_noticed(name, folder):
    write(folder, FULL)
    content = (folder / name).read_bytes()
    for at in range(len(content)):
        (folder / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ValueError, match=rf"{name} is not what was written"):
            verify(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing"):
        verify(folder)


def test_prose_and_what_stands_in_other_folders_may_change(folder):
    write(folder, FULL)
    (folder / "README.md").write_text("other prose")
    (folder / "checkpoint-2" / "optimizer.pt").unlink()
    (folder / "new.txt").write_text("new")
    verify(folder)


def test_a_folder_without_one_says_what_to_look_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no {NAME}; is this the folder that a recipe wrote"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": 2}, "format"),
        ({"colour": "red"}, "colour"),
        ({"kind": "half"}, "kind must be one of full, lora, alora"),
        ({"self_eval": {"question": "q", "good": "a", "bad": "b", "mood": "x"}}, "mood"),
        ({"self_eval": {"question": "q", "good": "No", "bad": "Not"}}, "share their beginning"),
        ({"self_eval": ["q"]}, NAME),
    ],
)
def test_what_this_version_does_not_know_is_refused(change, why, folder):
    write(folder, FULL)
    said = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps(said | change))
    with pytest.raises(ValueError, match=why):
        read(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"recipe": "sft"}'])
def test_a_broken_one_is_refused_by_name(text, folder):
    (folder / NAME).write_text(text)
    with pytest.raises(ValueError, match=NAME):
        read(folder)


def write_and_die(folder, count):
    """Write a manifest in a forked process that kills itself at the `count`-th file event; whether it got that far."""
    child = os.fork()
    if child == 0:
        left = iter(range(count - 1, -1, -1))

        def hook(event, args):
            if event in ("open", "os.rename") and str(folder) in str(args) and next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        write(folder, Manifest("sft", "full", "other"))
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


@pytest.mark.parametrize("before", [True, False])
def test_a_kill_while_it_is_written_leaves_the_old_one_or_none(before, folder):
    count, died = 0, True
    while died:
        count += 1
        (folder / NAME).unlink(missing_ok=True)
        if before:
            write(folder, FULL)
        died = write_and_die(folder, count)
        assert (folder / NAME).exists() or not before
        if (folder / NAME).exists():
            assert verify(folder).recipe == ("self_eval" if died else "sft")
    assert count > len(FILES) + 1


def test_weights_have_one_hash_over_all_their_files(tmp_path):
    assert hash_weights(tmp_path) is None
    for name in ("b", "a"):
        (tmp_path / f"{name}.safetensors").write_text(name)
    both = hash_weights(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert hash_weights(tmp_path) == both
    (tmp_path / "a.safetensors").write_text("c")
    assert hash_weights(tmp_path) != both


def test_a_template_is_told_by_its_hash():
    plain, chat = tiny.tokenizer(chat=False), tiny.tokenizer()
    assert hash_template(plain) is None
    before = hash_template(chat)
    assert before == hash_template(tiny.tokenizer())
    chat.chat_template += " "
    assert hash_template(chat) != before


def test_versions_are_those_of_the_libraries_that_train():
    found = manifest.library_versions()
    assert {"torch", "transformers", "trl", "peft", "accelerate"} <= set(found)
    assert all(isinstance(version, str) for version in found.values())
