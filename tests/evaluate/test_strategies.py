"""Each strategy's own rule, step by step: what it asks for, and what it makes of the replies."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from played import P, play, response, rng, scored

from extratime.evaluate.program import Gather, best, growing, standing
from extratime.evaluate.strategies.adaptive_best_of_n import adaptive_best_of_n, annealed
from extratime.evaluate.strategies.beam_search import beam_search
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.dvts import dvts
from extratime.evaluate.strategies.first_finish import first_finish
from extratime.evaluate.strategies.greedy import greedy
from extratime.evaluate.strategies.particle_filter import particle_filter
from extratime.evaluate.strategies.pruned_best_of_n import pruned_best_of_n
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.strategies.weighted_vote import weighted_vote
from extratime.models.request import Sample, fail

# --- ranking


def test_best_prefers_finished_then_unfinished_then_failed():
    order = [response("=1"), response("x", "cut"), fail(response("y"), "no")]
    assert [standing(r) for r in order] == [2, 1, 0]
    for kept in (order, order[1:], order[2:]):
        assert best(kept[::-1], [9.0, 5.0, 1.0][: len(kept)], "why").response == kept[0]


@pytest.mark.parametrize(
    ("scores", "winner"),
    [([1, 2, 2], 1), ([math.nan, -math.inf], 0), ([math.nan, -9.0], 1), ([-math.inf, -1e300], 1), ([0, math.inf], 1)],
)
def test_best_takes_the_earliest_of_the_highest(scores, winner):
    assert best([response(str(i)) for i in range(len(scores))], scores, "why").response.text == str(winner)


def test_best_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no response"):
        best([], [], "why")


@pytest.mark.parametrize(
    ("finish", "n", "grows"),
    [("pause", 5, True), ("length", 11, True), ("length", 12, False), ("cut", 5, False), ("eos", 5, False)],
)
def test_growing(finish, n, grows):
    assert growing(P, response("x", finish, n)) == grows


# --- strategies that draw once


def test_greedy_asks_for_one_response_of_no_randomness():
    [ask], answer = play(greedy(P, 8, rng()), [response("=1")])
    assert ask == Sample(P.prompt, 1, temperature=0) and answer.response.text == "=1"


def test_best_of_n_keeps_the_highest():
    verify = scored({"a": 0.1, "b": 0.9, "c": 0.5})
    [ask], answer = play(best_of_n(P, 3, rng(), verify), list(map(response, "abc")))
    assert ask == Sample(P.prompt, 3)
    assert (answer.response.text, answer.weights) == ("b", (0.1, 0.9, 0.5))


def test_self_consistency_counts_and_weighted_vote_weighs():
    pool = [response(text) for text in ("a=1", "b=2", "c=2", "d=3")]
    assert play(self_consistency(P, 4, rng()), pool)[1].response.text == "b=2"
    heavy = scored({"a=1": 0.1, "b=2": 0.2, "c=2": 0.3, "d=3": 0.6})
    assert play(weighted_vote(P, 4, rng(), heavy), pool)[1].response.text == "d=3"
    nothing = scored(lambda text: 0.0)
    weighed = play(weighted_vote(P, 4, rng(), nothing), pool)[1]
    assert weighed.response == play(self_consistency(P, 4, rng()), pool)[1].response


# --- first finish


def lockstep(lengths, answers, k, chunk, budget=12):
    """First finish on responses of given lengths; answers may be empty (nothing parses) or None (never finishes)."""
    task = replace(P, max_tokens=budget)

    def read(request):
        limit = min(request.max_tokens, budget)
        return [
            response(f"{i}={a}" if a else f"{i}", n_tokens=n)
            if a is not None and n <= limit
            else response(f"{i}", "length", limit)
            for i, (n, a) in enumerate(zip(lengths, answers, strict=True))
        ]

    program, asked = first_finish(task, len(lengths), rng(), k, chunk), []
    request = next(program)
    while True:
        asked.append(request.max_tokens)
        try:
            request = program.send(read(request))
        except StopIteration as stop:
            return asked, stop.value


def test_first_finish_reads_in_chunks_until_k_have_finished():
    asked, answer = lockstep([5, 7, 9], "123", k=1, chunk=1)
    assert asked == [1, 2, 3, 4, 5] and answer.response.text == "0=1"
    assert lockstep([5, 7, 9], "123", k=2, chunk=4)[0] == [4, 8]
    assert lockstep([5, 7, 9], "123", k=3, chunk=16)[0] == [16]


def test_first_is_by_token_count_within_a_chunk():
    answer = lockstep([7, 5, 6], "123", k=1, chunk=16)[1]
    assert answer.response.text == "1=2" and answer.weights == (0.0, 1.0, 0.0)


def test_the_first_k_vote_and_ties_in_length_all_vote():
    assert lockstep([3, 4, 4, 9], "1229", k=3, chunk=2)[1].response.text == "1=2"
    tied = lockstep([4, 4, 4, 4], "1223", k=1, chunk=2)[1]
    assert tied.response.text == "1=2" and tied.weights == (1.0,) * 4
    assert lockstep([3, 3, 5, 5, 5], "12333", k=2, chunk=4)[1].response.text == "0=1"


def test_what_does_not_parse_does_not_count_as_finished():
    asked, answer = lockstep([2, 5, 7], ["", "1", "2"], k=1, chunk=1)
    assert asked[-1] == 5 and answer.response.text == "1=1"


def test_first_finish_where_nothing_parses_or_finishes():
    asked, answer = lockstep([3, 5], ["", ""], k=1, chunk=4)
    assert asked == [4, 8] and answer.response.finished
    asked, answer = lockstep([3, 5], [None, None], k=1, chunk=5)
    assert asked[-1] >= 12 and answer.response.finish == "length"
    assert lockstep([3, 5], [None, "1"], k=2, chunk=5)[1].response.text == "1=1"


# --- adaptive best-of-N


def test_the_temperature_rises_from_nothing():
    assert [annealed(k) for k in (1, 2, 3, 4)] == [0.0, 0.5, 0.75, 0.875]
    assert annealed(3, top=0.8) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("scores", "draws", "winner"),
    [
        ([0.95], 1, 0),
        ([0.5, 0.9], 2, 1),
        ([0.5, 0.2, 0.7, 0.6], 4, 2),
        ([math.nan, -math.inf, 0.1, 0.1], 4, 2),
        ([0.1, 0.91, 0.99], 2, 1),
    ],
)
def test_adaptive_stops_at_the_threshold_and_keeps_the_best(scores, draws, winner):
    verify = scored({str(i): score for i, score in enumerate(scores)})
    program = adaptive_best_of_n(P, 4, rng(), verify, threshold=0.9)
    asked, answer = play(program, *([response(str(i))] for i in range(draws)))
    assert [ask.temperature for ask in asked] == [annealed(k) for k in range(1, draws + 1)]
    assert answer.response.text == str(winner) and len(answer.pool) == draws


def test_adaptive_without_a_schedule_keeps_the_law_of_the_cell_and_may_vote():
    verify = scored({"a=1": 0.5, "b=2": 0.4, "c=2": 0.4})
    replies = [[response(text)] for text in ("a=1", "b=2", "c=2")]
    asked, answer = play(adaptive_best_of_n(P, 3, rng(), verify, schedule=None, vote=True), *replies)
    assert [ask.temperature for ask in asked] == [None] * 3 and answer.response.text == "b=2"


# --- pruned best-of-N


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 7, 10, 16, 100])
@pytest.mark.parametrize("percent", [0, 25, 29, 50, 57, 60, 70, 75, 99])
def test_pruning_keeps_its_share_rounded_up(budget, percent):
    keep = max(1, -(-(100 - percent) * budget // 100))
    begun = [response(str(i), "length", 3) for i in range(budget)]
    program = pruned_best_of_n(P, budget, rng(), scored(float), look=3, drop=percent / 100)
    asked, answer = play(program, begun, lambda ask: [replace(r, finish="eos") for r in ask.along])
    assert asked[0] == Sample(P.prompt, budget, max_tokens=3)
    assert [r.text for r in asked[1].along] == [str(i) for i in range(budget - keep, budget)]
    assert len(answer.pool) == keep and answer.response.text == str(budget - 1)


def test_pruning_ranks_nan_last_and_ties_by_order():
    table = {"a": math.nan, "b": 0.1, "c": 0.1, "d": 0.1}
    begun = [response(text, "length", 3) for text in "abcd"]
    program = pruned_best_of_n(P, 4, rng(), scored(table), look=3)
    asked, _ = play(program, begun, lambda ask: ask.along)
    assert [r.text for r in asked[1].along] == ["b", "c"]


def test_pruning_by_chance_looks_at_no_score():
    kept = set()
    for seed in range(40):
        begun = [response(text, "length", 3) for text in "abcd"]
        program = pruned_best_of_n(P, 4, np.random.default_rng(seed), scored(ord), look=3, random=True)
        asked, _ = play(program, begun, lambda ask: ask.along)
        kept.add("".join(r.text for r in asked[1].along))
    assert kept == {"".join(pair) for pair in itertools.combinations("abcd", 2)}


# --- beam search and subtrees


def paused(*texts):
    return [response(text, "pause", len(text)) for text in texts]


def test_beam_search_keeps_the_best_and_branches_each_in_turn():
    verify = scored({"a": 0.1, "b": 0.9, "c": 0.9, "d": 0.5} | {f"{x}={i}": float(i) for x in "bc" for i in range(4)})
    asked, answer = play(
        beam_search(P, 4, rng(), 2, verify),
        paused("a", "b", "c", "d"),
        [response(f"{x}={i}") for i, x in enumerate("bcbc")],
        lambda ask: list(ask.along),
    )
    assert asked[0] == Sample(P.prompt, 4, pause=("\n",))
    assert [r.text for r in asked[1].along] == ["b", "c", "b", "c"] and asked[1].pause == ("\n",)
    assert asked[2].pause == () and answer.response.text == "c=3"


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([1.0, 1.0, 1.0, 1.0], "ab"),
        ([math.nan, -math.inf, 0.0, -5.0], "cd"),
        ([math.nan] * 4, "ab"),
        ([math.nan, -math.inf, math.nan, -5.0], "da"),
        ([0.0, math.inf, 1.0, 2.0], "bd"),
    ],
)
def test_beam_search_ranks_ties_by_order_and_nan_last(scores, kept):
    program = beam_search(P, 4, rng(), 2, scored(dict(zip("abcd", scores, strict=True))))
    next(program)
    assert "".join(r.text for r in program.send(paused(*"abcd")).along) == kept * 2


@pytest.mark.parametrize(("budget", "width", "kept"), [(1, 4, 1), (3, 4, 1), (4, 4, 1), (9, 3, 3), (7, 2, 3)])
def test_beam_search_keeps_the_floor_of_its_share_but_one_at_least(budget, width, kept):
    program = beam_search(P, budget, rng(), width, scored(lambda text: 0.0))
    next(program)
    along = program.send(paused(*(str(i) for i in range(budget)))).along
    assert [r.text for r in along] == [str(i % kept) for i in range(budget)]


def test_finished_beams_wait_for_the_others():
    verify = scored(lambda text: 5.0 if text == "a=1" else 1.0)
    first = [response("a=1"), *paused("b"), response("c", "cut"), *paused("d")]
    asked, answer = play(
        beam_search(P, 4, rng(), 2, verify), first, [response("b=2"), response("b=3")], lambda ask: list(ask.along)
    )
    assert verify.asked[0] == ["b", "d"] and [r.text for r in asked[1].along] == ["b", "b"]
    assert answer.response.text == "a=1" and len(answer.pool) == 4


def test_after_the_last_round_every_beam_is_read_to_its_end():
    endless = lambda ask: [replace(r, text=r.text + "x", n_tokens=r.n_tokens + 1) for r in ask.along]  # noqa: E731
    verify = scored(lambda text: 0.0)
    done = lambda ask: [replace(r, finish="eos") for r in ask.along]  # noqa: E731
    asked, answer = play(beam_search(P, 2, rng(), 2, verify, rounds=3), paused("a", "b"), *[endless] * 3, done)
    assert [ask.pause for ask in asked] == [("\n",)] * 4 + [()] and answer.response.finished


@pytest.mark.parametrize(("budget", "width", "trees"), [(1, 4, 1), (3, 4, 1), (4, 4, 1), (16, 4, 4), (11, 2, 5)])
def test_subtrees_share_the_budget(budget, width, trees):
    request = next(dvts(P, budget, rng(), width))
    assert isinstance(request, Gather) and len(request.programs) == trees
    assert [next(tree).n for tree in request.programs] == [min(width, budget)] * trees


def test_subtrees_vote_with_scores_of_one_scale():
    """Logarithms in one subtree make the scores of all subtrees logarithms."""
    table = {"a=1": 2.0, "b=1": 1.9, "c=2": 2.5, "d=2": -8.0}
    program = dvts(P, 4, rng(), 2, scored(table))
    results = []
    for tree, pool in zip(next(program).programs, ("ab", "cd"), strict=True):
        answers = [response(text) for text in table if text[0] in pool]
        results.append(play(tree, answers, lambda ask: list(ask.along))[1])
    with pytest.raises(StopIteration) as stop:
        program.send(results)
    answer = stop.value.value
    assert [math.log(w) for w in answer.weights] == pytest.approx([-0.5, -0.6, 0.0, -10.5])
    assert answer.response.text == "a=1"  # e^-0.5 + e^-0.6 > e^0 + e^-10.5


# --- particle filter


def first_ancestors(scores, budget=None, **options):
    names = [chr(ord("a") + i) for i in range(len(scores))]
    program = particle_filter(
        P, budget or len(scores), rng(), scored(dict(zip(names, scores, strict=True))), **options
    )
    next(program)
    return "".join(r.text for r in program.send(paused(*names)).along)


def test_equal_particles_are_each_kept_once_by_low_variance_schemes():
    for scheme in ("systematic", "stratified", "residual"):
        for score in (0.0, 0.5, 1.0, -3.0, math.nan, -math.inf):
            assert first_ancestors([score] * 6, resample=scheme) == "abcdef"


def test_a_particle_without_weight_is_never_copied():
    for scheme in ("multinomial", "systematic", "stratified", "residual"):
        kept = first_ancestors([0.5, -math.inf, math.nan, 0.5] * 5, resample=scheme)
        assert len(kept) == 20 and all((ord(name) - ord("a")) % 4 in (0, 3) for name in kept)


def test_particles_are_copied_by_the_odds_of_their_scores():
    assert first_ancestors([0.9] + [0.5] * 9, resample="residual").count("a") == 5  # odds 9 : 1 × 9
    assert first_ancestors([0.9] + [0.5] * 9, resample="residual", tau=2.0).count("a") >= 2  # odds 3 : 1 × 9
    logarithms = [math.log(0.9)] + [math.log(0.5)] * 9
    assert first_ancestors(logarithms, resample="residual").count("a") == 5


def test_an_infinite_score_takes_nearly_all():
    assert first_ancestors([math.inf, 0.5, 0.5, 0.5], resample="systematic").count("a") >= 3


@pytest.mark.parametrize("finished", ["compete", "absorb", "freeze"])
def test_finished_particles_compete_unless_they_are_frozen(finished):
    verify = scored({"a=1": 0.999999, "b": 0.5, "c": 0.5})
    program = particle_filter(P, 3, rng(), verify, resample="systematic", finished=finished)
    next(program)
    along = program.send([response("a=1"), *paused("b", "c")]).along
    assert [r.text for r in along] == (["a=1", "b", "c"] if finished == "freeze" else ["a=1"] * 3)


class Always:
    """Randomness of one value."""

    def __init__(self, value):
        self.value = value

    def random(self, n=None):
        return self.value


@pytest.mark.parametrize(
    ("u", "first", "fresh", "ratio"),
    [
        (0.85, ["a", "b"], ["x", "y"], ["y", "y"]),  # ratios are 9/9 and 9/1
        (0.5, ["a", "a"], ["x", "y"], ["x", "y"]),  # both descend from a: 9/9 and 9/9
    ],
)
def test_ratio_weights_divide_by_the_weight_of_the_ancestor(u, first, fresh, ratio):
    """Step one: odds 9 and 1. Step two: both odds 9. Systematic positions are u/2 and (1 + u)/2."""
    verify = scored({"a": 0.9, "b": 0.5, "x": 0.9, "y": 0.9})
    for weighting, second in (("fresh", fresh), ("ratio", ratio)):
        program = particle_filter(P, 2, Always(u), verify, resample="systematic", weighting=weighting)
        next(program)
        assert [r.text for r in program.send(paused("a", "b")).along] == first
        assert [r.text for r in program.send(paused("x", "y")).along] == second


def test_the_final_particle_of_the_highest_weight_answers():
    verify = scored({"a=1": 0.2, "b=2": 0.8, "c=3": 0.8})
    _, answer = play(
        particle_filter(P, 3, rng(), verify), [response(x) for x in ("a=1", "b=2", "c=3")], lambda ask: list(ask.along)
    )
    assert answer.response.text == "b=2" and answer.weights == (0.2, 0.8, 0.8)
