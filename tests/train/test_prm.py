import json
import math
import random

import pytest
import tiny
import torch
from launch import solutions, write_rows, write_yaml

from extratime.evaluate.grid import parse
from extratime.evaluate.run import run_recipe
from extratime.evaluate.statistics.calibration import auroc
from extratime.models import manifest
from extratime.models.engines.reward import RewardEngine
from extratime.models.request import Prompt, Score
from extratime.models.reward import load_reward
from extratime.models.steps import Steps, reader, split
from extratime.train import prm
from extratime.train.prm import NONE, Solution


def test_the_loss_is_the_binary_cross_entropy_of_soft_labels_at_the_separators_alone():
    torch.manual_seed(0)
    one, two = torch.randn(2, 5, 1), torch.randn(2, 5, 2)
    labels = torch.full((2, 5), NONE)
    labels[0, 2], labels[0, 4], labels[1, 3] = 0.25, 1.0, 0.0
    for logits, r in ((one, one[..., 0].sigmoid()), (two, two.softmax(-1)[..., 1])):
        at = labels != NONE
        wanted = -(labels[at] * r[at].log() + (1 - labels[at]) * (1 - r[at]).log()).sum()
        torch.testing.assert_close(prm.step_loss(logits, labels), wanted)
        moved = logits.clone()
        moved[1, 0], moved[0, 3] = 9.0, -9.0
        torch.testing.assert_close(prm.step_loss(moved, labels), wanted)


def test_a_row_is_what_the_reward_model_reads_with_a_label_at_each_end():
    tokenizer = tiny.tokenizer()
    solution = Solution("q?", ("one", "two", "three"), (1.0, None, 0.25))
    read = reader(tokenizer, "\n")
    made = prm.row(solution, read, "\n")
    ids, ends = read("q?", "one\ntwo\nthree")
    assert made["input_ids"] == list(ids)
    assert [made["labels"][end] for end in ends] == [1.0, NONE, 0.25]
    assert sum(label != NONE for label in made["labels"]) == 2
    for steps in (("a\nb", "c", "d"), ("a", " ", "b")):
        with pytest.raises(ValueError, match=r"3 labels, but \d steps"):
            prm.row(Solution("q?", steps, (1.0, 1.0, 1.0)), read, "\n")


def test_steps_and_ends_are_counted_alike():
    tokenizer, rng = tiny.tokenizer(), random.Random(1)
    for _ in range(200):
        text = "".join(rng.choice("ab \n") for _ in range(rng.randrange(12)))
        for separator in ("\n", "\n\n", "b"):
            assert len(reader(tokenizer, separator)("q?", text)[1]) == len(split(text, separator)), (text, separator)


def test_hard_labels_and_the_shuffled_control():
    made = [Solution("q?", ("a", "b"), (0.125, None)), Solution("q?", ("c",), (0.0,))]
    assert [s.labels for s in prm.relabelled(made, True, False, 0)] == [(1.0, None), (0.0,)]
    many = [Solution("q?", ("a", "b"), (i / 100, None)) for i in range(100)]
    dealt = prm.relabelled(many, False, True, 3)
    labels = [s.labels[0] for s in dealt]
    assert sorted(labels) == sorted(s.labels[0] for s in many) and all(s.labels[1] is None for s in dealt)
    assert abs(torch.corrcoef(torch.tensor([labels, [i / 100 for i in range(100)]]))[0, 1]) < 0.3
    assert dealt == prm.relabelled(many, False, True, 3) != prm.relabelled(many, False, True, 4)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"prompt": "q", "steps": ["a"]}, "KeyError.*labels"),
        ({"prompt": "q", "steps": ["a"], "labels": [1, 0]}, "1 steps, but 2 labels"),
        ({"prompt": "q", "steps": ["a"], "labels": [1.5]}, "1.5 is not in"),
        ({"prompt": "q", "steps": ["a"], "labels": [math.nan]}, "nan is not in"),
    ],
)
def test_a_line_that_is_no_labelled_response_is_named(tmp_path, line, why):
    good = {"prompt": "q", "steps": ["a"], "labels": [0.5]}
    file = write_rows(tmp_path / "steps.jsonl", [good, line])
    with pytest.raises(ValueError, match=f"steps.jsonl:2: not a response with labelled steps.*{why}"):
        prm.read_solutions(str(file))
    write_rows(file, [good | {"labels": [None]}])
    with pytest.raises(ValueError, match="no labelled steps"):
        prm.read_solutions(str(file))


@pytest.fixture
def recipe(tmp_path):
    tiny.save(tmp_path / "base")
    write_rows(tmp_path / "steps.jsonl", solutions(1500))

    def file(**more):
        told = {"model": tmp_path / "base", "data": tmp_path / "steps.jsonl", "use_cpu": True, "report_to": "none"}
        told |= {"disable_tqdm": True, "per_device_train_batch_size": 16, "save_strategy": "no", "max_steps": 2}
        return [
            "--config",
            str(write_yaml(tmp_path / "r.yaml", **(told | more))),
            "--output_dir",
            str(tmp_path / "out"),
        ]

    return file


@pytest.mark.parametrize("labels", [1, 2])
def test_it_learns_and_evaluates_with_no_further_words(recipe, tmp_path, labels):
    prm.main(recipe(labels=labels, max_steps=150, learning_rate=0.003))
    made = manifest.verify(tmp_path / "out")
    assert (made.recipe, made.kind, made.steps) == ("prm", "full", Steps("\n"))
    engine = RewardEngine(load_reward(tmp_path / "out"))
    held = solutions(1600, seed=0)[1500:]
    for i, row in enumerate(held):
        engine.submit(i, Score(Prompt(row["prompt"]), "\n".join(row["steps"])))
    told = {}
    while answered := engine.poll():
        told |= dict(answered)
    scores = [value for i in range(len(held)) for value in told[i].values]
    truth = [label for row in held for label in row["labels"]]
    assert len(scores) == len(truth) and all(0 <= score <= 1 for score in scores)
    assert auroc(scores, truth) > 0.95


def test_a_recipe_names_the_folder_and_nothing_else(recipe, tmp_path):
    prm.main(recipe())
    said = {
        "model": str(tmp_path / "base"),
        "verifier": {"model": str(tmp_path / "out"), "device": "cpu"},
        "tasks": ["sums_easy"],
        "strategies": [{"beam_search": {"verify": {"reward_model": {"aggregate": "min"}}, "width": 2}}],
        "budgets": [4],
        "max_tokens": 8,
        "limit": 2,
        "chat": False,
        "engine": {"dtype": "float32", "device": "cpu"},
        "output": str(tmp_path / "run"),
    }
    folder = run_recipe(parse(said))
    assert len((folder / "results" / "0-of-1.jsonl").read_text().splitlines()) == 2


def test_it_begins_at_one_half(recipe, tmp_path):
    args, _ = prm.run.parse(prm.Config, recipe())
    model, _ = prm.load_base(args)
    assert not model.score.weight.any() and model.score.bias is None
    assert model.dropout.p == 0


def test_long_responses_are_left_out_whole_and_counted(recipe, capsys):
    args, _ = prm.run.parse(prm.Config, recipe(max_length=12))
    kept = prm.rows(args, tiny.tokenizer())
    whole = prm.rows(prm.run.parse(prm.Config, recipe())[0], tiny.tokenizer())
    assert kept == [each for each in whole if len(each["input_ids"]) <= 12] and len(kept) < len(whole)
    assert f"{len(whole) - len(kept)} of {len(whole)} responses are too long" in capsys.readouterr().err
    with pytest.raises(ValueError, match="every response is longer than max_length 2"):
        prm.rows(prm.run.parse(prm.Config, recipe(max_length=2))[0], tiny.tokenizer())


def test_padding_touches_nothing():
    batch = [{"input_ids": [5, 6, 7], "labels": [NONE, NONE, 0.5]}, {"input_ids": [8], "labels": [1.0]}]
    made = prm.collator(0)(batch)
    assert made["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert made["labels"].tolist() == [[NONE, NONE, 0.5], [1.0, NONE, NONE]]


def test_an_adapter_and_lacking_weights_are_refused(recipe, tmp_path):
    adapter = tiny.save_adapter(tmp_path / "base", tmp_path / "adapter")
    with pytest.raises(ValueError, match="is an adapter: merge it"):
        prm.main(recipe(model=adapter))
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks weights that its config\.json asks for: model\.layers\.2"):
        prm.main(recipe())
