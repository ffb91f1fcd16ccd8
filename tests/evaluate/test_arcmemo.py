"""A memory of concepts: how it is written, and what it does for other problems."""

import functools
import re

import numpy as np
import pytest
from composed import replying
from played import P, rng, scored
from toy import ToyEngine, problem, run

from extratime.evaluate.algorithms.concepts import Memory, dump, entries, matching, merge, read_memory, render
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.arcmemo import arcmemo
from extratime.models.request import Sample

# --- a memory of concepts

CARRY = {
    "name": "carry",
    "kind": "routine",
    "description": "add digits",
    "cues": ["a sum above 9"],
    "implementation": "x",
}


def learned(*entries, memory=None, source="t/1"):
    return merge(memory or Memory(), entries, source, f"question of {source}")[0]


def test_an_entry_of_a_known_name_adds_what_is_new():
    memory = learned({**CARRY, "parameters": [{"name": "a", "typing": "int"}, {"name": "b", "typing": "int"}]})
    more = {
        "name": "carry",
        "description": "other words",
        "output": "int",
        "cues": ["a sum above 9", "digits"],
        "parameters": [{"name": "b", "typing": "Callable[[int], int]"}, {"name": "c", "typing": "int"}],
        "implementation": ["x", "y", "y"],
    }
    again = learned(more, memory=learned(more, memory=memory, source="t/2"), source="t/2").concepts["carry"]
    assert (again.kind, again.description, again.output) == ("routine", "add digits", "int")
    assert again.cues == ("a sum above 9", "digits") and again.implementation == ("x", "y")
    assert [p["typing"] for p in again.parameters] == ["int", "Callable[[int], int]", "int"]
    assert again.used_in == ("t/1", "t/2")


def test_a_bare_name_is_a_use_and_a_new_name_needs_a_kind():
    memory, skipped = merge(
        learned(CARRY), [{"name": "carry"}, {"name": "luck"}, {"name": "grid", "kind": "shape"}], "t/2", "q"
    )
    assert skipped == 2 and list(memory.concepts) == ["carry"]
    assert memory.concepts["carry"].used_in == ("t/1", "t/2") and memory.concepts["carry"].cues == ("a sum above 9",)


def test_broken_entries_spare_the_others_and_are_counted():
    text = "Here:\n```yaml\n- name: a\n  kind: routine\n- name: b: c\n  cues: [x\n- carry\n- 5\n- {kind: routine}\n```"
    found, dropped = entries(text)
    assert found == [{"name": "a", "kind": "routine"}, {"name": "carry"}] and dropped == 3
    assert entries("- x\n- y: [") == ([{"name": "x"}], 1) and entries("no list") == ([], 0)


def test_a_memory_comes_back_from_its_file_as_it_was(tmp_path):
    typed = {**CARRY, "parameters": [{"name": "f", "typing": "Callable"}], "subtype": "intermediate"}
    memory = learned(
        {"name": "row: of", "kind": "structure", "cues": ['"#": sign']}, memory=learned(typed), source="t/2"
    )
    file = tmp_path / "memory.yaml"
    file.write_text(dump(memory))
    assert read_memory(file) == memory
    for text in ("- x", "sources: {}", "concepts: [x]\nsources: {}", "a: ["):
        broken = tmp_path / f"{len(text)}.yaml"
        broken.write_text(text)
        with pytest.raises(ValueError, match="is no memory of concepts"):
            read_memory(broken)
    with pytest.raises(ValueError, match=r"no memory of concepts at .*nowhere\.yaml: write one"):
        read_memory(tmp_path / "nowhere.yaml")


def test_the_compressed_memory_tells_rare_concepts_by_name():
    memory = learned({"name": "row", "kind": "structure"}, CARRY)
    memory = learned({"name": "carry"}, {"name": "add", "kind": "routine", "cues": ["+"]}, memory=memory, source="t/2")
    told = render(memory, usage=2)
    assert told.index("Structures:\n- others: row") < told.index("Routines:\n- carry: add digits")
    assert "look for: a sum above 9" in told and told.endswith("- others: add") and "look for: +" not in told
    assert "look for: +" in render(memory) and "others" not in render(memory)
    assert "look for: +" in render(memory, ["add"]) and "others: carry" in render(memory, ["add"])


def test_cues_match_where_all_their_words_and_signs_occur():
    told = [
        {"name": n, "kind": "routine", "cues": cues}
        for n, cues in {"a": ["# sign"], "b": ["x", "Two"], "c": []}.items()
    ]
    memory = learned(*told, {"name": "d", "kind": "structure", "cues": ["two #"]})
    assert matching(memory, "What is two # 3", 5) == ["b", "d"] and matching(memory, "twofold #", 5) == []
    assert matching(memory, "two # sign", 1) == ["a"]


# --- ArcMemo


def remembering(memory, budget=4, answer=None, **options):
    return replying(arcmemo(P, budget, rng(), memory, **options), answer or (lambda ask: ["a=1"] * ask.n))


def test_a_reply_selects_and_the_draws_read_what_it_names():
    memory = learned(CARRY, {"name": "row", "kind": "structure", "cues": ["rows"]})
    replies = iter([["I take:\n- carry\n- 'magic'"], ["a=1", "b=2", "c=2"]])
    asked, answer = remembering(memory, answer=lambda ask: next(replies))
    assert [(ask.n, ask.temperature, ask.role) for ask in asked] == [(1, 0, "policy"), (3, None, "policy")]
    assert "others: carry" in asked[0].prompt.text  # used once: by name only
    assert "look for: a sum above 9" in asked[1].prompt.text and "others: row" in asked[1].prompt.text
    assert asked[1].prompt.text.endswith(P.question) and answer.response.text == "b=2" and len(answer.pool) == 3


def test_another_role_selects_for_nothing_and_cues_stand_in_for_a_reply_that_names_none():
    memory = learned({**CARRY, "cues": ["p?"]})
    asked, _ = remembering(memory, role="judge")
    assert [(ask.n, ask.role) for ask in asked] == [(1, "judge"), (4, "policy")]
    assert "look for: p?" in asked[1].prompt.text
    for options in ({"budget": 1}, {"select": "cues"}, {"select": "all"}):
        asked, _ = remembering(memory, **options)
        assert [ask.n for ask in asked] == [options.get("budget", 4)] and "look for: p?" in asked[0].prompt.text


def test_without_a_concept_that_fits_the_problem_is_asked_as_it_is():
    for memory in (None, Memory(), learned(CARRY)):
        asked, _ = remembering(memory, select="cues")
        assert asked == [Sample(P.prompt, 4)]


@pytest.mark.parametrize(
    ("budget", "scores", "draws"),
    [(6, [0] * 6, [2, 2, 2]), (4, [0] * 4, [1, 1, 2]), (2, [0, 0], [1, 1]), (1, [0], [1]), (6, [0, 0, 0, 1], [2, 2])],
)
def test_failed_attempts_are_told_and_tried_again(budget, scores, draws):
    texts = iter("abcdef")
    verify = scored(lambda text: scores["abcdef".index(text[0])])
    asked, answer = remembering(None, budget, lambda ask: [f"{next(texts)}=1" for _ in range(ask.n)], verify=verify)
    assert [ask.n for ask in asked] == draws and asked[0].prompt == P.prompt
    for i, ask in enumerate(asked[1:], 1):
        assert f"Attempt:\n{'abcdef'[sum(draws[:i]) - 1]}=1" in ask.prompt.text and ask.prompt.text.endswith(
            P.question
        )
    assert answer.response.text == ("d=1" if 1 in scores else "a=1")


def test_a_memory_that_was_written_from_the_problem_is_refused():
    memory, _ = merge(Memory(), [CARRY], "t/1", P.question)
    with pytest.raises(ValueError, match="problem p: the memory of concepts was written from it"):
        next(arcmemo(P, 2, rng(), memory))


SIGNS = "!#$%&*+,/:;<>@^_|~§°µ¤¬¦"


def operators(shuffled=False):
    """A symbolic writer's memory of 24 operators: what each sign means, or another's meaning."""
    meanings = [(i % 4 + 1, i % 6) for i in range(len(SIGNS))]
    memory = Memory()
    for i, sign in enumerate(SIGNS):
        a, b = meanings[(i + 7) % 24 if shuffled else i]
        rule = {"name": f"op{i}", "kind": "routine", "cues": [sign], "implementation": [f"x{sign}y={a}x+{b}y"]}
        memory, skipped = merge(memory, [rule, {"name": f"op{i}"}], f"train/{i}", f"1{sign}1")
        assert not skipped
    return memory, meanings


def solver(prompt, text):
    """Solves `2 # 3 @ 4`, from left to right, by the rules it is told, and guesses one of ten where one is missing."""
    if text:
        return {"": 1.0}
    x, *rest = prompt.split("Compute ")[-1].rstrip("?").split(" ")
    value = int(x)
    for sign, operand in zip(rest[::2], rest[1::2], strict=True):
        rule = re.search(rf"x{re.escape(sign)}y=(\d)x\+(\d)y", prompt)
        if rule is None:
            return {f"={guess}": 0.1 for guess in range(10)}
        value = int(rule[1]) * value + int(rule[2]) * int(operand)
    return {f"={value}": 1.0}


def composites(n=60):
    """Problems of two operators, with their answers."""
    noise, (_, meanings) = np.random.default_rng(1), operators()
    for _ in range(n):
        (x, y, z), (f, g) = noise.integers(1, 9, 3), noise.integers(0, 24, 2)
        value = meanings[f][0] * x + meanings[f][1] * y
        value = meanings[g][0] * value + meanings[g][1] * z
        yield problem(f"Compute {x} {SIGNS[f]} {y} {SIGNS[g]} {z}", right=str(value), max_tokens=4)


def instances():
    """A memory of solved problems as they were, in place of what they teach."""
    memory, meanings = Memory(), operators()[1]
    for i, sign in enumerate(SIGNS):
        told = {"name": f"1{sign}1", "kind": "structure", "cues": [sign], "implementation": [f"= {sum(meanings[i])}"]}
        memory, _ = merge(memory, [told], f"train/{i}", f"1{sign}1")
    return memory


def test_concepts_of_solved_problems_solve_their_composites():
    """Hidden operators: with concepts all is right; without, with another's meanings or by examples it is guessed."""
    memory, shuffled = operators()[0], operators(shuffled=True)[0]
    settings = {
        "none": {},
        "instances": {"memory": instances()},
        "concepts": {"memory": memory},
        "all": {"memory": memory},
        "shuffled": {"memory": shuffled},
    }
    right, tokens = {}, {}
    for name, said in settings.items():
        strategy = functools.partial(arcmemo, select="all" if name == "all" else "cues", **said)
        cells = [Cell(f"{p.id}{i}", p, strategy, 1) for i, p in enumerate(composites())]
        results = run(ToyEngine(solver), cells)
        right[name] = np.mean([r.cell.problem.correct(r.answer.response.text) for r in results])
        tokens[name] = np.mean([len(r.answer.response.prompt.text) for r in results])
    assert right["concepts"] == right["all"] == 1.0
    assert max(right["none"], right["shuffled"], right["instances"]) < 0.15
    assert tokens["concepts"] < 0.4 * tokens["all"]


def test_cues_select_all_that_is_needed_and_a_quarter_of_the_words():
    memory, _ = operators()
    for one in composites():
        names = matching(memory, one.question, 5)
        needed = {f"op{SIGNS.index(sign)}" for sign in one.question if sign in SIGNS}
        assert set(names) == needed and len(render(memory, names)) <= 0.25 * len(render(memory))


def test_a_memory_that_grows_by_what_was_verified_makes_the_second_half_easier():
    """A stream of 240 problems, ten of each operator, in batches of 24: rules are learned of those guessed rightly."""
    (_, meanings), memory, halves = operators(), Memory(), []
    pairs = [(0, 1), (1, 0), (1, 1), (2, 0), (0, 2), (2, 1), (1, 2), (3, 0), (0, 3), (2, 2)]
    for batch, (x, y) in enumerate(pairs):
        cells = []
        for i, sign in enumerate(SIGNS):
            value = str(meanings[i][0] * x + meanings[i][1] * y)
            said = problem(f"Compute {x} {sign} {y}", right=value, max_tokens=4)
            strategy = functools.partial(arcmemo, memory=memory, select="cues")
            cells.append(Cell(f"{batch}/{i}", said, strategy, 1, replicate=batch))
        solved = [r.cell.problem.correct(r.answer.response.text) for r in run(ToyEngine(solver), cells)]
        halves.append(np.mean(solved))
        for i, right in enumerate(solved):
            if right:
                rule = f"x{SIGNS[i]}y={meanings[i][0]}x+{meanings[i][1]}y"
                entry = {"name": f"op{i}", "kind": "routine", "cues": [SIGNS[i]], "implementation": [rule]}
                memory, _ = merge(memory, [entry], f"{batch}/{i}", cells[i].problem.question)
    assert np.mean(halves[5:]) - np.mean(halves[:5]) >= 0.08 and len(memory.concepts) < 24
