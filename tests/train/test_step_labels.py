"""Labels of steps on a toy checkpoint: each response once, its steps and their values, however often it is started."""

import json
import re
from collections import Counter

import pytest
import tiny

from extratime.evaluate.run import run_recipe
from extratime.models.steps import split
from extratime.train import prm, step_labels
from extratime.train.step_labels import main

# A random model knows no sums: it is right here if it says none of K to Q, which is when the filter finds nothing.
SPARSE = {
    "test_split": "train",
    "doc_to_target": "[invalid]",
    "filter_list": [
        {"name": "letter", "filter": [{"function": "regex", "regex_pattern": "([K-Q])"}, {"function": "take_first"}]}
    ],
}


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    checkpoint = tiny.save(tmp_path_factory.mktemp("model"))

    def write(folder, **changes):
        said = {
            "model": str(checkpoint),
            "tasks": ["sums_easy"],
            "overrides": {"sums_easy": SPARSE},
            "strategies": [{"step_values": {"completions": 4, "steps": 3, "step": ['"']}}],
            "budgets": [13, 26],
            "replicates": 2,
            "sampling": {"top_k": 8},
            "max_tokens": 24,
            "limit": 3,
            "chat": False,
            "engine": {"dtype": "float32", "device": "cpu", "slots": 8},
            "output": str(folder / "run"),
        }
        (folder / "recipe.yaml").write_text(json.dumps(said | changes))
        return folder / "recipe.yaml"

    return write


@pytest.fixture(scope="module")
def labelled(write, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    main([str(write(folder))])
    return folder / "run"


def rows(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def right(text):
    return float(not re.search("[K-Q]", text))


def test_each_response_stands_there_once_with_a_label_a_step(labelled):
    made = rows(labelled)
    assert Counter(row["problem"] for row in made) == {f"sums_easy/{i}": 2 * 2 for i in range(3)}
    values = [label for row in made for label in row["labels"]]
    assert any(len(row["steps"]) > 1 for row in made) and {0.0, 1.0} < set(values)
    for row in made:
        assert len(row["steps"]) == len(row["labels"]) and row["k"] == 4
        assert all(label is None or label * 4 == int(label * 4) for label in row["labels"])
        assert row["labels"][3:-1] == [None] * len(row["labels"][3:-1])


def test_a_whole_response_is_worth_its_own_score_and_what_is_lost_stays_lost(labelled):
    for row in rows(labelled):
        assert row["reward"] == right('"'.join(row["steps"]))
        if row["labels"][-1] is not None and row["labels"][-1] not in (0.0, 1.0):
            assert len(row["steps"]) <= 3  # the response ended right after a separator
        for t, label in enumerate(row["labels"]):
            assert not (label and not right('"'.join(row["steps"][: t + 1])))


def test_the_recipe_of_process_rewards_reads_them(labelled):
    read = prm.read_solutions(str(labelled / "steps.jsonl"))
    assert [list(s.steps) for s in read] == [row["steps"] for row in rows(labelled)]
    encode = prm.reader(tiny.tokenizer(), '"')
    assert all(prm.row(solution, encode, '"') for solution in read)


def test_started_again_it_draws_nothing_and_writes_the_same_file(labelled):
    stream = labelled / "streams" / "0-of-1.jsonl"
    before = (labelled / "steps.jsonl").read_bytes(), stream.read_bytes()
    main([str(labelled.parent / "recipe.yaml")])
    assert ((labelled / "steps.jsonl").read_bytes(), stream.read_bytes()) == before


def test_shards_hold_the_same_labels(labelled, write, tmp_path):
    from extratime.evaluate.grid import read_recipe

    recipe = read_recipe(write(tmp_path))
    for i in range(2):
        folder = run_recipe(recipe, shard=(i, 2))
    assert sorted(map(json.dumps, step_labels.rows(folder, recipe))) == sorted(map(json.dumps, rows(labelled)))


def test_a_prefix_counts_its_ended_steps_even_where_a_token_reaches_beyond():
    ended = {"text": "a\nb", "finish": "eos"}
    part = {"text": "a\nb", "finish": "pause"}
    assert step_labels._labelled([(part, 0.5), (ended, 1.0)], "\n") == {"steps": ["a", "b"], "labels": [0.5, 1.0]}
    early = {"text": "a\n", "finish": "pause"}
    closed = {"text": "a\nb\n", "finish": "eos"}
    told = step_labels._labelled([(early, 0.25), ({**closed, "finish": "pause"}, 0.75), (closed, 1.0)], "\n")
    assert told["labels"] == [0.25, 0.75] and split(closed["text"], "\n") == told["steps"]


def test_other_strategies_and_several_separators_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match="add step_values to its strategies"):
        main([str(write(tmp_path, strategies=["self_consistency"], budgets=[1], limit=1))])
    several = [{"step_values": {"step": ["a", "b"]}}]
    with pytest.raises(ValueError, match="must be a list of one string"):
        main([str(write(tmp_path, strategies=several, budgets=[1], limit=1))])
