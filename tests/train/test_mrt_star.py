"""MRT-STaR: which prefix of a trace is kept, and what is learned from it."""

import json
import random
from collections import Counter

import pytest
import tiny
from toy import problem

from extratime.evaluate.algorithms.forcing import Context
from extratime.models.request import Completion, Prompt
from extratime.train import mrt_star, rollouts
from extratime.train.mrt_star import Config, Segmentation, best, context, right, row, whole_traces

TRACE = "1+1=2\n\nWait, 1+1=3\n\nAnswer: 3"


def config(**more):
    return Config(end="Answer:", cue="\n\nAnswer:", **more)


def test_every_prefix_is_ended_by_the_cue_and_complete_thinking_by_its_own_end():
    assert config().cut(TRACE) == [
        ("", "\n\nAnswer:"),
        ("1+1=2\n\n", "\n\nAnswer:"),
        ("1+1=2\n\nWait, 1+1=3\n\n", "Answer:"),
    ]
    unfinished = "1+1=2\n\nWait"
    assert config().cut(unfinished)[-1] == (unfinished, "\n\nAnswer:"), "thinking that was cut off is not complete"
    assert config().cut("") == [("", "\n\nAnswer:")] and config().cut("Answer: 3") == [("", "Answer:")]
    assert [prefix for prefix, _ in config(most=1).cut(TRACE)] == ["", "1+1=2\n\nWait, 1+1=3\n\n"]


def test_thinking_without_an_end_is_refused():
    with pytest.raises(ValueError, match="end must name the text that ends the thinking"):
        Segmentation()
    with pytest.raises(ValueError, match="it must hold end, '</think>'"):
        Segmentation(end="</think>", cue="So:")
    assert Segmentation(end="</think>").cue == "</think>"


@pytest.mark.parametrize(
    ("successes", "place"), [([0.0], 0), ([0, 0, 0], 0), ([1, 1, 1], 0), ([0, 0.5, 0.5, 0.25], 1), ([0, 0.25, 0.5], 2)]
)
def test_the_earliest_of_the_best_prefixes_is_kept(successes, place):
    assert best(successes, config(), random.Random(0)) == place


def test_the_control_keeps_every_prefix_as_often():
    rng = random.Random(0)
    kept = Counter(best([0, 1, 0.5, 0.25], config(select="shuffle"), rng) for _ in range(4000))
    assert all(900 < kept[j] < 1100 for j in range(4))


def test_a_prefix_is_kept_if_the_first_answer_is_whole_and_right():
    context = Context(problem(right="1"), "=1\n\n", "A")
    said = [Completion(Prompt("p?"), f"=1\n\nA=={n}", 9, finish=f) for n, f in ((1, "eos"), (2, "eos"), (1, "length"))]
    assert right(context, said) and not right(context, said[1:]) and not right(context, said[2:])


def test_of_a_prefix_only_the_last_episode_may_be_learned():
    curve = [Context(problem(), prefix, "A") for prefix in ("", "a\n\n", "a\n\nb\n\n")]
    assert [context(curve, place, config(suffix=True)) for place in range(3)] == ["", "", "a\n\n"]
    assert {context(curve, place, config()) for place in range(3)} == {""}
    learned = row({"prompt": "p\n"}, "a\n\nb\n\nAnswer: 3", "a\n\n")
    assert learned == {"prompt": "p\na\n\n", "completion": "b\n\nAnswer: 3"}


def test_the_baseline_keeps_whole_right_traces():
    draws = [{"prompt": "p", "response": f"r{i}", "reward": i % 2} for i in range(4)]
    assert list(whole_traces(draws)) == [{"prompt": "p", "completion": f"r{i}"} for i in (1, 3)]


# A random model knows no sums: an answer is right here if no small letter is in it, which is when the filter fails.
LETTERLESS = {
    "test_split": "train",
    "doc_to_target": "[invalid]",
    "filter_list": [
        {"name": "letter", "filter": [{"function": "regex", "regex_pattern": "([a-f])"}, {"function": "take_first"}]}
    ],
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Draws of a toy checkpoint that never ends by itself."""
    folder = tmp_path_factory.mktemp("rollouts")
    said = {
        "model": str(tiny.save(folder / "base")),
        "tasks": ["sums_easy"],
        "overrides": {"sums_easy": LETTERLESS},
        "strategies": ["self_consistency"],
        "budgets": [4],
        "max_tokens": 12,
        "limit": 4,
        "chat": False,
        "engine": {"dtype": "float32", "device": "cpu"},
        "output": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(json.dumps(said))
    rollouts.main([str(folder / "recipe.yaml")])
    # Blank lines are rare in what a random model says.
    file = folder / "run" / "draws.jsonl"
    draws = [json.loads(line) for line in file.read_text().splitlines()]
    for draw in draws:
        draw["response"] = draw["response"][:4] + "\n\n" + draw["response"][4:]
    file.write_text("".join(json.dumps(draw) + "\n" for draw in draws))
    return folder / "run"


def stage(drawn, output, *more):
    words = ["--rollouts", drawn, "--output_dir", output, "--end", "!!", "--k", "8", "--max_tokens", "6", *more]
    mrt_star.main([str(word) for word in words])
    return {
        name: [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]
        for name in ("rows", "prefixes")
        if (output / f"{name}.jsonl").exists()
    }


def test_rows_hold_the_chosen_prefix_its_end_and_a_right_answer(drawn, tmp_path):
    found = stage(drawn, tmp_path)
    draws = mrt_star.read_draws(drawn)
    curves = {}
    for record in found["prefixes"]:
        curves.setdefault((record["problem"], record["j"]), []).append(record)
    assert len(found["prefixes"]) == 3 * len(draws)
    successes = [record["success"] for record in found["prefixes"]]
    assert all(s * 8 == round(s * 8) for s in successes) and len(set(successes)) > 2
    empty = [r["success"] for r in found["prefixes"] if r["j"] == 0 and r["problem"].endswith("/0")]
    assert len(empty) == 4 and len(set(empty)) == 1, "one context of four traces is asked once"
    assert 0 < len(found["rows"]) < len(draws)
    by_prompt = {draw["prompt"]: draw["problem"] for draw in draws}
    for kept in found["rows"]:
        prefix, _, answer = kept["completion"].partition("!!")
        assert not set(answer) & set("abcdef")
        known = [r for r in found["prefixes"] if r["problem"] == by_prompt[kept["prompt"]] and r["prefix"] == prefix]
        assert known and known[0]["success"] > 0


def test_started_again_it_draws_nothing_and_says_the_same(drawn, tmp_path, capsys):
    one = stage(drawn, tmp_path / "one")
    capsys.readouterr()
    other = stage(drawn, tmp_path / "other")
    assert one == other and " 0 tokens generated" in capsys.readouterr().err


def test_the_baseline_needs_no_engine(drawn, tmp_path):
    found = stage(drawn, tmp_path, "--select", "outcome")
    right = [draw for draw in mrt_star.read_draws(drawn) if draw["reward"]]
    assert [row["completion"] for row in found["rows"]] == [draw["response"] for draw in right]


def test_what_cannot_be_meant_is_refused(drawn, tmp_path):
    with pytest.raises(ValueError, match="draw traces first"):
        mrt_star.main(["--rollouts", str(tmp_path), "--output_dir", str(tmp_path), "--end", "!"])
    with pytest.raises(ValueError, match="name the folder of draws"):
        mrt_star.main(["--end", "!"])
    (tmp_path / "star.yaml").write_text(f"rollouts: {drawn}\noutput_dir: x\nend: '!'\nselekt: outcome\n")
    with pytest.raises(ValueError, match="selekt"):
        mrt_star.main(["--config", str(tmp_path / "star.yaml")])
