"""Strategies by other rules: giving up early, spawning and joining."""

import functools
import itertools
import math
import random

import numpy as np
import pytest
from countdown import moves
from played import P, play, response, rng, scored
from toy import ToyEngine, ended, problem, run, told

from extratime.evaluate.algorithms.stopping import ceiling, learned, running, stops
from extratime.evaluate.program import Gather
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.early_stopping import early_stopping
from extratime.evaluate.strategies.parallel_reasoning import parallel_reasoning
from extratime.evaluate.streams import Streams
from extratime.models.request import Completion, Sample, fail


def begun(*texts, n=3):
    return [response(text, "length", n) for text in texts]


# --- giving up early


def test_what_falls_below_the_threshold_is_read_no_further():
    table = {"a": 0.5, "b": 0.05, "c": 0.3, "aa": 0.09, "cc": 0.4, "ccc=1": 0.2}
    program = early_stopping(P, 3, rng(), scored(table), threshold=0.1, every=3)
    asked, answer = play(program, begun("a", "b", "c"), begun("aa", "cc", n=6), [response("ccc=1")])
    assert asked[0] == Sample(P.prompt, 3, max_tokens=3)
    assert [r.text for r in asked[1].along] == ["a", "c"] and asked[1].max_tokens == 6
    assert [r.text for r in asked[2].along] == ["cc"] and asked[2].max_tokens == 12  # the last one: no more looks
    assert answer.response.text == "ccc=1" and answer.weights == (0.09, 0.05, 0.2)
    assert [r.text for r in answer.pool] == ["aa", "b", "ccc=1"] and answer.why == "2 of 3 given up"


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.02, 0.05, 0.01], "b"),
        ([0.0, 0.0, 0.0], "abc"),
        ([math.nan, -math.inf, 0.0], "abc"),
        ([math.nan, 0.4, 0.1], "bc"),
        ([-0.1, -9.0, -2.2], "ac"),
        ([0.0, 0.0, -1e-9], "abc"),  # logarithms: zero is certainty
    ],
)
def test_one_is_always_left_and_equal_scores_stop_nobody(scores, kept):
    program = early_stopping(P, 3, rng(), scored(dict(zip("abc", scores, strict=True))), threshold=0.1, every=3)
    next(program)
    assert "".join(r.text for r in program.send(begun(*"abc")).along) == kept


def test_a_good_finished_response_lets_the_hopeless_go_and_a_failed_one_does_not():
    table = {"a=1": 0.9, "b": 0.0, "c": 0.2}
    program = early_stopping(P, 2, rng(), scored(table), every=3)
    _, answer = play(program, [response("a=1", n_tokens=3), *begun("b")])
    assert answer.response.text == "a=1" and [r.text for r in answer.pool] == ["a=1", "b"]
    program = early_stopping(P, 2, rng(), scored(table | {"a": 0.9}), every=3)
    next(program)
    assert [r.text for r in program.send([fail(response("a"), "no"), *begun("b")]).along] == ["b"]


def letters(text):
    """A good or a bad beginning, ten more letters, and an answer that is right after a good one."""
    if not text:
        return {"g": 0.6, "b": 0.4}
    if len(text) < 11:
        return {"x": 1.0}
    return {"": 1.0} if "=" in text else {"=1" if text[0] == "g" else "=2": 1.0}


def by_letter(problem, responses):
    yield from ()
    return [0.9 if r.text.startswith("g") else 0.02 for r in responses]


def test_tokens_of_hopeless_responses_are_saved_and_the_ledger_says_so():
    """13 tokens a response, 4 of one that is given up; all are read where nobody is better."""
    strategy = functools.partial(early_stopping, verify=by_letter, every=4)
    cells = [Cell(f"{i}", problem(max_tokens=16), strategy, 4, replicate=i) for i in range(120)]
    seen = set()
    for result in run(ToyEngine(told(letters), slots=64), cells):
        good = sum(r.text[0] == "g" for r in result.answer.pool)
        read = 13 * good + 4 * (4 - good) if good else 13 * 4
        assert result.cost.generated == read and (ended(result.answer.response.text) == "1") == (good > 0)
        seen.add(good)
    assert seen == {0, 1, 2, 3, 4}


def ragged(text):
    """Ends at any time; each letter is unlikely, so that long responses are poor."""
    return {"": 0.4} | dict.fromkeys("abcd", 0.15) if text else {"=": 1.0}


def test_what_cannot_win_is_given_up_and_the_answer_stays_that_of_best_of_n():
    exact = functools.partial(early_stopping, threshold=None, every=1)
    both = []
    for strategy in (best_of_n, exact):
        cells = [Cell(f"{i}", problem(max_tokens=8), strategy, 6, replicate=i) for i in range(150)]
        both.append(run(ToyEngine(told(ragged), slots=64), cells))
    assert [r.answer.response for r in both[0]] == [r.answer.response for r in both[1]]
    spent = [sum(r.cost.generated for r in results) for results in both]
    assert spent[1] < 0.85 * spent[0]


def test_without_a_threshold_only_what_cannot_reach_a_finished_one_is_given_up():
    table = {"a=1": -1.0, "b": -1.5, "c": -3.0, "d": -0.1}
    program = early_stopping(P, 4, rng(), scored(table), threshold=None, every=6)
    next(program)
    pool = [response(text, "length" if text in "bcd" else "eos", logprobs=(p,) * 6) for text, p in table.items()]
    assert [r.text for r in program.send(pool).along] == ["b", "d"]


def test_the_ceiling_is_a_mean_with_certain_tokens_up_to_a_full_length():
    assert ceiling(P, response("a", "length", 3, logprobs=(-1.0, -2.0, -3.0))) == pytest.approx(-0.5)
    assert ceiling(P, response("a", "length", 3)) == 0.0


def test_finished_responses_vote_where_asked():
    for first, winner in ((0.5, "b=2"), (0.9, "a=1")):
        table = {"a=1": first, "b=2": 0.4, "c=2": 0.4}
        program = early_stopping(P, 3, rng(), scored(table), vote=True)
        assert play(program, [response(text) for text in table])[1].response.text == winner


def test_what_is_read_to_its_full_length_was_not_given_up():
    program = early_stopping(P, 1, rng(), scored({"a": 0.5, "ab": 0.5}), every=3)
    _, answer = play(program, begun("a"), begun("ab", n=12))
    assert answer.why == "0 of 1 given up" and not answer.response.finished


@pytest.mark.parametrize(("loss", "threshold"), [(0.0, 0.2), (0.24, 0.2), (0.25, 0.3), (0.5, 0.6), (0.75, math.inf)])
def test_a_learned_threshold_loses_at_most_its_share_of_the_right(loss, threshold):
    lowest, right = [0.3, 0.1, 0.2, 0.6, 0.25, math.inf], [True, False, True, True, False, True]
    assert learned(lowest, right, loss) == threshold
    assert stops(lowest, right, threshold).lost <= loss
    tighter = np.nextafter(threshold, math.inf)
    assert threshold == math.inf or stops(lowest, right, tighter).lost > loss


def test_what_a_threshold_does():
    lowest, right = [0.1, 0.2, 0.3, 0.4, 0.5], [False, True, False, False, True]
    assert stops(lowest, right, 0.35) == (2 / 3, 2 / 3, 1 / 2)
    nothing = stops(lowest, right, 0.0)
    assert math.isnan(nothing.precision) and nothing[1:] == (0.0, 0.0)


def test_nothing_is_learned_without_right_responses():
    with pytest.raises(ValueError, match="needs right responses"):
        learned([0.5], [False])


def test_running_scores_are_geometric_means_at_each_look_before_the_end():
    logprobs = [math.log(p) for p in (0.5, 0.5, 0.125, 0.125, 1.0)]
    assert running(logprobs, 2) == pytest.approx([0.5, 0.25])
    assert running(logprobs[:4], 2) == pytest.approx([0.5]) and running(logprobs, 5) == []


# --- spawning and joining

LONG = problem(max_tokens=100)
TAGS = ("<join>", "</join>")


def spawned(*replies, budget=3, task=LONG, **options):
    """Play a parent whose children answer with the given threads; what was asked, and the answer."""
    program = parallel_reasoning(task, budget, rng(), **options)
    asked, request = [], next(program)
    for reply in replies:
        asked.append(request)
        if isinstance(request, Gather):
            asked[-1] = [next(child) for child in request.programs]
        try:
            request = program.send(reply)
        except StopIteration as stop:
            return asked, stop.value
    raise AssertionError(f"it still wants {request}")


def paused(text, n=20):
    return [Completion(LONG.prompt, text, n, finish="pause")]


def thread(text, finish="pause", n=5):
    return Completion(LONG.prompt, text, n, finish=finish)


def test_a_spawn_block_becomes_a_join_block_and_the_parent_reads_on():
    children = [thread("3 works <join>use 3</join>"), thread("no way", "eos")]
    asked, answer = spawned(
        paused("Think. <spawn>\ntry 3\n\n  try 4 \n</spawn>"), children, [thread("Think. … =3", "eos", 60)]
    )
    first, tasks, [stem] = asked[0], asked[1], asked[2].along
    assert first == Sample(LONG.prompt, pause=("</spawn>", "<join>"))
    assert [task.prompt for task in tasks] == [LONG.turn("try 3"), LONG.turn("try 4")]
    dropped = 20 - len("Think. ")
    assert all(task.max_tokens == (200 - dropped) // 2 and task.pause == ("</join>",) for task in tasks)
    assert stem.text == "Think. <join>\n1: use 3\n2: no result\n</join>" and asked[2].pause == first.pause
    assert answer.response.text == "Think. … =3" and answer.pool == (answer.response,)
    assert answer.why == "2 children ran"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (thread("<join>a</join>"), "a"),
        (thread("x<join> a b ", "eos"), "a b"),
        (thread("<join>a</join> <join>b</join>"), "b"),
        (thread("<join>", "eos"), "none"),
        (thread("a</join>"), "none"),
        (thread("<join>half a me", "length"), "none"),
        (thread("<join>half a me", "cut"), "none"),
        (fail(thread("<join>a"), "no"), "none"),
    ],
)
def test_what_a_child_returns(said, message):
    asked, _ = spawned(paused("<spawn>t</spawn>"), [said], [thread("=1", "eos")], nothing="none")
    assert asked[2].along[0].text == f"<join>\n1: {message}\n</join>"


def test_a_child_reads_a_full_length_at_most_and_only_the_last_opening_opens_a_block():
    asked, _ = spawned(paused("a <spawn> b <spawn>t</spawn>"), [thread("<join>m</join>")], [thread("=1", "eos")])
    assert [ask.max_tokens for ask in asked[1]] == [LONG.max_tokens]
    assert asked[2].along[0].text == "a <spawn> b <join>\n1: m\n</join>"


def test_a_parent_that_begins_a_join_itself_is_made_to_spawn():
    asked, _ = spawned(paused("So <join>"), [thread("So <spawn> =1", "eos", 40)])
    assert asked[1].along[0].text == "So <spawn>"


@pytest.mark.parametrize("text", ["t</spawn>", "<spawn>\n \n</spawn>", "</spawn>"])
def test_half_a_spawn_is_read_past(text):
    asked, answer = spawned(paused(text), [thread(f"{text} =1", "eos", 40)])
    assert asked[1].along == tuple(paused(text)) and answer.why == "0 children ran"


def test_children_share_the_rest_of_the_budget_and_those_beyond_the_first_do_not_run():
    tell = [thread("<join>a</join>", n=30), thread("<join>b</join>", n=40)]
    block, end = "<spawn>1\n2\n3</spawn>", [thread("=1", "eos", 90)]
    asked, _ = spawned(paused(block, 20), tell, paused("x " + block, 60), tell, end, budget=2, children=2)
    dropped, again = 20, 60 - len("x ")
    assert [ask.max_tokens for ask in asked[1]] == [(100 - dropped) // 2] * 2
    assert asked[2].along[0].text.endswith("1: a\n2: b\n3: no result\n</join>")
    assert (100 - dropped - 70 - again) // 2 < 1 and asked[3] == []
    alone, _ = spawned(paused(block), [], end, budget=1)
    assert alone[1] == [] and alone[2].along[0].text.count("no result") == 3


def threads(prompt, text):
    """Six tokens of spawn, children of three and five tokens, three more tokens of the parent."""
    head, _, said = (prompt + text).partition("?")
    if head in ("a", "b"):
        return {"": 1.0} if "</join>" in said else {"<join>m</join>" if len(said) >= 2 * (head == "b") else ".": 1.0}
    if "</join>" in said:
        after = said.rpartition("</join>")[2]
        return {{"": " so ", " so ": "=1"}.get(after, ""): 1.0}
    parts = ["<spawn>", "\n", "a?", "\n", "b?", "</spawn>"]
    return {parts[len(list(itertools.takewhile(said.startswith, itertools.accumulate(parts))))]: 1.0}


def test_the_ledger_tells_the_critical_path_and_the_total():
    cell = Cell("c", problem(max_tokens=100), parallel_reasoning, 3)
    [result] = run(ToyEngine(threads), [cell])
    assert result.answer.response.text == "<join>\n1: m\n2: m\n</join> so =1"
    assert result.cost.generated == 6 + (1 + 3) + 3
    assert result.cost.sequential == 6 + 3 + 3


def twins(prompt, text):
    head, _, said = (prompt + text).partition("?")
    if head == "a":
        return {"": 1.0} if said else {"<join>x</join>": 0.5, "<join>y</join>": 0.5}
    if "</join>" in said:
        return {"": 1.0} if "=" in said else {"=1": 1.0}
    return {"<spawn>a?\na?</spawn>": 1.0}


def test_equal_sub_tasks_are_separate_draws_and_keep_their_places():
    seen = set()
    for i in range(30):
        streams = Streams()
        [result] = run(
            ToyEngine(twins), [Cell("c", problem(max_tokens=100), parallel_reasoning, 3, replicate=i)], streams
        )
        drawn = [streams.paths[path].text for path in streams.paths if path.lane in ((i, 0, 0), (i, 0, 1))]
        lanes = {path.lane: known.text for path, known in streams.paths.items() if len(path.lane) == 3}
        told = [lanes[i, 0, place].removeprefix("<join>").removesuffix("</join>") for place in (0, 1)]
        assert len(drawn) == 2 and result.answer.response.text.startswith(f"<join>\n1: {told[0]}\n2: {told[1]}\n")
        seen.add(tuple(told))
    assert len(seen) == 4


# --- Countdown with three numbers: gold traces through the runtime


def solved(numbers, target):
    """The first path to the target, or "none"."""
    for word, left in moves(numbers):
        if len(left) == 1 and left[0] == target:
            return word
        if len(left) > 1 and (path := solved(left, target)) != "none":
            return f"{word};{path}"
    return "none"


def gold(prompt, text):
    """The parent tries every first move in a child; a child looks one move further."""
    head, _, said = (prompt + text).partition("?")
    numbers, target = [int(n) for n in head.strip("pc").partition(">")[0].split(",")], int(head.partition(">")[2])
    if head[0] == "c":
        path = solved(numbers, target)
        whole = "tried" if path == "none" else f"tried<join>{path}</join>"
    elif "</join>" not in said:
        lines = [f"c{','.join(map(str, left))}>{target}?" for _, left in moves(numbers)]
        whole = "<spawn>" + "\n".join(lines) + "</spawn>"
    else:
        told = [line.partition(": ")[2] for line in said.partition("</join>")[0].splitlines()[1:]]
        paths = [
            f"{word};{path}" for (word, _), path in zip(moves(numbers), told, strict=False) if path != "no result"
        ]
        whole = said.partition("</join>")[0] + "</join>=" + (paths or ["none"])[0]
    return {whole[len(said) :]: 1.0}


def test_gold_traces_replay_to_what_the_solver_finds_and_hang_on_the_joins():
    pick = random.Random(0)
    puzzles = [([pick.randint(1, 20) for _ in range(3)], pick.randint(5, 60)) for _ in range(90)]
    tasks = [problem(f"p{','.join(map(str, n))}>{t}", max_tokens=600) for n, t in puzzles]
    expected = [solved(numbers, target) for numbers, target in puzzles]
    assert 10 < sum(path != "none" for path in expected) < 80
    for budget, right in ((2, expected), (1, ["none"] * len(puzzles))):
        strategy = functools.partial(parallel_reasoning, children=12)
        cells = [Cell(task.id, task, strategy, budget) for task in tasks]
        assert [ended(r.answer.response.text) for r in run(ToyEngine(gold), cells)] == right
