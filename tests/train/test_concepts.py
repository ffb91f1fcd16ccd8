"""A memory of concepts from draws: which are learned from, what each batch sees, and what fails."""

import pytest
from toy import ToyEngine, problem

from extratime.evaluate.algorithms.concepts import Memory
from extratime.evaluate.schedule import Schedule
from extratime.evaluate.streams import Streams
from extratime.models.request import Failure
from extratime.train.concepts import Config, learn, parse, solved

DRAWS = [
    {"problem": "t/1", "response": "long way: 1+1=2", "reward": 1.0},
    {"problem": "t/2", "response": "wrong", "reward": 0.0},
    {"problem": "t/1", "response": "1+1=2", "reward": 1.0},
    {"problem": "t/3", "response": "2*2=4", "reward": 1.0},
    {"problem": "t/1", "response": "2=1+1", "reward": 1.0},
    {"problem": "t/2", "response": "", "reward": 0.0},
]


def writer(prompt, text):
    """Pseudo-code that repeats the solution; then one concept a sign, by name alone where the memory has it."""
    if text:
        return {"": 1.0}
    solution = prompt.partition("olution:\n")[2].partition("\n")[0]
    if "YAML" not in prompt:
        return {f"PSEUDO {solution}": 1.0}
    assert solution.startswith("PSEUDO")
    name = "add" if "+" in solution else "times"
    known = name in prompt.partition("Concepts so far:\n")[2].partition("\n\nProblem")[0]
    told = f"- {name}\n" if known else f"- name: {name}\n  kind: routine\n  description: new\n"
    return {told + "- name: luck\n  kind: wish\n- broken: [\n": 1.0}


def written(draws, engine=None, **settings):
    schedule = Schedule({"policy": engine or ToyEngine(writer)}, Streams())
    return learn(draws, schedule, lambda draw: problem(draw["problem"], max_tokens=8), Config(**settings))


def test_the_shortest_right_draw_of_each_problem_is_learned_from():
    assert [draw["response"] for draw in solved(DRAWS)] == ["1+1=2", "2*2=4"]


def test_batches_see_what_was_merged_before_them():
    more = [*solved(DRAWS), {"problem": "t/4", "response": "3+3=6", "reward": 1.0}]
    memory, counts = written(more)
    assert {name: c.used_in for name, c in memory.concepts.items()} == {"add": ("t/1", "t/4"), "times": ("t/3",)}
    assert counts == {"problems": 3, "entries": 6, "unreadable": 3, "of no known kind": 3}
    assert memory.knows("t/4?") and not memory.knows("t/2?")
    assert written(more, batch=3)[0] == memory == written(more, ToyEngine(writer, slots=1, seed=3), batch=2)[0]


def test_nothing_solved_teaches_nothing():
    assert written([])[0] == Memory()


class Down(ToyEngine):
    def poll(self):
        return [(ticket, Failure("down")) for ticket, _ in super().poll()]


def test_a_failed_reply_is_an_error_and_no_gap():
    with pytest.raises(RuntimeError, match="failed on the concepts of t/1: down"):
        written(solved(DRAWS), Down(writer))


def test_settings_that_cannot_be_meant_are_refused():
    for words, message in (
        ([], "name the folder of draws"),
        (["--rollouts", "a", "--output_dir", "b", "--batch", "0"], "batch must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(words)


def teller(prompt, text):
    """Retells the solution; then one lesson, the same each time, and one that lacks its suggestion."""
    if text:
        return {"": 1.0}
    if "YAML" not in prompt:
        return {f"RETOLD {prompt.partition('olution:' + chr(10))[2].partition(chr(10))[0]}": 1.0}
    assert "RETOLD" in prompt and "so far" not in prompt, "who writes lessons does not see the memory"
    return {"- situation: a sum\n  suggestion: count\n- situation: a product\n": 1.0}


def test_lessons_are_all_added_whatever_there_is():
    memory, counts = written(solved(DRAWS), ToyEngine(teller), form="lessons")
    assert [(m.situation, m.suggestion, m.source) for m in memory.lessons] == [
        ("a sum", "count", "t/1"),
        ("a sum", "count", "t/3"),
    ]
    assert counts == {"problems": 2, "entries": 2, "unreadable": 2, "of no known kind": 0} and not memory.concepts
    assert written(solved(DRAWS), ToyEngine(teller, slots=1), form="lessons", batch=2)[0] == memory
    with pytest.raises(ValueError, match="form must be concepts or lessons"):
        parse(["--rollouts", "a", "--output_dir", "b", "--form", "poems"])
