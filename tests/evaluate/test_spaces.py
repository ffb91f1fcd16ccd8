"""Spaces of a tuning file: filled at any depth, begun at their defaults, named by their place where wrong."""

import optuna
import pytest

from extratime.evaluate.named import RecipeError
from extratime.evaluate.tuning.spaces import asked, fill, starting

NESTED = {
    "sampling": {"temperature": {"uniform": [0.4, 1.2], "default": 0.7}},
    "strategies": {
        "choice": [
            "greedy",
            {"beam_search": {"width": {"choice": [2, 4]}, "rounds": {"integer": [1, 9], "default": 3}}},
            {"layers": {"stack": {"choice": [["rank"], ["critic", {"rank": {"top": {"choice": [1, 5]}}}]]}}},
        ]
    },
}


def test_spaces_are_filled_at_any_depth_and_what_was_not_taken_is_not_asked_for():
    trial = optuna.trial.FixedTrial({"sampling.temperature": 0.5, "strategies": '"greedy"'})
    assert fill(NESTED, asked(trial)) == {"sampling": {"temperature": 0.5}, "strategies": "greedy"}
    name = "strategies=2 layers.layers.stack"
    said = {"sampling.temperature": 0.5, "strategies": "2 layers", name: "1", f"{name}=1[1].rank.top": "5"}
    filled = fill(NESTED, asked(optuna.trial.FixedTrial(said)))
    assert filled["strategies"] == {"layers": {"stack": ["critic", {"rank": {"top": 5}}]}}


def test_a_space_starts_at_its_first_choice_or_its_default():
    found = {}
    assert fill(NESTED, starting(found)) == {"sampling": {"temperature": 0.7}, "strategies": "greedy"}
    assert found == {"sampling.temperature": 0.7, "strategies": '"greedy"'}


@pytest.mark.parametrize(
    "wrong",
    [
        {"choice": []},
        {"integer": [1]},
        {"uniform": 3},
        {"integer": [1, 2], "uniform": [1, 2]},
        {"choice": [1], "x": 2},
    ],
)
def test_what_is_no_space_is_named_by_its_place(wrong):
    with pytest.raises(RecipeError, match=r"a\.b: a space is"):
        fill({"a": {"b": wrong}}, starting({}))


def test_a_range_without_a_default_cannot_start():
    with pytest.raises(RecipeError, match="a: say `default"):
        fill({"a": {"uniform": [0, 1]}}, starting({}))
