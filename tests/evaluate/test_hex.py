"""HEX: what it asks of each decode, and what it makes of the answers; the decoder's own laws are in test_diffusion."""

import numpy as np
import pytest
from toy import ToyEngine, ended, problem, run, told

from extratime.evaluate.grid import parse
from extratime.evaluate.named import RecipeError
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.hex import hex
from extratime.models.request import Completion, Sample, Sampling
from extratime.models.unmasking import Unmasking

P = problem(max_tokens=12)


def rng():
    return np.random.default_rng(0)


def response(text, **fields):
    return Completion(P.prompt, text, 6, **fields)


def decoded(said, **options):
    """What HEX asks of each decode, and its answer; None stands for a response that does not parse."""
    program = hex(P, len(said), rng(), **options)
    asked = [next(decode) for decode in next(program).programs]
    texts = [f"={answer}" if answer else "…" for answer in said]
    replies = [[response(text, logprobs=(-i - 1.0,))] for i, text in enumerate(texts)]
    try:
        program.send(replies)
    except StopIteration as stop:
        return asked, stop.value
    raise AssertionError("it wants more")


def test_schedules_take_turns_while_the_budget_lasts():
    asked, _ = decoded("1111111")
    assert asked == [Sample(P.prompt, block=block) for block in (8, 16, 32, 64, 128, 8, 16)]
    assert [ask.block for ask in decoded("11", blocks=(4,))[0]] == [4, 4]


def test_unparsed_decodes_are_dropped_and_a_tie_goes_to_the_first():
    _, answer = decoded(["7", None, "7", "3", "3"])
    assert (answer.response.text, answer.why) == ("=7", "tie between schedules") and len(answer.pool) == 5
    _, answer = decoded(["7", None, None, "3"])
    assert (answer.response.text, answer.why) == ("=7", "tie between schedules")
    _, answer = decoded(["7", None, "3", "3"])
    assert (answer.response.text, answer.why) == ("=3", "majority over schedules")


def test_a_tie_may_go_to_the_likeliest_of_the_tied():
    pool = [
        response(f"={a}", logprobs=(p,)) for a, p in (("7", -3.0), ("3", -3.5), ("7", -4.0), ("3", -2.0), ("1", -0.1))
    ]
    for ties, winner in (("first", pool[0]), ("likelihood", pool[3])):
        program = hex(P, 5, rng(), ties=ties)
        next(program)
        with pytest.raises(StopIteration) as stop:
            program.send([[r] for r in pool])
        assert stop.value.value.response is winner and set(stop.value.value.pool) == set(pool)


def test_where_no_decode_parses_nobody_votes():
    _, answer = decoded([None, None, None])
    assert answer.why == "nobody voted" and answer.response.text == "…"


def test_an_autoregressive_model_has_one_schedule():
    law = told(lambda text: {"": 1.0} if text else {"=1": 0.6, "=2": 0.4})
    cells = [Cell(f"{i}", problem(max_tokens=4), hex, 5, Sampling(0.9), replicate=i) for i in range(40)]
    results = run(ToyEngine(law), cells)
    assert all(r.sampling == Sampling(0.9) for result in results for r in result.answer.pool)
    for result in results:
        votes = [ended(r.text) for r in result.answer.pool]
        assert ended(result.answer.response.text) == max(votes, key=votes.count)
        assert result.cost.sequential == 2 and result.cost.generated == 10


def test_a_recipe_names_a_schedule_where_the_engine_is_a_diffusion_model():
    said = {"model": "m", "tasks": ["t"], "strategies": ["hex"], "output": "o"}
    law = {"temperature": 0.9, "length": 64, "block": 16}
    assert parse(said | {"engine": {"kind": "diffusion"}, "sampling": law}).sampling == Unmasking(
        0.9, length=64, block=16
    )
    with pytest.raises(RecipeError, match="unknown key 'length'"):
        parse(said | {"sampling": law})
    with pytest.raises(RecipeError, match="do not fill"):
        parse(said | {"engine": {"kind": "diffusion"}, "sampling": law | {"block": 48}})
