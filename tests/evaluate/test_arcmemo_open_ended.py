"""Lessons of solved problems: how they are kept and selected, what they cost, and what they do for other problems."""

import functools
import re

import numpy as np
import pytest
from composed import replying
from played import P, response, rng, scored
from toy import ToyEngine, problem, run

from extratime.evaluate.algorithms.concepts import Lesson, Memory, append, dump, entries, merge, read_memory
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.arcmemo import arcmemo
from extratime.evaluate.strategies.arcmemo_open_ended import arcmemo_open_ended
from extratime.models.request import Sample, fail

TOLD = [
    {"situation": "a sum above 9", "suggestion": "carry the ten"},
    {"situation": "a product", "suggestion": "add it up"},
    {"situation": "a sum above 9", "suggestion": "carry the ten"},
]


def lessons(told=TOLD, source="t/1"):
    return append(Memory(), told, source, f"question of {source}")


def remembering(memory, budget=5, *replies, **options):
    """The requests and the answer, with these replies before the draws."""
    said = iter([[reply] for reply in replies])
    return replying(
        arcmemo_open_ended(P, budget, rng(), memory, **options),
        lambda ask: next(said) if ask.temperature == 0 else ["a=1"] * ask.n,
    )


# --- the memory


def test_all_lessons_are_kept_equal_ones_too_and_come_back_from_their_file(tmp_path):
    memory = append(lessons(), [{"situation": "x: y ", "suggestion": "- z"}], "t/2", "q")
    assert [lesson.source for lesson in memory.lessons] == ["t/1"] * 3 + ["t/2"]
    assert memory.lessons[0] == memory.lessons[2] and memory.lessons[3] == Lesson("x: y", "- z", "t/2")
    file = tmp_path / "memory.yaml"
    file.write_text(dump(memory))
    assert read_memory(file) == memory and read_memory(file).knows("q") and not read_memory(file).knows("other")
    file.write_text(dump(memory).replace("suggestion", "advice"))
    with pytest.raises(ValueError, match="is no memory of concepts"):
        read_memory(file.rename(tmp_path / "broken.yaml"))


def test_entries_without_a_situation_or_a_suggestion_are_counted():
    text = "- situation: a\n  suggestion: b\n- situation: a\n- just words\n- situation: 5\n  suggestion: b\n- x: [\n"
    assert entries(text, ("situation", "suggestion")) == ([{"situation": "a", "suggestion": "b"}], 4)


def test_either_form_refuses_the_memory_of_the_other():
    concepts, _ = merge(Memory(), [{"name": "carry", "kind": "routine"}], "t/1", "q")
    for strategy, memory, other in (
        (arcmemo, lessons(), "arcmemo_open_ended"),
        (arcmemo_open_ended, concepts, "arcmemo"),
    ):
        with pytest.raises(ValueError, match=f"`{other}` reads them"):
            next(strategy(P, 4, rng(), memory))
    with pytest.raises(ValueError, match="problem p: the memory of concepts was written from it"):
        next(arcmemo_open_ended(P, 4, rng(), append(Memory(), TOLD, "t/1", P.question)))


# --- the strategy


def test_it_describes_selects_by_numbers_and_draws_with_what_was_selected():
    asked, answer = remembering(lessons(), 5, "two numbers, large", "I take\n- 2\n- [1]\n- 9\n- 2")
    assert [(ask.n, ask.temperature) for ask in asked] == [(1, 0), (1, 0), (3, None)]
    assert P.question in asked[0].prompt.text and "do not" in asked[0].prompt.text.lower()
    chosen = asked[1].prompt.text
    assert "two numbers, large" in chosen and P.question not in chosen.partition("A problem:")[2]
    told = asked[2].prompt.text
    assert told.index("add it up") < told.index("carry the ten") and told.endswith(P.question)
    assert told.count("Situation:") == 2 and answer.why.endswith("with 2 lessons") and len(answer.pool) == 3


def test_whoever_selects_reads_the_suggestions_too():
    """The published prompt shows each situation twice, and no suggestion."""
    asked, _ = remembering(lessons(), 5, "words", "- 1")
    for i, lesson in enumerate(lessons().lessons, 1):
        assert f"[{i}] Situation: {lesson.situation}\n    Suggestion: {lesson.suggestion}" in asked[1].prompt.text


def test_no_more_than_k_lessons_are_told_the_first_ones_named():
    asked, answer = remembering(lessons(), 5, "words", "- 3\n- 2\n- 1", k=2)
    assert "at most 2" in asked[1].prompt.text and asked[2].prompt.text.count("Situation:") == 2
    assert asked[2].prompt.text.index("carry") < asked[2].prompt.text.index("add it up") and "2 lessons" in answer.why


@pytest.mark.parametrize("reply", ["none", "- 0\n- 4\n- -1", "", fail(response(""), "down")])
def test_where_no_lesson_is_named_the_problem_is_asked_as_it_is(reply):
    assert remembering(lessons(), 4, "words", reply)[0][2] == Sample(P.prompt, 2)


def test_a_description_that_failed_leaves_the_problem_itself():
    asked, _ = remembering(lessons(), 4, fail(response(""), "down"), "- 1")
    assert P.question in asked[1].prompt.text and "carry the ten" in asked[2].prompt.text


@pytest.mark.parametrize(
    ("budget", "options", "replies", "draws"),
    [
        (1, {}, 0, 1),
        (2, {}, 1, 1),
        (3, {}, 2, 1),
        (9, {}, 2, 7),
        (9, {"describe": False}, 1, 8),
        (1, {"role": "judge"}, 2, 1),
        (4, {"role": "judge", "describe": False}, 1, 4),
    ],
)
def test_replies_are_paid_for_out_of_the_budget(budget, options, replies, draws):
    said = ["words", "- 1"][2 - replies :] if replies < 2 else ["words", "- 1"]
    asked, answer = remembering(lessons(), budget, *said, **options)
    assert [ask.n for ask in asked] == [1] * replies + [draws] and len(answer.pool) == draws
    assert sum(ask.n for ask in asked if ask.role == "policy") <= budget
    assert ("Situation" in asked[-1].prompt.text) is (replies > 0)


def test_without_lessons_nobody_selects():
    for memory in (None, Memory(), lessons([])):
        assert remembering(memory, 4)[0] == [Sample(P.prompt, 4)]


def test_failed_attempts_are_told_beside_the_lessons():
    texts = iter(["a=1", "b=1", "c=1"])
    said = iter([["words"], ["- 1"]])
    asked, answer = replying(
        arcmemo_open_ended(P, 5, rng(), lessons(), verify=scored(lambda text: float(text == "b=1"))),
        lambda ask: next(said) if ask.temperature == 0 else [next(texts) for _ in range(ask.n)],
    )
    assert [ask.n for ask in asked] == [1, 1, 1, 1] and answer.response.text == "b=1"
    assert "Attempt:\na=1" in asked[3].prompt.text and "carry the ten" in asked[3].prompt.text


# --- hidden operators

SIGNS = "!#$%&*+,/:;<"
MEANINGS = [(i % 4 + 1, i % 6) for i in range(len(SIGNS))]


def hidden(shift=0):
    """A lesson an operator; with a shift it tells another one's meaning."""
    memory = Memory()
    for i, sign in enumerate(SIGNS):
        a, b = MEANINGS[(i + shift) % len(SIGNS)]
        told = [{"situation": f"the sign {sign}", "suggestion": f"x{sign}y={a}x+{b}y"}]
        memory = append(memory, told, f"train/{i}", f"1{sign}1")
    return memory


def reading(prompt, text):
    """Selects by the signs that it sees beside a rule; solves by the rules told, and guesses one of ten without."""
    if text:
        return {"": 1.0}
    if "Describe this problem" in prompt:
        return {prompt.partition("Problem:\n")[2].partition("\n")[0].rstrip("?"): 1.0}
    if "Which lessons" in prompt:
        listed, _, asked = prompt.partition("A problem:\n")
        rules = re.findall(r"\[(\d+)\] Situation: .*\n    Suggestion: x(.)y=", listed)
        named = [number for number, sign in rules if sign in asked.partition("\n\n")[0]]
        return {"".join(f"- {number}\n" for number in named) or "none": 1.0}
    x, sign, y = prompt.split("Compute ")[-1].rstrip("?").split(" ")
    rule = re.search(rf"x{re.escape(sign)}y=(\d)x\+(\d)y", prompt)
    if rule is None:
        return {f"={guess}": 0.1 for guess in range(10)}
    return {f"={int(rule[1]) * int(x) + int(rule[2]) * int(y)}": 1.0}


def test_lessons_solve_what_they_fit_and_hurt_where_they_do_not():
    def accuracy(memory, budget=3):
        strategy, cells = functools.partial(arcmemo_open_ended, memory=memory), []
        for i, (sign, (a, b)) in enumerate(zip(SIGNS, MEANINGS, strict=True)):
            for x, y in ((2, 3), (5, 1)):
                told = problem(f"Compute {x} {sign} {y}", right=str(a * x + b * y), max_tokens=6)
                cells.append(Cell(f"{i}{x}", told, strategy, budget))
        results = run(ToyEngine(reading, slots=32), cells)
        assert all(r.cost.generated <= budget * 6 for r in results)
        return np.mean([r.cell.problem.correct(r.answer.response.text) for r in results])

    assert accuracy(hidden()) == 1.0
    assert max(accuracy(None), accuracy(hidden(shift=5)), accuracy(hidden(), budget=1)) < 0.25
