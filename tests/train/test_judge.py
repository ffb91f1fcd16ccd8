"""Judges: pairs, judgements kept by rejection sampling, rewards, and two steps of both stages on the tiny model."""

import itertools
import json
import random

import numpy as np
import pytest
import tiny
import torch
from launch import ROOT, draws, train, write_rows, write_yaml
from safetensors.torch import load_file

from extratime.evaluate.grid import EngineSpec
from extratime.evaluate.program import question
from extratime.evaluate.statistics.position_bias import position_bias
from extratime.models import manifest
from extratime.models.engines.open import open_engine
from extratime.models.judge import Judge, check_verdicts, rendered, verdict
from extratime.train import judge_data, judge_grpo, judge_sft, rewards, run
from extratime.train.judge_data import Pair, balanced, make_pairs, read_pairs, sorted_out

ASKED = {
    "pointwise": "{problem}{response}?",
    "pairwise": "{problem}|{first}|{second}?",
    "opener": "#",
    "yes": "y",
    "no": "n",
    "first": "a",
    "second": "b",
    "cue": "!",
    "judge_tokens": 8,
    "chat": False,
}
JUDGE = Judge(**{key: value for key, value in ASKED.items() if key != "judge_tokens"}, max_tokens=8, form="pairwise")
PAIR = Pair("p", "q", "r", "w")


# --- what a judge is told, and what it says


def test_prompts_hold_their_parts_as_they_are():
    assert JUDGE.about("{first}", " {second} ", "x") == "{first}|{second}|x?"
    assert PAIR.prompts(JUDGE, "pairwise") == [("q|r|w?", 0), ("q|w|r?", 1)]
    assert PAIR.prompts(JUDGE, "pointwise") == [("qr?", 0), ("qw?", 1)]
    assert question("<s>user: q\n", [{"role": "user", "content": "q "}, {"role": "assistant", "content": ""}]) == "q"
    assert question(" q\n") == "q"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("#a", 0), ("x # b.", 1), ("#a and #b", 1), ("#ab", None), ("a", None), ("", None), ("#", None), ("#c", None)],
)
def test_the_verdict_is_the_word_after_the_last_opener(text, expected):
    assert verdict(text, JUDGE, "pairwise") == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"pairwise": "{problem}{first}"},
        {"pointwise": "{response}"},
        {"yes": "n"},
        {"second": "ab"},
        {"opener": " "},
        {"cue": "!#"},
        {"form": "listwise"},
        {"max_tokens": 0},
    ],
)
def test_a_judge_that_means_nothing_is_refused(changes):
    with pytest.raises(ValueError):
        Judge(**{name: getattr(JUDGE, name) for name in Judge.__dataclass_fields__} | changes)


def test_chats_are_rendered_around_the_places_and_verdicts_must_be_single_tokens():
    chat = Judge()
    text = rendered(tiny.tokenizer(), chat).about("1+1", "2")
    assert text.startswith("<|im_start|>user\nJudge whether") and text.endswith("<|im_start|>assistant\n")
    assert "Problem:\n1+1\n\nResponse:\n2\n" in text
    with pytest.raises(ValueError, match="no chat template"):
        rendered(tiny.tokenizer(chat=False), chat)
    check_verdicts(tiny.tokenizer(), JUDGE)
    with pytest.raises(ValueError, match="' Yes' is 4 tokens"):
        check_verdicts(tiny.tokenizer(), chat)


# --- pairs and judgements


def test_pairs_are_of_one_problem_and_equal_texts_count_once():
    drawn = [
        {"problem": p, "prompt": f"{p}?", "response": text, "reward": reward}
        for p in (1, 2, 3)
        for text, reward in (("r", 1.0), ("r ", 1.0), ("w", 0.0), ("v", 0.0))
        if p != 3 or reward
    ]
    pairs = make_pairs(drawn, 9, random.Random(0))
    found = {(x.problem, x.question, x.right, x.wrong) for x in pairs}
    assert found == {(str(p), f"{p}?", "r", w) for p in (1, 2) for w in "vw"} and len(pairs) == 4
    assert [x.problem for x in make_pairs(drawn, 1, random.Random(0))] == ["1", "2"]
    with pytest.raises(ValueError, match="no pairs"):
        make_pairs([d for d in drawn if d["reward"]], 9, random.Random(0))


def test_shuffled_labels_are_a_fair_coin():
    drawn = [{"problem": i, "prompt": "?", "response": r, "reward": r == "r"} for i in range(2000) for r in "rw"]
    right = [pair.right == "r" for pair in make_pairs(drawn, 1, random.Random(0), shuffle_labels=True)]
    assert abs(np.mean(right) - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_right_judgements_are_kept_and_reflective_ones_take_a_wrong_verdict_back():
    said = ["1#a", "2#b", "3#a.", "1#a", "4", "5#c", "6#b"]
    right, reflective = sorted_out(said, 0, JUDGE, "pairwise")
    assert right == ["1#a", "3#a"] and reflective == ["2!1#a", "6!3#a"]
    assert sorted_out(said, 1, JUDGE, "pairwise") == (["2#b", "6#b"], ["1!2#b", "3!6#b"])
    assert sorted_out(["x", "1#b"], 0, JUDGE, "pairwise") == ([], [])


def test_rows_are_as_many_of_one_verdict_as_of_the_other():
    rows = [(f"{i}", "", int(i > 2)) for i in range(10)]
    found = balanced(rows, random.Random(0))
    assert sorted(label for _, _, label in found) == [0] * 3 + [1] * 3 and set(found) <= set(rows)
    assert balanced(rows[:3], random.Random(0)) == []


def test_the_data_stage_keeps_what_the_judge_itself_got_right(tmp_path):
    base = tiny.save(tmp_path / "base", chat=False)
    graded = write_rows(tmp_path / "draws.jsonl", draws())
    # A judge that has learned to come to verdicts, but not to which.
    pairs = make_pairs(judge_data.read_graded(str(graded)), 2, random.Random(0))
    labels = {t: (v, form) for form in ("pairwise", "pointwise") for p in pairs for t, v in p.prompts(JUDGE, form)}
    either = [
        {"prompt": text, "completion": f"{thought}#{verdict}"}
        for text, (_, form) in labels.items()
        for thought, verdict in itertools.product("xz", JUDGE.verdicts(form))
    ]
    more = {"max_steps": 60, "per_device_train_batch_size": 16, "output_dir": tmp_path / "sft"}
    traces = write_rows(tmp_path / "rows.jsonl", either)
    file = write_yaml(tmp_path / "sft.yaml", **settings(base, data=traces) | more, **ASKED)
    code, said = train(tmp_path, "judge_sft", "--config", file)
    assert code == 0, said
    asked = {"draws": graded, "model": tmp_path / "sft", "samples": 16, "keep": 2, "reflect": 0.5, "direct": True}
    asked |= {"output_dir": tmp_path / "out", "forms": ["pairwise", "pointwise"]}
    outcomes = []
    for _ in range(2):
        code, said = train(tmp_path, "judge_data", "--config", write_yaml(tmp_path / "data.yaml", **asked))
        assert code == 0, said
        outcomes.append((tmp_path / "out" / "judgements.jsonl").read_text())
    assert outcomes[0] == outcomes[1] and read_pairs(str(tmp_path / "out" / "pairs.jsonl")) == pairs
    rows = [json.loads(line) for line in outcomes[0].splitlines()]
    for row in rows:
        label, form = labels[row["prompt"]]
        assert verdict(row["completion"], JUDGE, form) == label
    kinds = [(row["completion"].startswith("#"), JUDGE.cue in row["completion"]) for row in rows]
    bare, plain, reflective = (kinds.count(kind) for kind in ((True, False), (False, False), (False, True)))
    assert bare >= len(labels) and plain >= len(labels) and abs(reflective - plain / 2) <= plain / 4


@pytest.mark.parametrize("line", ["{broken", "[]", '{"problem": 1}', '{"problem": 1, "more": 2}'])
def test_a_line_that_is_no_pair_is_named(line, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        json.dumps({"problem": "", "question": "", "right": "", "wrong": ""}) + f"\n{line}\n"
    )
    with pytest.raises(ValueError, match=r"pairs\.jsonl:2: "):
        read_pairs(str(tmp_path / "pairs.jsonl"))


@pytest.mark.parametrize("line", ["{broken", "[]", '{"problem": 1, "prompt": "", "response": "", "reward": "good"}'])
def test_a_line_that_is_no_draw_is_named(line, tmp_path):
    path = write_rows(tmp_path / "draws.jsonl", draws(1, 1))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"draws\.jsonl:2: "):
        list(judge_data.read_graded(str(path)))


def test_the_data_stage_knows_its_keys_and_needs_its_draws(tmp_path):
    for said, words in (({"drawss": "x"}, "drawss"), ({"draws": "nowhere"}, "'nowhere' must be a file")):
        with pytest.raises(ValueError, match=words):
            judge_data.main(["--config", str(write_yaml(tmp_path / "data.yaml", **said)), "--output_dir", "x"])


# --- position bias and rewards, in closed form


def test_position_bias_by_hand():
    found = position_bias([0, 0, 0, 1, None, 1], [1, 0, None, 0, 1, 1])
    #  consistent: pair 0; flips: pairs 1 and 5; right in the first order: 3 of 6, in the second: 3 of 6
    assert (found.accuracy_first, found.accuracy_second, found.accuracy) == (3 / 6, 3 / 6, 6 / 12)
    assert (found.consistent, found.flips, found.parsed) == (1 / 6, 2 / 6, 10 / 12)
    always_first = position_bias([0] * 5, [0] * 5)
    assert (always_first.accuracy, always_first.consistent, always_first.flips) == (0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="no pairs"):
        position_bias([], [])
    with pytest.raises(ValueError):
        position_bias([0], [])


def test_consistency_by_index_and_by_mean():
    right, order = [True, False, True, True, True, False], [0, 0, 0, 1, 1, 1]
    assert rewards.consistency(right, ["p"] * 6, order) == [1, 0, 0, 1, 0, 0]
    assert rewards.consistency(right, ["p"] * 6, order, mean=True) == pytest.approx([2 / 3, 0, 2 / 3, 2 / 3, 2 / 3, 0])
    # Pairs are kept apart, wherever their rows stand.
    assert rewards.consistency([True, True, True, False], [1, 2, 1, 2], [0, 0, 1, 1]) == [1, 0, 1, 0]
    with pytest.raises(ValueError, match="pair 1 has 1 judgements in one order and 0"):
        rewards.consistency([True], [1], [0])


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("q", [0.3, 0.6, 0.9])
def test_consistency_of_independent_orders_fires_at_q_squared(q, mean):
    rng, pairs, group = np.random.default_rng(0), 4000, 4
    right = rng.random(2 * pairs * group) < q
    pair = np.repeat(np.arange(pairs), 2 * group)
    order = np.tile(np.repeat([0, 1], group), pairs)
    found = rewards.consistency(right.tolist(), pair.tolist(), order.tolist(), mean)
    assert np.mean(found) == pytest.approx(q * q, abs=0.015)


def logged():
    told = {}
    return told, lambda name, value: told.update({name: value})


def test_rewards_of_a_batch_in_both_orders():
    verdicts, form, agreeing = judge_grpo.reward_functions(JUDGE, unparsed=0.5, consistency="index")
    assert [f.__name__ for f in (verdicts, form, agreeing)] == ["verdict", "format", "consistency"]
    told, log_metric = logged()
    said = ["x#a", "#b", "#b", [{"role": "assistant", "content": "none"}]]
    columns = {"pair": [7] * 4, "label": [0, 0, 1, 1], "trainer_state": None, "log_metric": log_metric}
    assert verdicts(completions=said, **columns) == [1, 0, 1, 0]
    assert form(completions=said, **columns) == [0, 0, 0, -0.5]
    assert agreeing(completions=said, **columns) == [1, 0, 1, 0]
    assert told == {
        "judge/accuracy": 0.5,
        "judge/accuracy_first": 0.5,
        "judge/accuracy_second": 0.5,
        "judge/consistent": 0.5,
        "judge/flips": 0.0,
        "judge/parsed": 0.75,
    }


def test_pointwise_judges_and_those_told_so_have_no_consistency():
    one = Judge(**{name: getattr(JUDGE, name) for name in Judge.__dataclass_fields__} | {"form": "pointwise"})
    assert [f.__name__ for f in judge_grpo.reward_functions(one)] == ["verdict", "format"]
    assert len(judge_grpo.reward_functions(JUDGE, consistency="none")) == 2
    told, log_metric = logged()
    columns = {"pair": [0, 0], "label": [0, 1], "log_metric": log_metric}
    assert judge_grpo.reward_functions(one)[0](completions=["#y", "#y"], **columns) == [1, 0]
    assert told == {"judge/accuracy": 0.5, "judge/parsed": 1.0}


def test_the_sampler_yields_both_orders_of_a_pair_together():
    for seed in range(5):
        sampler = judge_grpo.PairSampler(14, 3, 12, repeat_count=2, shuffle=True, seed=seed)
        places = list(sampler)
        # Seven pairs, two in a batch of rollouts: three batches, each twice.
        assert len(places) == len(sampler) == 3 * 2 * 12
        blocks = [places[i : i + 6] for i in range(0, len(places), 6)]
        assert all(block == [p] * 3 + [p + 1] * 3 for block in blocks for p in block[:1])
        assert all(block[0] % 2 == 0 for block in blocks)
        assert all(blocks[i : i + 2] == blocks[i + 2 : i + 4] for i in range(0, 12, 4))
        assert len({block[0] for block in blocks}) == 6


# --- both stages


def settings(base, **more):
    return {
        "model": base,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 0.01,
        "use_cpu": True,
        "report_to": "none",
        **more,
    }


def test_both_stages_train_and_leave_a_folder_that_judges_as_it_is(tmp_path):
    base = tiny.save(tmp_path / "base")
    pairs = [Pair(str(i), f"q{i}", "aa", "b") for i in range(3)]
    rows = [{"prompt": t, "completion": f"x#{'ab'[v]}"} for p in pairs for t, v in p.prompts(JUDGE, "pairwise")]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    file = write_yaml(tmp_path / "sft.yaml", data=data, output_dir=tmp_path / "sft", **settings(base), **ASKED)
    code, said = train(tmp_path, "judge_sft", "--config", file)
    assert code == 0, said
    assert manifest.verify(tmp_path / "sft").judge == JUDGE

    data = write_rows(tmp_path / "pairs.jsonl", [vars_of(p) for p in pairs])
    drawn = {"num_generations": 2, "max_completion_length": 6, "data": data}
    file = write_yaml(tmp_path / "grpo.yaml", output_dir=tmp_path / "grpo", **settings(tmp_path / "sft", **drawn))
    code, said = train(tmp_path, "judge_grpo", "--config", file)
    assert code == 0, said
    told = manifest.verify(tmp_path / "grpo")
    assert told.judge == JUDGE and told.recipe == "judge_grpo"
    weights = [load_file(tmp_path / name / "model.safetensors")["lm_head.weight"] for name in ("base", "sft")]
    assert not torch.equal(*weights)
    [known] = open_engine(str(tmp_path / "grpo"), {}, EngineSpec()).known["generative"]
    assert known["form"] == "pairwise" and Judge(**known["judge"]) == JUDGE


def vars_of(pair):
    return {name: getattr(pair, name) for name in Pair.__dataclass_fields__}


def test_a_model_that_never_judged_is_told_the_default_and_its_own_chat():
    # (the tiny tokenizer has a chat template)
    from extratime.models.engines.open import _judging

    [known] = _judging(tiny.tokenizer(), "nowhere")
    assert known["judge"]["pointwise"].startswith("<|im_start|>user\n") and known["form"] == "pointwise"
    [known] = _judging(None, "nowhere")
    assert known["judge"]["pointwise"] == Judge().pointwise


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"num_generations": 4}, "multiple of the second"),
        ({"per_device_train_batch_size": 16}, "3 pairs do not fill one batch of 4"),
    ],
)
def test_batches_that_split_a_pair_are_refused(more, words, tmp_path):
    given = {"num_generations": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"} | more
    args = judge_grpo.Config(output_dir=str(tmp_path), **given)
    with pytest.raises(ValueError, match=words):
        judge_grpo.refuse_split_pairs(args, 3)


RECIPES = sorted((ROOT / "recipes").glob("judge_*/*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_recipes_are_read_and_their_batches_hold_whole_pairs(file, tmp_path):
    stage = file.parent.name.removeprefix("judge_")
    words = ["--config", str(file), "--output_dir", str(tmp_path)]
    if stage == "data":
        args = judge_data.parse(words)
        assert args.judge and args.draws
        return
    words += ["--use_cpu", "true", "--bf16", "false", *(["--use_vllm", "false"] if stage == "grpo" else [])]
    args, _ = run.parse({"sft": judge_sft, "grpo": judge_grpo}[stage].Config, words)
    assert args.judge
    if stage == "grpo":
        judge_grpo.refuse_split_pairs(args, 10_000)
