"""Rollouts on a toy checkpoint: every draw once, with its reward and its tokens, however often they are started."""

import json
import re
import time
from collections import Counter

import pytest
import tiny
import torch
from launch import recipe, start

from extratime.evaluate.run import run_recipe
from extratime.evaluate.streams import _records
from extratime.models.load import load, load_tokenizer
from extratime.train.readings import read_draws
from extratime.train.rollouts import draws, main

# A random model knows no sums: it is right here if it says no small letter, which is when the filter finds nothing.
LETTERLESS = {
    "test_split": "train",
    "doc_to_target": "[invalid]",
    "filter_list": [
        {"name": "letter", "filter": [{"function": "regex", "regex_pattern": "([a-z])"}, {"function": "take_first"}]}
    ],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def write(checkpoint):
    def write(folder, **changes):
        said = {
            "model": str(checkpoint),
            "tasks": ["sums_easy"],
            "overrides": {"sums_easy": LETTERLESS},
            "strategies": ["self_consistency", "best_of_n"],
            "budgets": [2, 4],
            "replicates": 2,
            "max_tokens": 12,
            "limit": 3,
            "chat": False,
            "engine": {"dtype": "float32", "device": "cpu", "slots": 4},
            "output": str(folder / "run"),
        }
        (folder / "recipe.yaml").write_text(json.dumps(said | changes))
        return folder / "recipe.yaml"

    return write


@pytest.fixture(scope="module")
def drawn(write, tmp_path_factory):
    """A run folder with its draws."""
    folder = tmp_path_factory.mktemp("rollouts")
    main([str(write(folder))])
    return folder / "run"


def rows(folder):
    return [json.loads(line) for line in (folder / "draws.jsonl").read_text().splitlines()]


def streamed(folder):
    """The texts of all paths in the streams; a line that a killed process tore is no record."""
    texts = {}
    for file in (folder / "streams").glob("*.jsonl"):
        for record in _records(file):
            if "path" in record:
                path = json.dumps(record["path"])
                texts[path] = texts.get(path, "") + record["text"]
    return texts


def test_every_draw_stands_there_once_whatever_shared_it(drawn):
    """Two strategies at two budgets read the same four draws of a problem and replicate."""
    made = rows(drawn)
    assert Counter(row["problem"] for row in made) == {f"sums_easy/{i}": 2 * 4 for i in range(3)}
    assert Counter(row["response"] for row in made) == Counter(streamed(drawn).values())


def test_rewards_are_the_task_s_metric(drawn):
    made = rows(drawn)
    assert {row["reward"] for row in made} == {0.0, 1.0}
    assert all(row["reward"] == float(not re.search("[a-z]", row["response"])) for row in made)


def test_prompts_are_of_the_training_split(drawn):
    """Which the recipe asks for by an override; the test split holds other sums."""
    from extratime.evaluate.tasks.sums import documents

    train = documents(3, 1)["train"]
    asked = {row["problem"]: row["prompt"] for row in rows(drawn)}
    assert asked == {f"sums_easy/{i}": f"Sum: {train[i]['expression']}\n" for i in range(3)}


def test_tokens_and_logprobs_are_the_model_s_own(drawn, checkpoint):
    loaded = load(str(checkpoint), dtype="float32", device="cpu")
    for row in rows(drawn):
        assert row["prompt_ids"] == loaded.tokenizer.encode(row["prompt"], add_special_tokens=False)
        assert len(row["tokens"]) > 0 and len(row["logprobs"]) - len(row["tokens"]) in (0, 1)
        assert loaded.tokenizer.decode(row["tokens"], skip_special_tokens=True).rstrip("�") == row["response"].rstrip(
            "�"
        )
        logits = tiny.logits_of(loaded.model, row["prompt_ids"] + row["tokens"])
        after = logits.log_softmax(-1)[len(row["prompt_ids"]) - 1 : -1]
        own = after.gather(1, torch.tensor(row["tokens"])[:, None])[:, 0]
        torch.testing.assert_close(own, torch.tensor(row["logprobs"][: len(own)]), atol=1e-4, rtol=0)


def test_the_self_evaluation_recipe_can_read_them(drawn):
    made = rows(drawn)
    read = read_draws(str(drawn / "draws.jsonl"), load_tokenizer(drawn / "tokenizer"))
    assert [(d.problem, d.reward) for d in read] == [(row["problem"], row["reward"]) for row in made]
    for draw, row in zip(read, made, strict=True):
        assert (list(draw.prompt), list(draw.response)) == (row["prompt_ids"], row["tokens"])
        assert list(draw.logprobs) == row["logprobs"]


def test_started_again_it_draws_nothing_and_writes_the_same_file(drawn):
    before, streams = (drawn / "draws.jsonl").read_bytes(), streamed(drawn)
    main([str(drawn.parent / "recipe.yaml")])
    assert (drawn / "draws.jsonl").read_bytes() == before
    assert streamed(drawn) == streams


def test_shards_of_the_evaluation_hold_the_same_draws(drawn, write, tmp_path):
    from extratime.evaluate.grid import read_recipe

    said = read_recipe(write(tmp_path))
    for i in range(2):
        folder = run_recipe(said, shard=(i, 2))
    assert sorted(map(alike, draws(folder))) == sorted(map(alike, rows(drawn)))


def alike(row):
    """A row without log-probabilities, whose last digits hang on the shape of the batch."""
    return json.dumps({key: value for key, value in row.items() if key != "logprobs"}, sort_keys=True)


def test_killed_and_started_again_it_writes_the_same_draws(write, tmp_path):
    said = {"limit": 8, "max_tokens": 48, "strategies": ["self_consistency"], "budgets": [4]}
    folders = [tmp_path / "killed", tmp_path / "whole"]
    files = [write(folder, **said) for folder in folders if not folder.mkdir()]
    stream = folders[0] / "run" / "streams" / "0-of-1.jsonl"
    job = start(tmp_path / "log", recipe, "rollouts", [str(files[0])])
    while job.process.is_alive() and not (stream.exists() and stream.stat().st_size > 2000):
        time.sleep(0.002)
    job.process.kill()
    assert job.wait()[0] == -9, "it ended before it could be killed: make it longer"
    run = folders[0] / "run"
    kept = streamed(run)
    assert kept and not (run / "draws.jsonl").exists()
    for file in files:
        main([str(file)])
    killed, whole = (rows(folder / "run") for folder in folders)
    assert len(killed) == 8 * 2 * 4
    assert list(map(alike, killed)) == list(map(alike, whole))
    for one, other in zip(killed, whole, strict=True):
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)
    now = streamed(run)
    assert all(now[path].startswith(text) for path, text in kept.items())


def test_what_is_no_recipe_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        main([str(tmp_path / "nowhere.yaml")])
