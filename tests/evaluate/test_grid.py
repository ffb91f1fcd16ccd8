"""Recipes: what they mean, and what a wrong one is told."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from extratime.evaluate.grid import bind, columns, parse, read_raw, read_recipe
from extratime.evaluate.named import RecipeError
from extratime.evaluate.program import Problem
from extratime.evaluate.tuning.spaces import fill
from extratime.models.request import Completion, Prompt
from extratime.train import run

PLAIN = {"model": "m", "tasks": ["t"], "strategies": ["greedy", "self_consistency"], "output": "o"}


def wrong(**changes) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(PLAIN | changes)
    return str(caught.value)


def test_columns_are_strategies_by_budgets_by_replicates_and_greedy_has_one():
    recipe = parse(PLAIN | {"budgets": [1, 4], "replicates": 2})
    assert [c.key for c in columns(recipe)] == [
        "greedy@1#0",
        *(f"self_consistency@{b}#{r}" for b in (1, 4) for r in (0, 1)),
    ]


def test_a_strategy_may_have_budgets_and_a_label_of_its_own():
    entry = {"beam_search": {"verify": "likelihood", "width": 2, "label": "beam", "budgets": [8]}}
    (column,) = columns(parse(PLAIN | {"strategies": [entry]}))
    assert (column.key, column.spec.options) == ("beam@8#0", {"verify": "likelihood", "width": 2})


def test_labels_name_the_verifier():
    recipe = parse(PLAIN | {"strategies": [{"best_of_n": {"verify": v}} for v in ("likelihood", {"self_eval": {}})]})
    assert [s.label for s in recipe.strategies] == ["best_of_n(likelihood)", "best_of_n(self_eval)"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modle": "x"}, ["unknown key 'modle'", "model"]),
        ({"strategies": ["bests_of_n"]}, ["no strategy 'bests_of_n'", "best_of_n"]),
        ({"strategies": [{"best_of_n": {"widht": 3}}]}, ["best_of_n has no option 'widht'", "verify"]),
        ({"strategies": [{"best_of_n": {"verify": "oracel"}}]}, ["no verifier 'oracel'", "oracle"]),
        ({"strategies": [{"archon": {"stages": ["generator", "fusr"]}}]}, ["archon: stage 2", "'fusr'", "fuser"]),
        ({"strategies": ["greedy", "greedy"]}, ["two strategies are called 'greedy'", "label"]),
        ({"strategies": []}, ["'strategies' must be a list"]),
        ({"strategies": [{"a": {}, "b": {}}]}, ["one name with its options"]),
        ({"budgets": [0]}, ["budgets must be whole numbers of at least 1", "0"]),
        ({"budgets": "many"}, ["budgets must be whole numbers"]),
        ({"sampling": {"temperature": -1}}, ["sampling", "-1"]),
        ({"sampling": 3}, ["sampling: expected a mapping"]),
        ({"engine": {"kinds": "hf"}}, ["unknown key 'kinds' in engine"]),
        ({"scoring": {"t": {"metrics": "x"}}}, ["unknown key 'metrics' in scoring.t"]),
    ],
)
def test_a_wrong_recipe_is_told_what_and_where(changes, words):
    said = wrong(**changes)
    assert all(word in said for word in words), said


def test_a_missing_key_is_named():
    with pytest.raises(RecipeError, match="'tasks' is missing"):
        parse({key: value for key, value in PLAIN.items() if key != "tasks"})


def test_a_file_that_is_no_recipe_is_named(tmp_path):
    for text in ("a: [", "- 1"):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(RecipeError, match=r"r\.yaml"):
            read_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: cannot be read"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_overrides_reach_into_mappings(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("model: m\ntasks: [t]\nstrategies: [greedy]\noutput: o\n")
    recipe = read_recipe(file, ["limit=3", "sampling.temperature=0.5", "data.t=/folder"])
    assert (recipe.limit, recipe.sampling.temperature, recipe.data) == (3, 0.5, {"t": "/folder"})
    with pytest.raises(RecipeError, match="'limit' is not key=value"):
        read_recipe(file, ["limit"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("mine", "Q?", ("a", "b"))),
        ({"adapter": "other"}, ("other", "Q?", ("a", "b"))),
        ({"adapter": "yours"}, ("yours", "R?", ("c", "d"))),
        ({"adapter": "yours", "question": "S?"}, ("yours", "S?", ("c", "d"))),
    ],
)
def test_a_manifest_s_words_are_defaults_that_a_recipe_may_change(options, expected):
    mine, yours = ("mine", "Q?", ("a", "b")), ("yours", "R?", ("c", "d"))
    known = {"self_eval": [dict(zip(("adapter", "question", "targets"), said, strict=True)) for said in (mine, yours)]}
    entry = {"best_of_n": {"verify": {"self_eval": options}}}
    (column,) = columns(parse(PLAIN | {"strategies": [entry], "budgets": [1]}))
    program = bind(column.spec, known)(Problem("p", Prompt("x"), str), 1, np.random.default_rng(0))
    (asked,) = program.send([Completion(next(program).prompt, "y", 1)])
    assert (asked.adapter, asked.question, asked.targets) == expected


def low(name, kind, said, default):
    """The first of every space."""
    return said[0]


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "recipes").glob("*/*.yaml")), ids=lambda f: f.name
)
def test_recipes_that_come_with_the_package_can_be_read(file):
    kind = file.parent.name
    if kind in ("evaluate", "rollouts", "step_labels"):
        recipe = read_recipe(file)
        assert all(bind(column.spec, {}) for column in columns(recipe))
    elif kind == "tune":
        raw = read_raw(file) | {"tune": None}
        del raw["tune"]
        for entry in raw["strategies"]:
            candidate = fill({**raw, "strategies": [entry]}, low)
            assert all(bind(column.spec, {}) for column in columns(parse(candidate)))
    elif kind != "accelerate":
        recipe = importlib.import_module(f"extratime.train.{kind}")
        words = ["--config", str(file)]
        args = recipe.parse(words) if hasattr(recipe, "parse") else run.parse(recipe.Config, words)[0]
        assert args.output_dir
