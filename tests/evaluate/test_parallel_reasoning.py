"""Spawning against thinking in one line: Countdown in a window of 192 tokens, and who counts for what."""

import functools
import random

import pytest
from countdown import moves
from toy import ToyEngine, ended, problem, run

from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.parallel_reasoning import parallel_reasoning

WINDOW, PUZZLES = 192, 200


def searched(numbers, target):
    """The trace of a depth-first search, a word a node, and the path that it ends with, or ""."""
    words = []
    for word, left in moves(numbers):
        words.append(word)
        if len(left) == 1 and left[0] == target:
            return words, word
        if len(left) > 1:
            more, path = searched(left, target)
            words += more
            if path:
                return words, f"{word};{path}"
    return words, ""


def written(puzzle):
    return ",".join(map(str, puzzle[0])) + f">{puzzle[1]}"


def read(head):
    numbers, _, target = head.partition(">")
    return [int(n) for n in numbers.split(",")], int(target)


@functools.cache
def puzzles():
    """Numbers from 1 to 20 and targets from 5 to 60 that can be reached."""
    draw, found = random.Random(0), []
    while len(found) < PUZZLES:
        puzzle = tuple(draw.randint(1, 20) for _ in range(3)), draw.randint(5, 60)
        if searched(*puzzle)[1]:
            found.append(puzzle)
    return found


def letter(whole, said):
    return {whole[len(said) : len(said) + 1]: 1.0}


@functools.cache
def alone(head):
    """One thread writes the whole search."""
    words, path = searched(*read(head))
    return f"{' '.join(words)}={path or 'none'}"


@functools.cache
def searching(head):
    """A child searches what is left of a first move."""
    words, path = searched(*read(head))
    return " ".join(words) + (f"<join>{path}</join>" if path else "")


@functools.cache
def spawning(head):
    numbers, target = read(head)
    return "<spawn>" + "\n".join(f"c{written((left, target))}?" for _, left in moves(numbers)) + "</spawn>"


def model(prompt, text):
    """Token by token: a serial search after "s", a spawning one after "p", a child's after "c"."""
    head, _, said = (prompt + text).partition("?")
    if head[0] in "sc":
        return letter((alone if head[0] == "s" else searching)(head[1:]), said)
    before, joined, after = said.rpartition("</join>")
    if not joined:
        return letter(spawning(head[1:]), said)
    told = [line.partition(": ")[2] for line in before.splitlines()[1:]]
    firsts = [word for word, _ in moves(read(head[1:])[0])]
    paths = [f"{word};{path}" for word, path in zip(firsts, told, strict=True) if path != "-"]
    return letter("=" + (paths or ["none"])[0], after)


@functools.cache
def played(kind, budget):
    strategy = functools.partial(parallel_reasoning, children=12, nothing="-")
    tasks = [problem(f"{kind}{written(puzzle)}", max_tokens=WINDOW) for puzzle in puzzles()]
    return run(ToyEngine(model, slots=64), [Cell(task.id, task, strategy, budget) for task in tasks])


def accuracy(results):
    """Share of responses that end within the window in a path to the target."""
    right = 0
    for puzzle, result in zip(puzzles(), results, strict=True):
        path = ended(result.answer.response.text) if result.answer.response.finished else None
        right += path == searched(*puzzle)[1]
    return right / PUZZLES


def test_gold_traces_reproduce_the_solver_in_every_puzzle():
    assert accuracy(played("p", 8)) == 1.0


def test_in_one_window_threads_solve_what_one_line_cannot():
    """Published gates: at least 10 points more in a window of 192, and a chain below 0.7 of all tokens."""
    serial, parallel = played("s", 8), played("p", 8)
    assert accuracy(parallel) - accuracy(serial) >= 0.1
    assert sum(r.cost.sequential for r in parallel) < 0.7 * sum(r.cost.generated for r in parallel)
    assert all(r.cost.sequential == r.cost.generated for r in serial)  # it knows no protocol: one plain draw


def test_without_what_the_children_say_nothing_is_solved():
    """Every path is a child's, so that all of the accuracy must go with their messages."""
    assert accuracy(played("p", 1)) == 0.0


def test_the_chain_is_the_parent_and_the_longest_child():
    for puzzle, result in zip(puzzles(), played("p", 8), strict=True):
        children = [searching(written((left, puzzle[1]))) for _, left in moves(puzzle[0])]
        lengths = [len(child) + (not child.endswith("</join>")) for child in children]  # an end, where no join ends it
        own = len(spawning(written(puzzle))) + len("=" + searched(*puzzle)[1]) + 1
        assert result.cost.generated == own + sum(lengths)
        assert result.cost.sequential == own + max(lengths)


def twice(prompt, text):
    """Spawns one child of three tokens and one of five, then one of two and one of four."""
    head, _, said = (prompt + text).partition("?")
    if head in "abcd":
        return {"": 1.0} if "</join>" in said else {"." if len(said) < 2 + "cadb".index(head) - 1 else TELL: 1.0}
    block = ["<spawn>a?\nb?</spawn>", "<spawn>c?\nd?</spawn>"]
    joins = said.count("</join>")
    after = said.rpartition("</join>")[2]
    return {block[joins]: 1.0} if joins < 2 else {"": 1.0} if "=" in after else {"=1": 1.0}


TELL = "<join>m</join>"


def test_each_spawn_adds_its_own_longest_child():
    [result] = run(ToyEngine(twice), [Cell("c", problem(max_tokens=200), parallel_reasoning, 3)])
    lengths = {"c": 2, "a": 3, "d": 4, "b": 5}
    assert result.answer.response.text.count("1: m\n2: m") == 2
    assert result.cost.generated == 1 + 1 + 2 + sum(lengths.values())
    assert result.cost.sequential == 1 + 1 + 2 + lengths["b"] + lengths["d"]
    assert result.answer.why == "4 children ran"


def nested(prompt, text):
    """A child that writes a spawn block itself."""
    head, _, said = (prompt + text).partition("?")
    if head == "a":
        return letter("<spawn>b?</spawn><join>deep</join>", said)
    return letter("=1", said.rpartition("</join>")[2]) if "</join>" in said else letter("<spawn>a?</spawn>", said)


def test_children_spawn_nothing():
    [result] = run(ToyEngine(nested), [Cell("c", problem(max_tokens=200), parallel_reasoning, 3)])
    assert result.answer.response.text == "<join>\n1: deep\n</join>=1"
    assert result.answer.why == "1 children ran"


def endless(prompt, text):
    """A parent that spawns for as long as it may, and children that never join."""
    return {"x": 1.0} if prompt == "a?" else {"<spawn>a?</spawn>": 1.0}


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_a_model_that_spawns_without_end_keeps_to_its_budget(budget):
    [result] = run(ToyEngine(endless), [Cell("c", problem(max_tokens=60), parallel_reasoning, budget)])
    assert not result.error
    assert result.cost.generated <= budget * 60
    assert result.answer.response.n_tokens >= 60 and not result.answer.response.finished
    assert result.answer.response.text.count("no result") == result.answer.response.text.count("1: ")
