import json
import math
import random
from collections import Counter
from statistics import fmean

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from launch import write_rows

from extratime.train.readings import Collator, Draw, Law, labelled, places, read_draws, rows

QUESTION = (7, 8, 9)
LEVELS = tuple((7, 8, 100 + n) for n in range(10))
LAWS = st.builds(Law, st.integers(1, 6), st.floats(0, 1), st.integers(1, 5))


def group(problem, rewards, prompt=(1, 2), longest=6):
    rng = random.Random(str(problem))
    return [Draw(problem, prompt, tuple(rng.choices(range(3, 250), k=rng.randint(1, longest))), r) for r in rewards]


@given(st.integers(0, 40), LAWS, st.integers(0, 99))
def test_weights_of_a_response_sum_to_one_and_cuts_lie_in_it(length, law, seed):
    found = places(length, law, random.Random(seed))
    assert sum(weight for _, weight, _ in found) == pytest.approx(1)
    assert all(weight > 0 for _, weight, _ in found)
    assert all((0 < cut <= length) or length == 0 == cut for cut, _, _ in found)
    assert all(cut == length for cut, _, part in found if part == 0 and law.cuts > 1)


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("cuts", [1, 2, 4, 9])
def test_every_number_of_cuts_reads_by_the_same_law(cuts, length):
    """Whole with probability ρ, else a cut at ⌈uL⌉: the expectation of any function of the cut is the same."""
    law, count = Law(cuts, keep=0.3), 20_000
    mass = Counter()
    rng = random.Random(0)
    for _ in range(count):
        for cut, weight, _ in places(length, law, rng):
            mass[cut] += weight / count
    for cut in range(1, length + 1):
        expected = 0.7 / length + (0.3 if cut == length else 0)
        assert mass[cut] == pytest.approx(expected, abs=5 * math.sqrt(expected / count))


def test_parts_are_equal_stretches_of_the_response():
    rng = random.Random(1)
    for _ in range(200):
        for cut, _, part in places(12, Law(cuts=4, keep=0.5), rng):
            assert part == 0 or 4 * (part - 1) < cut <= 4 * part


@pytest.mark.parametrize("wrong", [{"cuts": 0}, {"responses": 0}, {"keep": 1.1}, {"keep": -0.1}])
def test_laws_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="cuts and responses"):
        Law(**wrong)


def test_labels_are_win_or_tie_within_each_problem():
    found = labelled([*group("a", [1, 0, 0]), *group("b", [0, 0])], Law(), random.Random(0))
    assert [[label for _, label in problem] for problem in found] == [[1.0, 0.5, 0.5], [1.0, 1.0]]


def test_shuffled_labels_are_the_same_multiset_on_other_responses():
    draws = [draw for p in range(30) for draw in group(p, [1, 0, 0, 0])]
    plain, mixed = (labelled(draws, Law(shuffle=s), random.Random(0)) for s in (False, True))
    told = [[label for problem in found for _, label in problem] for found in (plain, mixed)]
    assert Counter(told[0]) == Counter(told[1]) and told[0] != told[1]
    assert [draw for problem in plain for draw, _ in problem] == [draw for problem in mixed for draw, _ in problem]


def test_draws_of_a_problem_must_be_comparable():
    with pytest.raises(ValueError, match=r"'a'.*at least 2"):
        labelled(group("a", [1]), Law(), random.Random(0))
    with pytest.raises(ValueError, match="'a' has draws of different prompts"):
        labelled([*group("a", [1]), *group("a", [0], prompt=(5,))], Law(), random.Random(0))


def test_rows_hold_every_response_once_and_are_repeatable():
    draws = [draw for p in range(5) for draw in group(p, [1, 0, 0, 1, 0])]
    law = Law(cuts=3, keep=0.4, responses=2)
    made = rows(draws, [QUESTION], law, seed=3)
    assert made == rows(draws, [QUESTION], law, seed=3) != rows(draws, [QUESTION], law, seed=4)
    assert all(1 <= len(row["responses"]) <= 2 for row in made) and len(made) == 15
    whole = Counter(tuple(response) for row in made for response in row["responses"])
    assert whole == Counter(draw.response for draw in draws)
    for row in made:
        for i in range(len(row["responses"])):
            assert sum(r["weight"] for r in row["readings"] if r["response"] == i) == pytest.approx(1)


def test_a_reading_beyond_the_longest_length_is_moved_to_the_front_of_it():
    draws = group("a", [1, 0, 1], longest=30)
    law = Law(cuts=4, keep=0.5, max_length=10)
    for row in rows(draws, [QUESTION], law, 0):
        for reading in row["readings"]:
            assert len(row["prompt"]) + reading["cut"] + len(QUESTION) <= 10
        assert all(len(response) <= 5 for response in row["responses"])
    with pytest.raises(ValueError, match=r"prompt \(2 tokens\) and question \(3\) leave no room .*max_length 5"):
        rows(draws, [QUESTION], Law(max_length=5), 0)


def batch(shared, law, seed=0):
    draws = [
        draw for p, n in enumerate((4, 3, 2)) for draw in group(p, [1, 0, 0, 1][:n], prompt=tuple(range(1, 3 + p)))
    ]
    return rows(draws, [QUESTION], law, seed), Collator((QUESTION,), 0, shared)(rows(draws, [QUESTION], law, seed))


LAW = Law(cuts=3, keep=0.4, responses=3)


def test_a_separate_sequence_is_prompt_cut_response_and_question():
    made, found = batch(False, LAW)
    readings = [(row, reading) for row in made for reading in row["readings"]]
    assert found["input_ids"].shape[0] == len(readings)
    assert found["logits_to_keep"].tolist() == [found["input_ids"].shape[1] - 1]
    for (row, reading), ids, seen, at in zip(
        readings, found["input_ids"], found["attention_mask"], found["position_ids"], strict=True
    ):
        expected = [*row["prompt"], *row["responses"][reading["response"]][: reading["cut"]], *QUESTION]
        assert ids[seen.bool()].tolist() == expected
        assert at[seen.bool()].tolist() == list(range(len(expected)))
        assert seen.tolist() == sorted(seen.tolist())
    assert set(found["offsets"].tolist()) == {len(QUESTION)}


def paths(made, found):
    """Each reading with its row's number and the column of its slot."""
    for b, row in enumerate(made):
        slots = found["logits_to_keep"][found["slots"][b]][-len(row["readings"]) :]
        yield from ((b, row, reading, slot) for slot, reading in zip(slots.tolist(), row["readings"], strict=True))


def test_in_a_shared_sequence_each_question_sees_what_it_would_see_alone():
    made, found = batch(True, LAW)
    for b, row, reading, slot in paths(made, found):
        ids, at, sees = found["input_ids"][b], found["position_ids"][b], found["attention_mask"][b, 0]
        expected = [*row["prompt"], *row["responses"][reading["response"]][: reading["cut"]], *QUESTION]
        assert ids[sees[slot]].tolist() == expected
        assert at[sees[slot]].tolist() == list(range(len(expected)))
        assert not torch.triu(sees, 1).any() and sees.diagonal().all()


SHARING = [(3, 4, 5), (3, 4, 6), (3, 4, 5), (6,), (), (*QUESTION, 3)]


def test_what_responses_share_is_in_a_shared_sequence_once_and_the_questions_are_last():
    drawn = [Draw("a", (1, 2), response, 1.0) for response in SHARING]
    made = rows(drawn, [QUESTION], Law(cuts=2, responses=6), 0)
    found = Collator((QUESTION,), 0)(made)
    slots = {slot for _, _, _, slot in paths(made, found)}
    asked = len(slots) * len(QUESTION)
    assert found["offsets"].tolist() == [asked]
    text = found["input_ids"][0, :-asked].tolist()
    assert sorted(text) == sorted([1, 2, 3, 4, 5, 6, 6, *QUESTION, 3])
    assert found["input_ids"][0, -asked:].tolist() == [*QUESTION] * len(slots)
    places = {(*row["responses"][r["response"]][: r["cut"]],) for _, row, r, _ in paths(made, found)}
    assert len(places) == len(slots) < len(made[0]["readings"])


@given(st.lists(st.lists(st.integers(3, 5), max_size=5), min_size=2, max_size=6), st.integers(0, 99))
def test_a_shared_sequence_holds_every_path_and_every_token_sees_its_own_path_alone(responses, seed):
    drawn = [Draw("a", (1, 2), tuple(response), 1.0) for response in responses]
    made = rows(drawn, [(9,)], Law(cuts=3, responses=6), seed)
    found = Collator(((9,),), 0)(made)
    ids, sees = found["input_ids"][0], found["attention_mask"][0, 0]
    seen = [tuple(ids[row].tolist()) for row in sees]
    assert len(set(seen)) == len(seen)
    read = [
        (*response[: max(r["cut"] for r in made[0]["readings"] if r["response"] == i)],)
        for i, response in enumerate(made[0]["responses"])
    ]
    texts = {(1, 2, *response[:n]) for response in read for n in range(len(response) + 1)} | {(1,)}
    asked = {(1, 2, *made[0]["responses"][r["response"]][: r["cut"]], 9) for r in made[0]["readings"]}
    assert set(seen) == texts | asked


@pytest.mark.parametrize("shared", [True, False])
def test_each_reading_is_asked_at_the_level_of_the_tokens_it_read(shared):
    responses = {(3, 4): (-0.1, -0.9, -2.1), (3, 5): (-0.1, -4.7), (6,): (-0.6,), (): (-9.0,)}
    drawn = [Draw("a", (1, 2), tokens, 1.0, logprobs) for tokens, logprobs in responses.items()]
    made = rows(drawn, LEVELS, Law(cuts=3, responses=4), 0)
    found = Collator(LEVELS, 0, shared)(made)
    asked = {}
    for b, (ids, seen) in enumerate(zip(found["input_ids"], found["attention_mask"], strict=True)):
        for slot in found["logits_to_keep"][found["slots"][b]].tolist():
            path = ids[(seen[0, slot] if shared else seen).bool()].tolist()
            asked.setdefault(tuple(path[2:-3]), set()).add(path[-1] - 100)
    ends = {(3, 4): {4}, (3, 5): {9}, (6,): {1}, (): {9}}
    assert asked == ends | ({(3,): {0}} if (3,) in asked else {}) and (3,) in asked


def test_each_slot_has_the_label_weight_and_group_of_its_reading():
    for shared in (True, False):
        made, found = batch(shared, LAW)
        told = [
            (reading["label"], reading["weight"], g * 10_000 + reading["part"])
            for g, row in enumerate(made)
            for reading in row["readings"]
        ]
        real = found["weight"] > 0
        assert found["label"][real].tolist() == pytest.approx([label for label, _, _ in told])
        assert found["weight"][real].tolist() == pytest.approx([weight for _, weight, _ in told])
        assert found["group"][real].tolist() == [part for _, _, part in told]
        assert set(found["group"][~real].tolist()) <= {-1}


def test_draws_are_read_as_ids_where_they_are_known_and_as_text_else(tmp_path):
    tokenizer = tiny.tokenizer()
    known = {"problem": 1, "prompt": "p", "prompt_ids": [1, 2], "response": "abc", "tokens": [5, 6], "reward": 1}
    text = {"problem": 1, "prompt": "p?", "response": "abc", "reward": 0.5}
    first, second = read_draws(write_rows(tmp_path / "d.jsonl", [known, text]), tokenizer)
    assert first == Draw("1", (1, 2), (5, 6), 1.0)
    assert tokenizer.decode(second.prompt) == "p?" and tokenizer.decode(second.response) == "abc"


@pytest.mark.parametrize(
    "line",
    [
        "{broken",
        "[]",
        "{}",
        '{"problem": 1, "prompt": "a", "response": "b"}',
        '{"problem": 1, "prompt": "a", "response": "b", "reward": NaN}',
        '{"problem": 1, "prompt": "a", "response": "b", "reward": "much"}',
    ],
)
def test_a_line_that_is_no_draw_is_named(line, tmp_path):
    good = json.dumps({"problem": 1, "prompt": "a", "response": "b", "reward": 1})
    (tmp_path / "d.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=r"d\.jsonl:2: not a draw"):
        read_draws(tmp_path / "d.jsonl", tiny.tokenizer())
    (tmp_path / "d.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no draws"):
        read_draws(tmp_path / "d.jsonl", tiny.tokenizer())


def test_an_empty_response_is_read_as_it_is(tmp_path):
    row = {"problem": 1, "prompt": "p?", "prompt_ids": [1], "response": "", "tokens": [], "reward": 0}
    drawn = read_draws(write_rows(tmp_path / "d.jsonl", [row, row]), tiny.tokenizer())
    made = rows(drawn, [QUESTION], Law(cuts=3), 0)
    found = Collator((QUESTION,), 0)(made)
    assert fmean(reading["cut"] for reading in made[0]["readings"]) == 0
    assert found["input_ids"][0].tolist() == [1, *QUESTION]
