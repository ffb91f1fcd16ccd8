"""Where programs read: paired draws, no element twice, and paths that are extended, never drawn again."""

import functools
import itertools
import random
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from toy import Rebooting, ToyEngine, ended, lines, p_value, problem, run, spied, texts, told

from extratime.evaluate.program import Answer, extend, gather, sample
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.beam_search import beam_search
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.dvts import dvts
from extratime.evaluate.strategies.particle_filter import particle_filter
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.strategies.weighted_vote import weighted_vote
from extratime.evaluate.streams import Streams

STEPWISE = {
    "beam_search": functools.partial(beam_search, width=2),
    "dvts": functools.partial(dvts, width=2),
    "particle_filter": particle_filter,
}


def flat(problem, responses):
    """Scores that tell nothing."""
    yield from ()
    return [0.5] * len(responses)


def all_of(responses):
    return Answer(responses[0], tuple(responses), (0.0,) * len(responses), "all")


def cells(strategy, budget=8, n=40, max_tokens=16, **fields):
    return [Cell(f"{i}", problem(max_tokens=max_tokens), strategy, budget, replicate=i, **fields) for i in range(n)]


def pools(strategy, budget=8, n=40, engine=None, **options):
    return [
        result.answer.pool for result in run(engine or ToyEngine(told(lines)), cells(strategy, budget, n), **options)
    ]


# --- which element


def test_cells_of_one_shape_read_a_prefix_of_one_stream():
    grid = {(s.__name__, n): s for s in (best_of_n, self_consistency, weighted_vote) for n in (1, 4, 16)}
    work = [Cell(f"{key}", problem(), s, key[1]) for key, s in grid.items()]
    engine = ToyEngine(told(lines))
    pool = {key: result.answer.pool for key, result in zip(grid, run(engine, work), strict=True)}
    for (_, n), read in pool.items():
        assert read == pool["best_of_n", 16][:n]
    assert [r.path.place for r in pool["best_of_n", 16]] == list(range(16))
    assert engine.submitted == 16


def test_replicates_read_other_elements():
    read = [r.path for pool in pools(best_of_n, budget=4, n=10) for r in pool]
    assert len(set(read)) == 40


@pytest.mark.parametrize("name", STEPWISE)
def test_no_element_is_read_twice_within_a_cell_or_across_its_replicates(name):
    stretches = defaultdict(list)
    for i in range(6):
        log = []
        [result] = run(
            ToyEngine(told(lines)), [Cell("c", problem(max_tokens=10), spied(STEPWISE[name], log), 8, replicate=i)]
        )
        assert sum(end - start for _, start, end in log) == result.cost.generated
        for path, start, end in log:
            stretches[path].append((start, end))
    for read in stretches.values():
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(sorted(read)))
    assert len(stretches) > 6 * 8


def test_subtrees_differ():
    pool = pools(functools.partial(dvts, width=2, verify=flat), n=1)[0]
    assert len({r.path for r in pool}) == 8
    firsts = {r.text.partition("\n")[0] for r in pools(functools.partial(dvts, width=2), budget=32, n=1)[0]}
    assert len(firsts) > 2


def test_a_gathered_program_reads_its_own_lane_at_any_depth():
    def leaf(problem):
        return (yield from sample(problem.prompt, 2))

    def branch(problem):
        first, second = yield from gather([leaf(problem), leaf(problem)])
        more, _ = yield from gather([leaf(problem), leaf(problem)])
        return first + second + more + (yield from sample(problem.prompt, 2))

    def tree(problem, budget, rng):
        nested = yield from gather([branch(problem) for _ in range(3)])
        return all_of([r for part in nested for r in part] + (yield from sample(problem.prompt, 2)))

    read = [r.path for pool in pools(tree, budget=64, n=3) for r in pool]
    assert len(set(read)) == len(read) == 3 * (3 * 8 + 2)


def test_greedy_draws_are_one_path_for_everyone():
    def twice(problem, budget, rng):
        return all_of((yield from sample(problem.prompt, budget, temperature=0)))

    engine = ToyEngine(told(lines))
    read = pools(twice, budget=2, n=3, engine=engine)
    assert {r.text for pool in read for r in pool} == {"a\na\n=1"}
    assert engine.submitted == 1


# --- laws of what is read


def test_the_toy_law_is_the_law():
    finished, growing = texts(lines, 8)
    assert sum(finished.values()) == pytest.approx(1) and not growing and len(finished) == 108
    seen = [r.text for pool in pools(best_of_n, n=300) for r in pool]
    assert p_value(seen, finished) > 0.01
    wrong = dict(zip(finished, reversed(finished.values()), strict=True))
    assert p_value(seen, wrong) < 1e-9


@pytest.mark.parametrize("name", STEPWISE)
def test_each_candidate_that_no_score_selected_has_the_law_of_the_model(name):
    """Slots are correlated through their common stems, so that each is tested by itself over the replicates."""
    finished, _ = texts(lines, 8)
    read = pools(functools.partial(STEPWISE[name], verify=flat), budget=4, n=500)
    for slot in range(4):
        assert p_value((pool[slot].text for pool in read), finished) > 1e-3


@pytest.mark.parametrize("name", STEPWISE)
def test_what_continues_a_selected_step_has_the_law_of_the_model_given_that_step(name):
    def prefers(problem, responses):
        """A first letter "c" above all."""
        yield from ()
        return [0.9 if r.text.startswith("c") else 0.1 for r in responses]

    finished, _ = texts(lines, 8)
    read = pools(functools.partial(STEPWISE[name], verify=prefers), budget=4, n=300)
    share = sum(p for text, p in finished.items() if text[0] == "c")
    given = {text: p / share for text, p in finished.items() if text[0] == "c"}
    for slot in range(4):
        chosen = [pool[slot].text for pool in read if pool[slot].text[0] == "c"]
        assert len(chosen) > 90 and p_value(chosen, given) > 1e-3


def test_two_branches_of_one_step_are_independent():
    def fork(problem, budget, rng):
        stem = yield from sample(problem.prompt, pause=("\n",))
        return all_of((yield from extend(stem * 3)))

    def tail(response):
        return response.text.rpartition("=")[2]

    finished, _ = texts(lines, 8)
    law = {(first, answer): 0.0 for first in "abc" for answer in "123"}
    for text, p in finished.items():
        law[text[0], text[-1]] += p
    read = pools(fork, budget=3, n=600)
    assert all(
        len({r.path for r in pool}) == 3 and len({r.text.partition("\n")[0] for r in pool}) == 1 for pool in read
    )
    joint = {
        (first, *answers): np.prod([law[first, a] for a in answers]) / sum(law[first, a] for a in "123") ** 2
        for first in "abc"
        for answers in itertools.product("123", repeat=3)
    }
    assert sum(joint.values()) == pytest.approx(1)
    assert p_value(((pool[0].text[0], *map(tail, pool)) for pool in read), joint) > 0.001


def test_a_sibling_s_response_is_continued_afresh():
    def half(problem):
        return (yield from sample(problem.prompt, pause=("\n",)))

    def adopt(problem, budget, rng):
        [stem], _ = yield from gather([half(problem), half(problem)])
        return all_of([stem, *(yield from extend([stem]))])

    for stem, own in pools(adopt, budget=4, n=20):
        assert own.path != stem.path and own.text.startswith(stem.text) and own.stem == (stem.n_tokens, len(stem.text))


def test_a_response_cut_back_is_continued_afresh():
    def reconsider(problem, budget, rng):
        [whole] = yield from sample(problem.prompt)
        n = whole.text.index("\n") + 1
        stem = replace(whole, text=whole.text[:n], n_tokens=n, tokens=whole.tokens[:n], finish="pause")
        return all_of([whole, *(yield from extend([stem, stem]))])

    for whole, *others in pools(reconsider, budget=4, n=20):
        assert len({whole.path, *(r.path for r in others)}) == 3
        assert all(r.text.startswith(whole.text.partition("\n")[0] + "\n") for r in others)


# --- however a path is read, it is the same path


def test_a_path_read_in_any_pieces_is_the_path_read_at_once():
    rng = random.Random(0)

    def pieces(problem, budget, rng_):
        responses = yield from sample(
            problem.prompt, 4, pause=("\n",) * rng.randint(0, 1), max_tokens=rng.randint(1, 5)
        )
        for length in itertools.count(5, rng.randint(1, 3)):
            if length >= 10:
                break
            pause = rng.sample(["\n", "d", "=", "\nd", "a\n", "d\n="], rng.randint(0, 3))
            responses = yield from extend(responses, pause=pause, max_tokens=length)
        return all_of((yield from extend(responses)))

    for until in ((), ("=2",), ("d\n=", "=3"), ("\na\n", "b")):
        engine = ToyEngine(told(lines))
        plain = [[r.text for r in result.answer.pool] for result in run(engine, cells(best_of_n, 4, until=until))]
        assert [[r.text for r in result.answer.pool] for result in run(engine, cells(pieces, 4, until=until))] == plain


def test_a_stop_across_the_seam_of_a_branch_ends_it():
    def branches(problem, budget, rng):
        stem = yield from sample(problem.prompt, pause=("\n",))
        return all_of((yield from extend(stem * 6)))

    for result in run(ToyEngine(told(lines)), cells(branches, 6, until=("\na", "\nbd"))):
        for r in result.answer.pool:
            assert "\na" not in r.text and "\nbd" not in r.text
            assert r.finish == ("until" if "=" not in r.text else "eos")
            assert len(r.logprobs) == r.n_tokens


def test_a_branch_is_one_response_of_two_parts():
    for pool in pools(functools.partial(beam_search, width=4, verify=flat), budget=4, n=20):
        assert any(r.stem[0] for r in pool)
        for r in pool:
            assert ended(r.text) and r.finish == "eos" and r.n_tokens == len(r.tokens) + 1
            assert (
                r.logprobs
                == r.tempered
                == pytest.approx([np.log(lines(text)[piece]) for text, piece in steps(r.text)])
            )


def steps(text):
    """Each state of the toy law on the way to `text`, with what came next."""
    at = 0
    while at < len(text):
        piece = next(p for p in lines(text[:at]) if text.startswith(p, at))
        yield text[:at], piece
        at += len(piece)
    yield text, ""


# --- censoring


def words(text):
    """A geometric length: after each letter the response ends with probability 0.2."""
    return {"": 0.2, "x": 0.48, "y": 0.32} if text else {"x": 0.6, "y": 0.4}


def length_law(limit):
    """Of `Completion.n_tokens`: n − 1 letters and an end, or `limit` letters."""
    law = {n: 0.2 * 0.8 ** (n - 2) for n in range(2, limit + 1)}
    return law | {"cut": 1 - sum(law.values())}


def lengths(results):
    return [r.n_tokens if r.finished else "cut" for result in results for r in result.answer.pool]


@pytest.mark.parametrize("strategy", [best_of_n, self_consistency])
def test_time_outs_leave_no_length_bias(strategy):
    work = cells(strategy, budget=4, n=300, max_tokens=30)
    calm = run(ToyEngine(told(words)), work)
    assert p_value(lengths(calm), length_law(30)) > 0.01
    engine, streams = Rebooting(told(words), patience=5, times=2), Streams()
    first = run(engine, work, streams)
    for result, truth in zip(first, calm, strict=True):
        for r, true in zip(result.answer.pool, truth.answer.pool, strict=True):
            assert r.path == true.path  # a time-out is an outcome, never a reason to draw another path
            assert r == true if true.n_tokens <= 5 else (r.finish, r.error, r.n_tokens) == ("failed", "timed out", 0)
    run(engine, work, streams)
    last = run(engine, work, streams)
    assert [r.answer for r in last] == [r.answer for r in calm]
    assert max(engine.timeouts.values()) == 2


class Stop(Exception):
    pass


class Fragile(ToyEngine):
    """Stops in the middle of its rows after `left` more polls."""

    left = 0

    def poll(self):
        self.left -= 1
        if self.left >= 0:
            return super().poll()
        for row in self._rows.values():
            if not row.done:
                self._step(row)
        raise Stop


def test_draws_that_an_interrupt_cut_short_are_extended():
    work, streams, engine = cells(best_of_n, budget=4, n=100, max_tokens=30), Streams(), Fragile(told(words), slots=16)
    calm = run(ToyEngine(told(words)), work)
    interrupts, last = 0, None
    while last is None:
        engine.left = interrupts
        try:
            last = run(engine, work, streams)
        except Stop:
            interrupts += 1
    assert interrupts > 5 and [r.answer for r in last] == [r.answer for r in calm]
    assert p_value(lengths(last), length_law(30)) > 0.001
    assert engine.counts.decode == sum(len(k.ends) for k in streams.paths.values())  # no token was drawn twice


class Stiff(ToyEngine):
    """Can't continue a path: it must be asked for whole paths, once each."""

    def __init__(self, law, **options):
        super().__init__(law, **options)
        self.profile = replace(self.profile, resumes=False)
        self.seeds = []

    def submit(self, ticket, request):
        assert not request.have and not request.have_text and not request.pause
        self.seeds.append(request.seed)
        super().submit(ticket, request)


@pytest.mark.parametrize("name", STEPWISE)
def test_an_engine_that_cannot_resume_gives_the_same_answers(name):
    strategy = functools.partial(STEPWISE[name], verify=flat)
    engine = Stiff(told(lines))
    assert pools(strategy, engine=engine) == pools(strategy)
    assert len(set(engine.seeds)) == len(engine.seeds)


def test_an_engine_that_cannot_resume_is_not_asked_again_for_what_it_left_unfinished():
    work, streams = cells(best_of_n, budget=4, n=50, max_tokens=5), Streams()
    short = run(Stiff(told(words)), work, streams)
    longer = [replace(cell, problem=replace(cell.problem, max_tokens=30)) for cell in work]
    engine = Stiff(told(words))
    for before, after in zip(short, run(engine, longer, streams), strict=True):
        for r, same in zip(before.answer.pool, after.answer.pool, strict=True):
            assert same.text == r.text and same.finish == ("eos" if r.finished else "cut")
    assert not engine.seeds
