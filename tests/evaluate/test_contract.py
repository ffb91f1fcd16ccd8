"""What every strategy promises, whatever its verifier and budget.

Strategies and verifiers are the files of their folders: a new one is held to these laws without a word here.
"""

import functools
import importlib
import inspect
import math
import zlib
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from toy import Rebooting, Silent, ToyEngine, ended, lines, p_value, plain, problem, run, spied, texts, told

from extratime.evaluate import strategies, verifiers
from extratime.evaluate.cost import Ledger
from extratime.evaluate.schedule import Cell
from extratime.evaluate.streams import Streams
from extratime.models.judge import Judge
from extratime.models.request import Draw, Failure

BUDGETS = (1, 2, 4, 16)
LENGTH = 10
SMALL = {
    "width": 2,
    "look": 3,
    "chunk": 3,
    "every": 3,
    "completions": 2,
    "steps": 2,
    "window": 2,
    "warmup": 2,
    "think": ("<", ">"),
    "relative_cost": 0,
}
"""Options that suit responses of six to eight tokens, for every strategy that has them."""

GREEDY = {"greedy", "adaptive_best_of_n"}
"""At budget 1 these answer greedily; all others draw from the model."""
RESAMPLING = {
    "entropic_particle_filter",
    "lookahead_search",
    "parallel_tempering",
    "particle_filter",
    "particle_gibbs",
}
"""These drop right responses by chance, or for a rollout: a perfect judge of whole responses helps on average only."""

UNVERIFIED = {"solve_then_verify"}
"""These ask no verifier about a single response."""

ASKING = {
    "archon",
    "arcmemo",
    "arcmemo_open_ended",
    "iterative_agent_decoding",
    "plangen",
    "revision",
    "self_refine",
    "sequential_feedback",
}
"""These may answer with a reply to more than the problem: what they were told stands in its prompt."""


GATHERING = {"dvts", "hex"}
"""Even at budget 1 these draw in a program that they gather, so from a lane below their own."""


def names(package):
    return sorted(file.stem for file in Path(package.__file__).parent.glob("*.py") if file.stem != "__init__")


def load(package, name):
    return getattr(importlib.import_module(f"{package.__name__}.{name}"), name)


def judged(name):
    """Whether a strategy cannot do without a verifier."""
    verify = inspect.signature(load(strategies, name)).parameters.get("verify")
    return verify is not None and verify.default is not None


def bound(name, verify=None):
    strategy = load(strategies, name)
    known = inspect.signature(strategy).parameters
    options = {key: value for key, value in SMALL.items() if key in known}
    return functools.partial(strategy, **options, **({"verify": verify} if verify else {}))


JUDGES = {
    "generative, reasoning": {"votes": 2, "cues": 1},
    "generative, pairs": {"form": "pairwise", "tournament": "knockout"},
    "generative, written": {"form": "pairwise", "tournament": "knockout", "votes": 1, "soft": False},
}
"""Ways to ask a generative judge, beside its default of one probe a response."""
SHARES = dict.fromkeys(JUDGES, 0.05) | {"constraints": 0.08}
"""Of draws to refuse, where the verifier draws and so more of them touch a cell."""


def built(name, verifier):
    if verifier in JUDGES:
        return bound(name, functools.partial(load(verifiers, "generative"), **JUDGES[verifier]))
    return bound(name, load(verifiers, verifier) if verifier else None)


STRATEGIES = names(strategies)
JUDGED = [name for name in STRATEGIES if judged(name)]
VERIFIERS = [*names(verifiers), *JUDGES]
PAIRS = [(name, verifier) for name in STRATEGIES for verifier in (VERIFIERS if judged(name) else [None])]
pairs = pytest.mark.parametrize(("name", "verifier"), PAIRS)


def chance(*parts):
    """A number in [0, 1) that hangs on `parts` alone."""
    return zlib.crc32(repr(parts).encode()) / 2**32


def toy(kind=ToyEngine, law=lines, **options):
    """An engine whose judgements are noise, but the same noise each time."""
    options.setdefault("value", lambda text: [chance("reward", text[:i]) for i in range(1, len(text) + 1, 3)])
    return kind(judging(told(law)), yes=lambda said, adapter: chance("yes", said.text, adapter), **options)


def judging(law):
    """`law` for the policy; a judge that thinks for a while, and then writes a verdict, or none; a check's score."""

    def either(prompt, text):
        if prompt.startswith("Check "):
            return {"": 1.0} if text else {f"Score: {200 * chance(prompt) - 100:.0f}": 0.7, "No.": 0.3}
        if not prompt.startswith("Judge "):
            return law(prompt, text)
        if Judge().opener in text:
            return {" Yes": 0.4, " A": 0.4, " maybe": 0.2} if text.endswith(Judge().opener) else {"": 1.0}
        return {"hm ": 0.5, Judge().opener: 0.4, "": 0.1}

    return either


def grid(strategy, budgets=BUDGETS, problems="pqr", replicates=2, **fields):
    fields = {"max_tokens": LENGTH} | fields
    return [
        Cell(f"{id}@{budget}#{r}", problem(id, **fields), strategy, budget, replicate=r)
        for id in problems
        for budget in budgets
        for r in range(replicates)
    ]


@functools.cache
def baseline(name, verifier):
    streams = Streams()
    return run(toy(), grid(built(name, verifier)), streams), streams


def said(results):
    return sorted(map(plain, results))


def test_all_strategies_and_verifiers_are_found():
    assert {"best_of_n", "greedy", "particle_filter"} <= set(STRATEGIES) and "greedy" not in JUDGED
    assert {"likelihood", "oracle", "self_eval", "reward_model", "generative"} <= set(names(verifiers))


# --- what comes back


@pairs
def test_answers_with_a_whole_response_out_of_its_own_draws(name, verifier):
    results, streams = baseline(name, verifier)
    for result in results:
        answer = result.answer
        assert not result.error and answer.why
        assert answer.response.finished and ended(answer.response.text)
        assert answer.response in answer.pool and len(answer.pool) == len(answer.weights)
        for r in answer.pool:
            assert r.n_tokens <= LENGTH
            assert r.prompt == result.cell.problem.prompt or name in ASKING
            assert streams.paths[r.path].text.startswith(r.text[r.stem[1] :])


@pairs
def test_one_cell_has_one_answer_whatever_runs_beside_it_and_in_which_order(name, verifier):
    strategy = built(name, verifier)
    expected = said(baseline(name, verifier)[0])
    for slots, seed in ((1, 1), (37, 2)):
        cells = sorted(grid(strategy), key=lambda cell, seed=seed: chance(seed, cell.key))
        assert said(run(toy(slots=slots, seed=seed), cells)) == expected
    alone = [run(toy(), [cell])[0] for cell in grid(strategy, problems="q")]
    assert set(said(alone)) <= set(expected)


@pairs
def test_a_replay_asks_no_engine(name, verifier):
    results, streams = baseline(name, verifier)
    assert said(run(toy(Silent), grid(built(name, verifier)), streams)) == said(results)


@pairs
def test_reads_no_element_twice_and_pays_for_each_token_once(name, verifier):
    read, strategy = defaultdict(list), built(name, verifier)
    for budget in (4, 16):
        stretches = defaultdict(list)
        for replicate in range(3):
            log = []
            cell = Cell("c", problem(max_tokens=LENGTH), spied(strategy, log), budget, replicate=replicate)
            [result] = run(toy(), [cell])
            once = [said for i, said in enumerate(log) if said[0].lane or said not in log[:i]]
            assert length(once) <= result.cost.decoded <= length(log)  # what is greedy may be asked again
            log = once
            assert result.cost.generated <= budget * LENGTH
            for path, start, end in log:
                stretches[path if path.lane else (path, replicate)].append((start, end))
        read[budget] = stretches
        assert all(a[1] <= b[0] for one in stretches.values() for a, b in pairwise(sorted(one)))
    assert read[16]


def length(stretches):
    return sum(end - start for _, start, end in stretches)


@pairs
def test_computed_account_is_what_the_engine_counts(name, verifier):
    engine, ledger = toy(slots=3), Ledger()
    run(engine, grid(built(name, verifier), problems="p"), ledger=ledger)
    assert ledger.total() == engine.counts and engine.counts.decode


# --- budget 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_budget_one_is_plain_sampling(name):
    finished, _ = texts(lines, LENGTH)
    law = {"a\na\n=1": 1.0} if name in GREEDY else finished
    cells = [Cell(f"{i}", problem(max_tokens=LENGTH), bound(name), 1, replicate=i) for i in range(400)]
    results = run(toy(), cells)
    assert p_value((result.answer.response.text for result in results), law) > 1e-3
    assert all(len(result.answer.pool) == 1 for result in results)


@pytest.mark.parametrize("name", sorted({*STRATEGIES} - GREEDY - GATHERING))
def test_budget_one_reads_the_path_of_best_of_one(name):
    plainly = [result.answer.response for result in run(toy(), grid(bound("best_of_n"), budgets=(1,)))]
    assert [result.answer.response for result in run(toy(), grid(bound(name), budgets=(1,)))] == plainly


# --- verifiers that know all or nothing


@pytest.mark.parametrize("name", JUDGED)
def test_with_an_oracle_the_answer_is_right_if_any_candidate_is(name):
    for result in baseline(name, "oracle")[0]:
        right = result.cell.problem.correct
        assert right(result.answer.response.text) == any(right(r.text) for r in result.answer.pool)


@pytest.mark.parametrize("name", JUDGED)
def test_an_oracle_never_hurts(name):
    cells = grid(built(name, "oracle"), problems="p", replicates=40, right="2")  # which greedy decoding misses
    right = defaultdict(dict)
    for result in run(toy(), cells):
        right[result.cell.budget][result.cell.replicate] = ended(result.answer.response.text) == "2"
    assert sum(right[16].values()) > sum(right[1].values())
    for budget in BUDGETS[1:]:
        if name in RESAMPLING:
            assert sum(right[budget].values()) >= sum(right[1].values())
        else:
            assert all(right[budget][r] >= right[1][r] for r in right[1])


def constant(value):
    def verify(problem, responses):
        yield from ()
        return [value] * len(responses)

    return verify


def alternating(problem, responses):
    yield from ()
    return [(math.nan, -math.inf, 0.0, -1.0)[i % 4] for i in range(len(responses))]


@pytest.mark.parametrize("name", JUDGED)
@pytest.mark.parametrize("value", [0.5, 0.0, 1.0, -3.0, 50.0, math.nan, -math.inf, "alternating"])
def test_degenerate_scores_still_give_a_whole_response(name, value):
    verify = alternating if value == "alternating" else constant(value)
    for result in run(toy(), grid(bound(name, verify), problems="p")):
        assert not result.error and result.answer.response.finished


# --- policies that misbehave


def endless(text):
    return {"a": 0.7, "b": 0.3}


def endless_lines(text):
    return {"a": 0.5, "\n": 0.5}


@pairs
@pytest.mark.parametrize("law", [endless, endless_lines])
def test_a_policy_that_never_finishes(name, verifier, law):
    for result in run(toy(law=law), grid(built(name, verifier), problems="p")):
        response = result.answer.response
        assert not response.finished and not result.error
        assert response.finish in ("length", "cut") and 0 < response.n_tokens <= LENGTH
        assert result.cost.generated <= result.cell.budget * LENGTH


@pytest.mark.parametrize("name", STRATEGIES)
def test_where_nothing_parses_a_whole_response_still_comes_back(name):
    fields = {"answer": lambda text: None, "correct": lambda text: False}
    for result in run(toy(), grid(bound(name), problems="p", **fields)):
        assert result.answer.response.finished and not result.error


# --- engines that fail


class Refusing(ToyEngine):
    """Refuses a share of all draws, always the same ones; and, if told so, all questions."""

    def __init__(self, law, share, questions=False, **options):
        super().__init__(law, **options)
        self.share, self.questions = share, questions
        self.refused = []

    def submit(self, ticket, request):
        draw = isinstance(request, Draw)
        if chance("refuse", request.seed) < self.share if draw else self.questions:
            self.refused.append((ticket, Failure(f"refused a {type(request).__name__}")))
        else:
            super().submit(ticket, request)

    def poll(self):
        refused, self.refused = self.refused, []
        return refused or super().poll()


@pairs
def test_a_refused_draw_touches_nothing_but_itself(name, verifier):
    cells, logs = [], {}
    for cell in grid(built(name, verifier)):
        logs[cell.key] = []
        watched = spied(cell.strategy, logs[cell.key])
        cells.append(Cell(cell.key, cell.problem, watched, cell.budget, replicate=cell.replicate))
    engine = toy(functools.partial(Refusing, share=SHARES.get(verifier, 0.15)))
    results = run(engine, cells)
    assert [result.cell.key for result in results] == [cell.key for cell in cells]
    calm = {result.cell.key: plain(result) for result in baseline(name, verifier)[0]}
    touched = Counter()
    for result in results:
        empty = [start == end for _, start, end in logs[result.cell.key]]
        touched[any(empty)] += 1
        if not any(empty):
            assert plain(result) == calm[result.cell.key]
        for r in {result.answer.response, *result.answer.pool}:
            assert (r.error == "refused a Draw") == (r.finish == "failed")
        assert result.error == result.answer.response.error
        if any(r.finished for r in result.answer.pool):
            assert result.answer.response.finished
    assert name == "greedy" or min(touched.values()) > 1


@pairs
def test_where_every_draw_is_refused_every_cell_says_so(name, verifier):
    results = run(toy(functools.partial(Refusing, share=1)), grid(built(name, verifier), problems="p"))
    assert len(results) == 8 and {result.error for result in results} == {"refused a Draw"}


@pytest.mark.parametrize("name", JUDGED)
def test_where_every_question_is_refused_every_cell_says_so(name):
    engine = toy(functools.partial(Refusing, share=0, questions=True))
    for verifier in ("self_eval", "reward_model", "generative"):
        budgets = BUDGETS[1:] if name in UNVERIFIED else BUDGETS
        results = run(engine, grid(built(name, verifier), budgets, problems="p"))
        assert len(results) == 2 * len(budgets)
        for result in results:
            asked = "refused a Score" if verifier == "reward_model" else "refused a Probe"
            assert result.error == asked and result.answer.response.finish == "failed"


@pairs
def test_what_timed_out_for_a_while_changes_nothing_in_the_end(name, verifier):
    engine, streams = toy(functools.partial(Rebooting, patience=2, times=1)), Streams()
    cells = grid(built(name, verifier), problems="p")
    for _ in range(12):
        results = run(engine, cells, streams)
        if not any(r.finish == "failed" for result in results for r in result.answer.pool):
            break
    expected = [result for result in baseline(name, verifier)[0] if result.cell.problem.id == "p"]
    assert said(run(toy(), cells, streams)) == said(expected) and engine.timeouts
