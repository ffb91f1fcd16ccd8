"""Forced answers: what is read, what it counts, and how often it is right."""

import functools
import zlib
from dataclasses import replace

import pytest
import tiny
from toy import ToyEngine, ended, p_value, problem, run, told

from extratime.evaluate.algorithms.forcing import Context, cut, force, put, success
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.strategies.budget_forcing import budget_forcing
from extratime.evaluate.streams import Streams
from extratime.models.request import Completion, Failure, Prompt, Sampling

CUE = "\n\n=>="


def attempts(text):
    """Two attempts, "a" or "b", parted by a blank line, then the answer; told to answer, it is right after an "a"."""
    if "=>=" in text:
        said = text.partition("=>=")[2]
        return {"": 1.0} if said else ({"1": 0.75, "2": 0.25} if "a" in text else {"1": 0.25, "2": 0.75})
    if text.count("\n\n") == 2:
        return {"=>=": 1.0}
    return {"\n\n": 1.0} if text[-1:] in ("a", "b") else {"a": 0.5, "b": 0.5}


CONTEXTS = ("", "b\n\n", "b\n\na\n\n")


def asked(k, replicate=0, streams=None, **fields):
    """Forced answers in each context, and the engine that gave them."""
    engine = ToyEngine(told(attempts))
    schedule = Schedule({"policy": engine}, streams or Streams())
    contexts = [Context(problem(**fields), prefix, CUE) for prefix in CONTEXTS]
    return force(schedule, contexts, k, 4, Sampling(), replicate=replicate), engine


def test_forced_answers_follow_the_models_law_in_each_context():
    found, engine = asked(200)
    for answers, prefix in zip(found, CONTEXTS, strict=True):
        law = {"1": 0.75, "2": 0.25} if "a" in prefix else {"1": 0.25, "2": 0.75}
        assert p_value((ended(r.text) for r in answers), law) > 1e-4
        assert all(r.text.startswith(prefix + CUE.lstrip("\n")) and r.finished for r in answers)
    assert engine.counts.decode == 3 * 200 * 2, "an answer and its end each: words put into a mouth are not generated"


def test_other_replicates_are_fresh_answers_and_known_ones_are_not_drawn_again():
    streams = Streams()
    first, again, other = (asked(8, replicate, streams) for replicate in (0, 0, 1))
    assert first[0] == again[0] and again[1].submitted == 0
    paths = [{r.path for r in answers} for found in (first, other) for answers in found[0]]
    assert all(len(one) == 8 for one in paths) and len(set.union(*paths)) == 48


def test_the_same_context_is_asked_once():
    engine = ToyEngine(told(attempts))
    context = Context(problem(), "a\n\n", CUE)
    one, other = force(Schedule({"policy": engine}, Streams()), [context, context], 5, 4, Sampling())
    assert one == other and engine.submitted == 5


def test_an_answer_that_failed_is_an_error_and_no_zero():
    engine = ToyEngine(told(attempts))
    engine.poll = lambda: [(ticket, Failure("gone")) for ticket in waiting]
    waiting = []
    engine.submit = lambda ticket, request: waiting.append(ticket)
    with pytest.raises(RuntimeError, match=r"2 of 2 forced answers in p/.* failed: gone"):
        force(Schedule({"policy": engine}, Streams()), [Context(problem(), "", CUE)], 2, 4, Sampling())


def test_success_counts_right_answers_and_only_after_the_prefix():
    right = problem(right="1")
    said = [replace(_completion("=1\n\n=>=" + text), stem=(0, 0)) for text in ("1", "2", "1", "1", "")]
    assert success(right, "=1\n\n", said) == 3 / 5
    assert success(right, "=1\n\n", [_completion("=1\n\nno")] * 4) == 0, "what parses in the prefix is no answer"
    with pytest.raises(ValueError, match="cannot tell right from wrong"):
        success(problem(correct=None), "", said)


def _completion(text):
    return Completion(Prompt("p?"), text, len(text))


def encode(text):
    """One token a character, behind a token of its own as many tokenizers put it."""
    return Prompt(text, (0, *map(ord, text)))


def test_words_put_have_tokens_of_their_own_and_probability_one():
    heard = problem(encode=encode)
    drawn = Completion(heard.prompt, "ab", 3, (97, 98), (-1.0, -2.0, -3.0), (-4.0, -5.0, -6.0), "eos")
    longer = put(heard, drawn, "cd")
    assert longer.text == "abcd" and longer.tokens == (97, 98, 99, 100) and longer.n_tokens == 4
    assert longer.logprobs == (-1.0, -2.0, 0.0, 0.0) and longer.tempered == (-4.0, -5.0, 0.0, 0.0)
    assert longer.readable and longer.path is None
    assert heard.prompt.then(longer).ids == (*heard.prompt.ids, 97, 98, 99, 100)


def test_where_tokens_are_not_known_the_text_is_read_anew():
    unheard = problem(encode=None)
    drawn = Completion(unheard.prompt, "ab", 3, (97, 98), (-1.0, -2.0, -3.0), finish="eos")
    longer = put(unheard, drawn, "cd")
    assert longer.text == "abcd" and longer.tokens == () and longer.n_tokens == 2
    assert unheard.prompt.then(longer).ids is None


def test_a_response_is_cut_at_a_token_or_read_anew():
    heard = problem(encode=encode)
    drawn = Completion(heard.prompt, "abc", 3, (97, 98, 99), (-1.0, -2.0, -3.0), (-1.0, -2.0, -3.0), "pause")
    assert cut(heard, drawn, "ab").logprobs == (-1.0, -2.0)
    merged = replace(drawn, n_tokens=2, tokens=(97, 9899), logprobs=(-1.0, -5.0), tempered=(-1.0, -5.0))
    assert cut(heard, merged, "ab") == replace(cut(heard, drawn, "ab"), logprobs=(0.0, 0.0), tempered=(0.0, 0.0))
    assert cut(problem(encode=None), drawn, "ab").tokens == ()


# --- the strategy


def forced(budget=1, law=attempts, replicates=1, length=24, encode=None, **options):
    strategy = functools.partial(budget_forcing, **options)
    cells = [
        Cell(f"{r}", problem(max_tokens=length, encode=encode), strategy, budget, replicate=r)
        for r in range(replicates)
    ]
    return run(ToyEngine(told(law)), cells)


@pytest.mark.parametrize(("episodes", "share"), [(0, 0.25), (1, 0.5), (2, 0.625)])
def test_the_forced_answer_curve_is_the_law_of_the_episodes(episodes, share):
    results = forced(replicates=400, episodes=episodes, end="=>=", stop=CUE)
    law = {"1": share, "2": 1 - share}
    assert p_value((ended(r.answer.response.text) for r in results), law) > 1e-3
    assert {r.answer.response.text.count("\n\n") for r in results} == {max(episodes, 0)}
    assert {r.cost.generated for r in results} == {2 * episodes + 2}


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4])
def test_a_cap_on_tokens_stops_the_thinking_there(most):
    for result in forced(replicates=20, most=most, end="=>=", stop=CUE):
        thought, _, answer = result.answer.response.text.partition("=>=")
        assert answer in ("1", "2") and result.cost.generated == most + 2
        assert len(thought.replace("\n\n", "\n")) == most + (most % 2)


def test_thinking_that_ends_before_the_cap_is_left_alone():
    plain = [r.answer for r in forced(replicates=20)]
    assert [r.answer.response for r in forced(replicates=20, most=20, end="=>=")] == [a.response for a in plain]


def thinker(text):
    """Thinks one word at a time and ends its thinking after each with "/", then answers with how often it thought."""
    if "=" in text:
        return {"": 1.0}
    if text.endswith("/"):
        return {f"={text.count('w')}": 1.0}
    return {"/": 1.0} if text.endswith("w") else {"w": 1.0}


def test_an_ignored_end_is_dropped_and_the_thinking_goes_on():
    for budget in (1, 2, 4):
        [result] = forced(budget, thinker, end="/", more="+")
        assert result.answer.response.text == "w" + "+w" * (budget - 1) + f"/={budget}"
        assert result.answer.why == f"{budget - 1} ends ignored"


def pieces(text):
    """The toy's own tokens of a text, a character each."""
    return Prompt(text, tuple(zlib.crc32(letter.encode()) for letter in text))


def test_no_end_is_ignored_once_the_least_is_reached():
    for least, times in ((2, 0), (3, 1), (4, 1), (5, 2), (6, 2)):
        [result] = forced(16, thinker, end="/", more="+", least=least, encode=pieces)
        assert result.answer.response.text == "w" + "+w" * times + f"/={times + 1}"


def test_an_extension_that_would_leave_no_room_is_not_made():
    [result] = forced(64, thinker, length=9, end="/", more="+", most=6, stop="/", encode=pieces)
    assert result.answer.response.text == "w+w+w/=3" and result.answer.response.finished


def runaway(text):
    """Ends at once; told to go on, it never ends again."""
    return {"x": 1.0} if "+" in text or not text else {"": 1.0}


def test_what_was_finished_before_an_endless_extension_answers():
    [result] = forced(2, runaway, more="+")
    assert result.answer.response.text == "x" and len(result.answer.pool) == 2


def test_a_model_that_ends_again_at_once_loses_no_answer():
    """Told to go on it says nothing more, and from the words put alone no answer can be read."""
    for more, said in (("+=", "=1"), ("+", "=1++")):
        [result] = forced(3, lambda text: {"": 1.0} if text else {"=1": 1.0}, more=more)
        assert result.answer.response.text == said and len(result.answer.pool) == 3
        assert result.answer.why == "2 ends ignored" and result.cost.generated == 2 + 1 + 1


def test_on_a_real_engine_the_words_are_read_as_tokens():
    engine = tiny.engine(eos=False)
    heard = problem(max_tokens=24)
    heard = replace(heard, prompt=engine.encode("p?"), encode=engine.encode)
    strategy = functools.partial(budget_forcing, most=8, stop="\n\nabc=")
    [result] = run(engine, [Cell("c", heard, strategy, 1)])
    said = result.answer.response
    assert said.n_tokens == 24 == len(said.tokens) == len(said.logprobs) and result.cost.generated < 24
    words = engine.encode("\n\nabc=").ids
    assert said.tokens[8 : 8 + len(words)] == words and set(said.logprobs[8 : 8 + len(words)]) == {0.0}
