"""A strategy for each difficulty, at inference."""

import functools
import math

import pytest
from played import P, play, response, rng, scored
from toy import ToyEngine, problem, run, told

from extratime.evaluate.grid import bind, parse
from extratime.evaluate.named import RecipeError
from extratime.evaluate.program import EngineError
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.beam_search import beam_search
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.by_difficulty import by_difficulty
from extratime.evaluate.strategies.greedy import greedy
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.verifiers.oracle import oracle
from extratime.models.request import Sample

# --- a strategy for each difficulty, at inference

search = functools.partial(beam_search, verify=scored({"=1": 0.8, "=2": 0.1, "=3": 0.0}))
TWO = {"strategies": (self_consistency, search), "edges": (0.5,), "look": 2}


def test_plain_draws_of_the_pilot_are_the_first_of_the_strategy_s_own():
    pilot, rest = [response("=1"), response("=2")], [response("=2"), response("=3")]
    verify = scored({"=1": 0.9, "=2": 0.1})  # a mean of 0.5 is on the easier side
    asked, answer = play(by_difficulty(P, 4, rng(), verify, **TWO), pilot, rest)
    assert asked == [Sample(P.prompt, 2), Sample(P.prompt, 2)]
    assert answer.pool == (*pilot, *rest) and answer.response.text == "=2" and answer.why == "majority vote"


def test_a_pilot_that_is_all_the_strategy_wants_is_all_there_is():
    pilot = [response("=1"), response("=2")]
    asked, answer = play(by_difficulty(P, 2, rng(), scored({"=1": 0.9, "=2": 0.9}), **TWO), pilot)
    assert asked == [Sample(P.prompt, 2)] and answer.pool == tuple(pilot)


def test_another_strategy_has_left_what_the_pilot_did_not_take():
    pilot, beams = [response("=1"), response("=2")], [response("=2"), response("=3")]
    program = by_difficulty(P, 4, rng(), scored({"=1": 0.8, "=2": 0.1, "=3": 0.0}), **TWO)
    asked, answer = play(program, pilot, beams, beams)
    assert asked[1] == Sample(P.prompt, 2, pause=("\n",)) and answer.pool == tuple(beams)


def test_where_nothing_is_left_the_pilot_s_best_answers():
    pilot = [response("=1"), response("=2")]
    _, answer = play(by_difficulty(P, 2, rng(), scored({"=1": 0.1, "=2": 0.2}), **TWO), pilot)
    assert answer.response.text == "=2" and "nothing is left after a pilot of 2" in answer.why


@pytest.mark.parametrize("nothing", [math.nan, -math.inf])
def test_a_pilot_without_scores_is_hard(nothing):
    pilot, beams = [response("=1"), response("=2")], [response("=1")] * 2
    program = by_difficulty(P, 4, rng(), scored({"=1": nothing, "=2": nothing}), **TWO)
    asked, _ = play(program, pilot, beams, beams)
    assert asked[1].pause == ("\n",)


def test_a_strategy_spends_no_more_than_its_bin_s_bound():
    verify = scored({"=1": 0.9})
    asked, _ = play(by_difficulty(P, 16, rng(), verify, **TWO, most=(3, 8)), [response("=1")] * 2, [response("=1")])
    assert asked[1] == Sample(P.prompt, 1)


def test_draws_at_another_temperature_are_not_the_pilot_s():
    options = TWO | {"strategies": (greedy, search)}
    pilot = [response("=1")] * 2
    asked, answer = play(by_difficulty(P, 4, rng(), scored({"=1": 1.0}), **options), pilot, [response("=4")])
    assert asked[1] == Sample(P.prompt, 1, temperature=0) and answer.response.text == "=4"


def test_an_engine_s_error_reaches_the_strategy_that_asked():
    def careful(problem, budget, rng):
        try:
            return (yield from self_consistency(problem, budget, rng))
        except EngineError:
            return (yield from greedy(problem, budget, rng))

    options = TWO | {"strategies": (careful, search)}
    program = by_difficulty(P, 4, rng(), scored({"=1": 1.0}), **options)
    asked, answer = play(program, [response("=1")] * 2, EngineError("gone"), [response("=5")])
    assert asked[2].temperature == 0 and answer.response.text == "=5"


@pytest.mark.parametrize("options", [{"edges": ()}, {"edges": (0.5, 0.1)}, {"look": 0}, {"most": (1,)}])
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match="2 strategies need one edge less"):
        next(by_difficulty(P, 4, rng(), scored({}), **TWO | options))


def test_the_choice_costs_no_more_than_the_strategy_alone_and_answers_the_same():
    law = told(lambda text: {"": 1.0} if text else {"=1": 0.6, "=2": 0.4})
    chosen = functools.partial(by_difficulty, verify=oracle, strategies=(self_consistency, best_of_n), edges=(-1.0,))
    alone, within = (
        run(ToyEngine(law), [Cell(f"{i}", P, strategy, 8, replicate=i) for i in range(30)])
        for strategy in (self_consistency, chosen)
    )
    assert [r.answer for r in alone] == [r.answer for r in within]
    assert [r.cost.generated for r in alone] == [r.cost.generated for r in within]


def test_easy_problems_get_the_cheap_strategy_and_hard_ones_the_search():
    """Two kinds of problems, told apart by a pilot of 4: P(no hit in 4) is 0.5⁴ where they are easy."""

    def law(prompt, text):
        hit = 0.5 if prompt.startswith("easy") else 0.0
        return {"": 1.0} if text else {"=1": hit, "=2": 1 - hit}

    chosen = functools.partial(by_difficulty, verify=oracle, strategies=(self_consistency, greedy), edges=(0.1,))
    cells = [
        Cell(f"{kind}{i}", problem(kind, max_tokens=4), chosen, 8, replicate=i)
        for kind in ("easy", "hard")
        for i in range(200)
    ]
    why = [result.answer.why for result in run(ToyEngine(law, slots=64), cells)]
    assert why[200:].count("greedy decoding") == 200
    assert 1 <= why[:200].count("greedy decoding") <= 28  # binomial with p = 1/16, 99.9 %


RECIPE = {"model": "m", "tasks": ["t"], "output": "o"}


def entry(*strategies, **options):
    return {"by_difficulty": {"strategies": list(strategies), **options}}


def test_a_recipe_names_the_strategies_of_the_bins_as_it_names_any():
    said = entry("self_consistency", {"beam_search": {"verify": "oracle", "width": 2}}, edges=[0.5], verify="oracle")
    (spec,) = parse(RECIPE | {"strategies": [said]}).strategies
    first, second = bind(spec, {}).keywords["strategies"]
    assert first.func is self_consistency
    assert (second.func, second.keywords["width"], second.keywords["verify"].func) == (beam_search, 2, oracle)


@pytest.mark.parametrize(
    ("inner", "words"), [("bests", "no strategy 'bests'"), ({"best_of_n": {"widht": 1}}, "no option 'widht'")]
)
def test_a_wrong_strategy_of_a_bin_is_named_before_any_work(inner, words):
    with pytest.raises(RecipeError, match=words):
        parse(RECIPE | {"strategies": [entry(inner)]})
