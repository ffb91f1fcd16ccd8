"""Generative judges on toy laws known in closed form."""

import functools
import itertools
import math

import pytest
from toy import ToyEngine, ended, p_value, problem

from extratime.evaluate.cost import Ledger
from extratime.evaluate.grid import JudgeSpec, parse
from extratime.evaluate.means import refuse_beyond_means
from extratime.evaluate.named import RecipeError
from extratime.evaluate.program import Answer, sample
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.streams import Streams
from extratime.evaluate.verifiers.generative import Bench, generative, think
from extratime.models.judge import Judge
from extratime.models.request import Completion, Failure, Prompt, Sample, fail

JUDGE = Judge(pointwise="{problem} one {response} ok?", pairwise="{problem} a {first} b {second} ok?", opener="#")
PROBLEM = problem()


def policy(prompt, text):
    return {"": 1.0} if text else {"=1": 0.5, "=2": 0.3, "=3": 0.2}


def thinking(reach=1.0, yes=0.5):
    """A judge that thinks for one to three tokens, then opens its verdict with probability `reach`, else ends."""

    def law(prompt, text):
        if "#" in text:
            return (
                {"": 1.0}
                if not text.endswith("#")
                else {" Yes": yes / 2, " A": yes / 2, " No": 0.5 - yes / 2, " B": 0.5 - yes / 2}
            )
        if text.endswith(("h", "hh")) and not text.endswith("hhh"):
            return {"#": reach / 2, "h": reach / 2, "": 1 - reach}
        return {"#": reach, "": 1 - reach} if text.endswith("hhh") else {"h": 1.0}

    return law


def responses(*texts):
    return [Completion(PROBLEM.prompt, text, len(text)) for text in texts]


def judged(texts, law=None, yes=None, replicate=0, ledger=None, engine=None, **options):
    """Scores of `texts` by a toy judge, and what the cell read."""
    verify = functools.partial(generative, judge=vars_of(JUDGE), **options)
    given = texts if texts and isinstance(texts[0], Completion) else responses(*texts)

    def strategy(problem, budget, rng):
        scores = yield from verify(problem, given)
        return Answer(given[0], tuple(given), tuple(scores), "")

    engine = engine or ToyEngine(law or thinking(), yes=yes, name="judge")
    roles = {"policy": ToyEngine(policy), "judge": engine}
    [result] = Schedule(roles, Streams(), ledger).run([Cell("c", PROBLEM, strategy, 1, replicate=replicate)])
    return list(result.answer.weights), result


def vars_of(judge):
    return {name: getattr(judge, name) for name in judge.__dataclass_fields__}


# --- pointwise


def test_the_direct_read_out_is_one_probe_of_the_verdict_slot():
    asked = []

    def yes(completion, adapter):
        asked.append((completion.prompt.text, completion.text))
        return 0.3 if "=1" in completion.prompt.text else 0.6

    scores, result = judged(["=1", "=2", "=1"], yes=yes)
    assert scores == [0.3, 0.6, 0.3]
    assert sorted(asked) == [("p? one =1 ok?", ""), ("p? one =2 ok?", "")]
    assert result.cost.judged == result.cost.generated == 0 and result.cost.prefill


def test_soft_votes_are_the_mean_of_the_probability_after_each_rationale():
    chance = {"h": 0.1, "hh": 0.4, "hhh": 1.0}
    scores, _ = judged(["=1"], votes=64, yes=lambda said, _: chance[said.text[:-1]])
    # One to three tokens of thought with probability 1/2, 1/4, 1/4.
    drawn = [
        judged(["=1"], votes=1, replicate=r, yes=lambda said, _: chance[said.text[:-1]])[0][0] for r in range(400)
    ]
    assert p_value(drawn, {0.1: 0.5, 0.4: 0.25, 1.0: 0.25}) > 1e-3
    assert scores[0] == pytest.approx(0.4, abs=4 * math.sqrt(0.135 / 64))


def test_written_votes_are_unbiased_and_their_variance_falls_with_their_number():
    def spread(votes):
        found = [judged(["=1"], thinking(yes=0.7), votes=votes, soft=False, replicate=r)[0][0] for r in range(300)]
        found = [score for score in found if score != -math.inf]
        mean = sum(found) / len(found)
        return mean, sum((x - mean) ** 2 for x in found) / len(found)

    (one, wide), (eight, narrow) = spread(1), spread(8)
    # Half of the verdicts are " A" or " B", which are none of this form's: missing, not 0.
    assert one == pytest.approx(0.7, abs=0.12) and eight == pytest.approx(0.7, abs=0.05)
    assert wide == pytest.approx(0.21, abs=0.04) and narrow < wide / 2


def test_a_missing_verdict_is_missing_and_none_at_all_is_minus_infinity():
    scores, _ = judged(["=1"], thinking(reach=0.5), votes=40, yes=lambda said, _: 0.8)
    assert scores == [pytest.approx(0.8)]
    for soft in (True, False):
        assert judged(["=1", "=2"], thinking(reach=0.0), votes=3, soft=soft)[0] == [-math.inf, -math.inf]


def test_failed_responses_lose_and_are_not_shown_to_the_judge():
    given = [*responses("=1"), fail(responses("=2")[0], "x")]
    ledger = Ledger()
    scores, _ = judged(given, yes=lambda said, _: 0.0, ledger=ledger)
    assert scores == [0.0, -math.inf]
    assert ledger.computed["judge"].prefill == 7  # one question
    assert judged([fail(r, "x") for r in responses("=1", "=2")], votes=2)[0] == [-math.inf] * 2


def test_a_judge_whose_engine_always_fails_is_an_error_and_no_score():
    class Broken(ToyEngine):
        def poll(self):
            rows, self._rows = list(self._rows), {}
            return [(ticket, Failure("out of order")) for ticket in rows]

    for options in ({}, {"form": "pairwise"}):
        _, result = judged(["=1", "=2"], engine=Broken(thinking()), votes=2, **options)
        assert result.error == "out of order"


# --- forced thinking


@pytest.mark.parametrize("cues", [0, 1, 2, 4])
def test_forced_thinking_appends_exactly_n_cues_and_takes_each_verdict_back(cues):
    bench = Bench(JUDGE, votes=8, cues=cues)

    def strategy(problem, budget, rng):
        thoughts = yield from think("p? ok?", bench)
        return Answer(thoughts[0], tuple(thoughts), (0.0,) * 8, "")

    engine = ToyEngine(thinking())
    [result] = Schedule({"policy": engine, "judge": engine}, Streams()).run([Cell("c", PROBLEM, strategy, 1)])
    pieces = [thought.text.split(JUDGE.cue) for thought in result.answer.pool]
    for thought, parts in zip(result.answer.pool, pieces, strict=True):
        assert thought.text.count(JUDGE.cue) == cues and thought.text.count("#") == 1
        assert thought.text.endswith("#") and all(1 <= part.count("h") <= 3 for part in parts)
        assert thought.n_tokens == len(thought.tokens)
    assert result.cost.generated == 0
    # Every piece is a fresh draw of the same law, its opener included.
    assert result.cost.judged == sum(len(part.strip("#")) + 1 for parts in pieces for part in parts)


def test_forced_thinking_stops_at_the_length_of_a_judgement():
    judge = vars_of(JUDGE) | {"max_tokens": 12}
    engine = ToyEngine(thinking())

    def strategy(problem, budget, rng):
        scores = yield from generative(problem, responses("=1"), votes=2, cues=50, judge=judge)
        return Answer(responses("=1")[0], (responses("=1")[0],), tuple(scores), "")

    [result] = Schedule({"policy": engine, "judge": engine}, Streams()).run([Cell("c", PROBLEM, strategy, 1)])
    assert result.answer.weights == (-math.inf,) and result.cost.judged <= 2 * 12


# --- pairs


def preferring(matrix):
    """P(first) of a judge with a known preference: `matrix[i][j]` in the order (i, j)."""

    def yes(said, adapter):
        _, i, _, j, _ = said.prompt.text.removeprefix("p? ").split(" ")
        return matrix[int(i[1:]) - 1][int(j[1:]) - 1]

    return yes


HALF = 0.5
# 1 beats 2 in both orders; 3 against 1 is a matter of position; 2 and 3 are equal; 4 loses to all but ties with 3.
MATRIX = [
    [HALF, 0.9, 0.8, 0.7],
    [0.1, HALF, HALF, 0.9],
    [0.8, HALF, HALF, 0.6],
    [0.2, 0.3, 0.9, HALF],
]


def test_a_round_robin_counts_consistent_wins_and_half_of_the_ties():
    scores, result = judged(["=1", "=2", "=3", "=4"], yes=preferring(MATRIX), form="pairwise")
    #        1: wins 2 and 4, ties 3   2: loses 1, ties 3, wins 4   3: three ties   4: loses 1 and 2, ties 3
    assert scores == pytest.approx([2.5 / 3, 1.5 / 3, 1.5 / 3, 0.5 / 3])
    assert result.cost.requests == 12


def test_a_judge_that_always_names_one_position_ties_everything():
    for first in (0.99, 0.01):
        scores, _ = judged(["=1", "=2", "=3"], yes=lambda said, _, p=first: p, form="pairwise")
        assert scores == [0.5, 0.5, 0.5]


def test_a_knockout_lets_the_earlier_one_pass_after_a_tie_and_whoever_has_no_neighbour():
    texts = ["=1", "=2", "=3", "=4"]
    options = {"form": "pairwise", "tournament": "knockout", "yes": preferring(MATRIX)}
    # 1 beats 2, 3 passes 4 after a tie; 1 passes 3 after a tie.
    assert judged(texts, **options)[0] == [1.0, 0.0, 0.5, 0.0]
    # 2 passes 3 after a tie, 1 has no neighbour; 1 beats 2.
    assert judged(["=2", "=3", "=1"], **options)[0] == [0.5, 0.0, 1.0]
    _, result = judged(["=2", "=3", "=1"], **options)
    assert result.cost.requests == 4


@pytest.mark.parametrize("tournament", ["round_robin", "knockout"])
def test_one_response_has_nobody_to_meet_and_equal_texts_are_one(tournament):
    options = {"form": "pairwise", "tournament": tournament, "yes": preferring(MATRIX)}
    assert judged(["=1"], **options)[0] == [0.5]
    scores, result = judged(["=1", "=1", "=1"], **options)
    assert scores == [0.5] * 3 and result.cost.requests == 0
    assert judged(["=2", "=1", "=2"], **options)[0] == [0.0, 1.0, 0.0]


def test_votes_of_pairs_are_counted_in_each_order_before_the_orders_are_compared():
    # Written verdicts: " A" with 0.45, " B" with 0.05: the first wins almost every order, so nearly all is a tie.
    found = [
        judged(["=1", "=2"], thinking(yes=0.9), form="pairwise", votes=9, soft=False, replicate=r)[0][0]
        for r in range(60)
    ]
    assert sum(score == 0.5 for score in found) >= 55
    # No verdicts at all are ties as well.
    assert judged(["=1", "=2"], thinking(reach=0), form="pairwise", votes=3)[0] == [0.5, 0.5]


def naming(q):
    """A judge that names the response "=1" with probability q, wherever it stands."""

    def law(prompt, text):
        if "#" not in text:
            return {"#": 1.0}
        first = q if " a =1 " in prompt else 1 - q
        return {" A": first, " B": 1 - first} if text.endswith("#") else {"": 1.0}

    return law


@pytest.mark.parametrize(("q", "votes"), [(0.5, 1), (0.8, 1), (0.8, 3)])
def test_a_win_takes_both_orders_and_so_its_chance_is_squared(q, votes):
    """A coin names the better one in both orders in a quarter of the pairs, not in half of them."""
    named = q if votes == 1 else q**3 + 3 * q**2 * (1 - q)
    options = {"form": "pairwise", "votes": votes, "soft": False}
    found = [judged(["=1", "=2"], naming(q), replicate=r, **options)[0][0] for r in range(300)]
    law = {1.0: named**2, 0.5: 2 * named * (1 - named), 0.0: (1 - named) ** 2}
    assert p_value(found, law) > 1e-3


@pytest.mark.parametrize("tournament", ["round_robin", "knockout"])
def test_a_perfect_judge_of_pairs_is_an_oracle(tournament):
    better = [[float(i < j) if i != j else HALF for j in range(3)] for i in range(3)]
    verify = functools.partial(generative, form="pairwise", tournament=tournament, judge=vars_of(JUDGE))
    roles = {"policy": ToyEngine(policy), "judge": ToyEngine(thinking(), yes=preferring(better), name="judge")}
    cells = [Cell(f"{r}", PROBLEM, functools.partial(best_of_n, verify=verify), 5, replicate=r) for r in range(40)]
    for result in Schedule(roles, Streams()).run(cells):
        found = sorted(ended(r.text) for r in result.answer.pool)
        assert ended(result.answer.response.text) == found[0]


# --- what it costs


def test_only_the_policy_draws_on_the_budget_and_each_role_pays_for_itself():
    def strategy(problem, budget, rng):
        drawn = yield from sample(problem.prompt, 2)
        scores = yield from generative(problem, drawn, votes=3, judge=vars_of(JUDGE))
        more = yield from sample(problem.prompt, 4)
        return Answer(drawn[0], tuple(drawn + more), tuple(scores) + (0.0,) * 4, "")

    roles = {"policy": ToyEngine(policy), "judge": ToyEngine(thinking(), name="judge")}
    ledger, task = Ledger(), problem(max_tokens=2)
    [result] = Schedule(roles, Streams(), ledger).run([Cell("c", task, strategy, 4)])
    assert [r.finish for r in result.answer.pool] == ["eos"] * 4 + ["cut"] * 2
    assert result.cost.generated == 8 and result.cost.decoded == 8 + result.cost.judged
    for role, engine in roles.items():
        assert ledger.computed[role] == engine.counts
    assert roles["policy"].counts.decode == 8 and roles["judge"].counts.decode == result.cost.judged > 0


def test_the_judge_draws_from_its_own_law_and_minds_no_stops_of_the_task():
    def strategy(problem, budget, rng):
        drawn = yield from sample(Prompt("p? ok?"), 20, temperature=0, pause=("#",), max_tokens=9, role="judge")
        return Answer(drawn[0], tuple(drawn), (0.0,) * 20, "")

    engine = ToyEngine(thinking())
    cell = Cell("c", PROBLEM, strategy, 1, until=("h",))
    [result] = Schedule({"policy": engine, "judge": engine}, Streams()).run([cell])
    [said] = {(r.text, r.finish) for r in result.answer.pool}
    assert said[0].endswith("h#") and said[1] == "pause"


def test_the_program_asks_for_its_judgements_in_plain_requests():
    program = think("p? ok?", Bench(JUDGE, votes=3, temperature=0.5))
    assert next(program) == Sample(Prompt("p? ok?"), 3, 0.5, ("#",), 512, role="judge")


def test_a_recipe_names_a_judge_as_it_names_an_engine():
    plain = {"model": "m", "tasks": ["t"], "strategies": ["greedy"], "output": "o"}
    assert parse(plain).judge is None
    said = parse(plain | {"judge": {"model": "j", "kind": "openai", "server": "sglang"}}).judge
    assert said == JudgeSpec(model="j", kind="openai", server="sglang")
    for wrong, words in (({}, "'model' is missing in judge"), ({"model": "j", "modle": 1}, "unknown key 'modle'")):
        with pytest.raises(RecipeError, match=words):
            parse(plain | {"judge": wrong})


@pytest.mark.parametrize("options", [{}, {"votes": 2}, {"votes": 2, "cues": 1}, {"form": "pairwise", "votes": 1}])
def test_an_engine_that_tells_no_probabilities_is_refused_before_any_work(options):
    engine = ToyEngine(thinking())
    verify = functools.partial(generative, **options)
    strategies = {"bon": functools.partial(best_of_n, verify=verify)}
    refuse_beyond_means(strategies, {"policy": engine, "judge": engine})
    with pytest.raises(RecipeError, match="asks the role 'judge'"):
        refuse_beyond_means(strategies, {"policy": engine})
    engine.profile = type(engine.profile)(probes=False)
    with pytest.raises(RecipeError, match="probabilities of single tokens"):
        refuse_beyond_means(strategies, {"policy": engine, "judge": engine})
    refuse_beyond_means(
        {"bon": functools.partial(best_of_n, verify=functools.partial(generative, votes=2, soft=False))},
        {"policy": engine, "judge": engine},
    )


def test_consistent_preferences_of_all_kinds_rank_as_they_should():
    for order in itertools.permutations(range(3)):
        better = [[0.9 if order.index(i) < order.index(j) else 0.1 for j in range(3)] for i in range(3)]
        scores, _ = judged(["=1", "=2", "=3"], yes=preferring(better), form="pairwise")
        assert [scores[i] for i in order] == [1.0, 0.5, 0.0]
