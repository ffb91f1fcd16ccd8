"""The scheduler's promises to programs, engines and streams, one by one."""

from collections import Counter
from dataclasses import replace

import pytest
from toy import Silent, ToyEngine, lines, plain, problem, run, told

from extratime.evaluate.cost import Ledger
from extratime.evaluate.program import Answer, extend, gather, probe, sample, score
from extratime.evaluate.schedule import Cell, EngineError, Schedule
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.streams import Streams
from extratime.models.request import Failure, Probe, Prompt, Sample, Sampling, Score, Work


def all_of(responses):
    return Answer(responses[0], tuple(responses), (0.0,) * len(responses), "all")


def cell(strategy, budget=4, key="c", max_tokens=10, id="p", **fields):
    return Cell(key, problem(id, max_tokens=max_tokens), strategy, budget, **fields)


def toy(**options):
    return ToyEngine(told(lines), **options)


def one(strategy, budget=4, engine=None, **fields):
    [result] = run(engine or toy(), [cell(strategy, budget, **fields)])
    return result


# --- replies


def test_replies_come_in_the_order_of_the_request():
    def asks(problem, budget, rng):
        texts = [f"{i}" for i in range(20)]
        values = yield from score(Score(problem.prompt, text) for text in texts)
        assert values == [(float(text),) for text in texts]
        drawn = yield from sample(problem.prompt, 4)
        assert [r.path.place for r in drawn] == [0, 1, 2, 3]
        returned = yield from gather([back(i) for i in range(9)])
        assert returned == list(range(9))
        return all_of(drawn)

    def back(i):
        for _ in range(9 - i):
            yield from sample(Prompt("q?"), max_tokens=1)
        return i

    assert not one(asks, engine=toy(value=lambda text: [float(text)], slots=2, seed=3)).error


def test_empty_requests_get_empty_replies():
    def asks(problem, budget, rng):
        for program in (score([]), probe([]), gather([]), extend([]), sample(problem.prompt, 0)):
            assert (yield from program) == []
        return all_of((yield from sample(problem.prompt)))

    assert one(asks).answer.response.finished


def test_one_request_may_stand_alone():
    def asks(problem, budget, rng):
        assert (yield Score(problem.prompt, "x")) == [(7.0,)]
        assert (yield [Score(problem.prompt, "x"), Score(problem.prompt, "x")]) == [(7.0,)] * 2
        return all_of((yield Sample(problem.prompt)))

    assert not one(asks, engine=toy(value=lambda text: [7.0])).error


def test_what_a_program_asks_for_overrides_the_cell():
    def asks(problem, budget, rng):
        plain = yield from sample(problem.prompt, max_tokens=3)
        greedy = yield from sample(problem.prompt, temperature=0, pause=("\n",))
        warmer = yield from sample(problem.prompt, temperature=0.7)
        return all_of(plain + greedy + warmer)

    plainly, greedily, warmly = one(asks, sampling=Sampling(0.5, top_p=0.9), until=("=",)).answer.pool
    assert plainly.sampling == Sampling(0.5, top_p=0.9) and (plainly.n_tokens, plainly.finish) == (3, "length")
    assert warmly.sampling == Sampling(0.7, top_p=0.9)
    assert greedily.sampling == Sampling(0) and (greedily.text, greedily.finish) == ("a\n", "pause")
    assert one(best_of_n, until=("=",)).answer.response.finish == "until"


def test_finished_responses_come_back_as_they_are():
    def asks(problem, budget, rng):
        drawn = yield from sample(problem.prompt, 3)
        assert all(a is b for a, b in zip(drawn, (yield from extend(drawn)), strict=True))
        return all_of(drawn)

    result = one(asks)
    assert result.cost.requests == 3


# --- budget


def test_what_does_not_fit_is_cut():
    def greedy_for_more(problem, budget, rng):
        first = yield from sample(problem.prompt, 3)
        more = yield from sample(problem.prompt, 3)
        return all_of(first + more + (yield from sample(problem.prompt, 1)))

    endless = ToyEngine(told(lambda text: {"a": 1.0}))
    result = one(greedy_for_more, 4, endless)
    assert [(r.n_tokens, r.finish) for r in result.answer.pool] == [(10, "length")] * 4 + [(0, "cut")] * 3
    assert result.cost.generated == 40 == endless.counts.decode


def test_a_cut_falls_inside_a_response_where_the_budget_ends():
    def steps(problem, budget, rng):
        a = yield from sample(problem.prompt, 1, max_tokens=4)
        b = yield from sample(problem.prompt, 1)
        return all_of((yield from extend(a)) + b)

    endless = ToyEngine(told(lambda text: {"a": 1.0}))
    result = one(steps, 1, endless)
    assert [(r.n_tokens, r.finish) for r in result.answer.pool] == [(4, "cut"), (6, "cut")]
    assert endless.counts.decode == 10


def test_budget_that_a_finished_response_left_over_can_be_spent():
    def again(problem, budget, rng):
        pool = []
        for _ in range(20):
            pool += yield from sample(problem.prompt)
        return all_of(pool)

    short = ToyEngine(told(lambda text: {"": 1.0} if text else {"=1": 1.0}))
    finishes = Counter(r.finish for r in one(again, 1, short).answer.pool)
    assert finishes == {"eos": 5, "cut": 15}


# --- sharing


def test_cells_share_draws_and_replies():
    def judges(problem, budget, rng):
        drawn = yield from sample(problem.prompt, budget)
        yield from score(Score(problem.prompt, r.text) for r in drawn)
        yield from probe(Probe(r, "?", ("Y",)) for r in drawn)
        return all_of(drawn)

    engine, ledger = toy(), Ledger()
    first, *others = run(engine, [cell(judges, key=f"{i}") for i in range(5)], ledger=ledger)
    kinds = len({r.text for r in first.answer.pool})
    assert engine.submitted == 4 + 2 * kinds
    assert all((r.answer, r.cost) == (first.answer, first.cost) for r in others)
    assert ledger.total() == engine.counts


def test_a_path_wanted_to_two_lengths_is_drawn_once():
    def reads(n):
        return lambda problem, budget, rng: (yield from wrapped(problem, n))

    def wrapped(problem, n):
        return all_of((yield from sample(problem.prompt, 1, max_tokens=n)))

    engine = ToyEngine(told(lambda text: {"a": 0.5, "b": 0.5}))
    short, long, middle = run(engine, [cell(reads(n), key=f"{n}") for n in (2, 9, 5)])
    texts = [r.answer.response.text for r in (short, middle, long)]
    assert (
        [len(text) for text in texts] == [2, 5, 9] and texts[2].startswith(texts[1]) and texts[1].startswith(texts[0])
    )
    assert engine.counts.decode == 9


def test_another_model_s_streams_are_never_read():
    streams, work = Streams(), [cell(best_of_n)]
    first, second = toy(name="one"), toy(name="two")
    [one_], [two] = run(first, work, streams), run(second, work, streams)
    assert second.submitted == 4 and one_.answer.pool != two.answer.pool


def test_one_engine_in_two_roles_and_two_engines():
    policy, verifier, ledger = toy(), toy(name="judge", value=lambda text: [0.5]), Ledger()

    def judges(problem, budget, rng):
        drawn = yield from sample(problem.prompt)
        assert (yield from score([Score(problem.prompt, "x")])) == [(0.5,)]
        return all_of(drawn)

    Schedule({"policy": policy, "verifier": verifier}, Streams(), ledger).run([cell(judges)])
    assert ledger.computed == {"policy": policy.counts, "verifier": verifier.counts}


# --- failures


class Broken(ToyEngine):
    """Fails every question."""

    def poll(self):
        failures = [(ticket, Failure("out of order", Work(prefill=1))) for ticket, _ in self._reads]
        self._reads = []
        return failures or super().poll()


def test_a_failed_question_is_raised_where_it_was_asked():
    def copes(problem, budget, rng):
        drawn = yield from sample(problem.prompt, 2)
        try:
            yield from score([Score(problem.prompt, "x")])
        except EngineError as error:
            return replace(all_of(drawn), why=f"in spite of: {error}")

    result = one(copes, engine=Broken(told(lines)))
    assert result.answer.why == "in spite of: out of order" and not result.error


def test_a_failed_question_goes_up_through_a_gathering_when_all_have_ended():
    ended = []

    def child(problem, fails):
        yield from sample(problem.prompt)
        if fails:
            yield from score([Score(problem.prompt, "x")])
        yield from sample(problem.prompt)
        ended.append(fails)

    def parent(problem, budget, rng):
        try:
            yield from gather([child(problem, fails) for fails in (False, True, False)])
        except EngineError:
            return all_of((yield from sample(problem.prompt)))

    result = one(parent, 8, Broken(told(lines)))
    assert not result.error and ended == [False, False] and result.cost.requests == 6


def test_an_uncaught_failure_costs_its_own_cell_only():
    def judged(problem, budget, rng):
        drawn = yield from sample(problem.prompt)
        yield from score([Score(problem.prompt, "x")])
        return all_of(drawn)

    bad, good = run(Broken(told(lines)), [cell(judged, key="bad"), cell(best_of_n, key="good")])
    assert (bad.error, bad.answer.response.finish, bad.answer.pool) == ("out of order", "failed", ())
    assert bad.cost.generated > 0 and not good.error


# --- mistakes of strategies and recipes


def test_mistakes_name_their_cell():
    def raises(problem, budget, rng):
        yield from sample(problem.prompt)
        raise ZeroDivisionError("a bug")

    def yields(problem, budget, rng):
        yield "please"

    def returns(problem, budget, rng):
        yield from sample(problem.prompt)
        return "42"

    def asks(problem, budget, rng):
        yield from score([Score(problem.prompt, "x", "critic")])

    with pytest.raises(ZeroDivisionError) as raised:
        one(raises)
    assert raised.value.__notes__ == ["in cell c"]
    with pytest.raises(TypeError, match="cell c: a program yielded 'please'"):
        one(yields)
    with pytest.raises(TypeError, match="cell c: the strategy returned '42'"):
        one(returns)
    with pytest.raises(KeyError, match=r"cell c asks the role 'critic'.*judge, policy, verifier"):
        one(asks)


def test_keys_are_unique():
    with pytest.raises(ValueError, match="two cells have one key"):
        run(toy(), [cell(best_of_n), cell(self_consistency)])


def test_no_cells_no_work():
    assert run(Silent(told(lines)), []) == []


# --- interrupts and replays


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", range(0, 12, 3))
def test_what_was_drawn_before_an_exception_is_kept_and_charged(tmp_path, after):
    def stop(result):
        seen.append(result)
        if len(seen) > after:
            raise Stop

    seen, engine, ledger = [], toy(slots=3), Ledger()
    work = [cell(best_of_n, key=f"{i}", replicate=i) for i in range(12)]
    streams = Streams(tmp_path, "one")
    with pytest.raises(Stop):
        run(engine, work, streams, ledger, on_result=stop)
    streams.close()
    kept = Streams(tmp_path, "one")
    drawn = sum(len(known.ends) for known in kept.paths.values())
    assert drawn == engine.counts.decode and ledger.total() == engine.counts
    again = toy()
    results = run(again, work, kept)
    kept.close()
    whole = toy()
    assert [plain(r) for r in results] == [plain(r) for r in run(whole, work)]
    assert again.counts.decode == whole.counts.decode - drawn


def test_results_are_told_as_they_come_and_returned_in_order():
    told_, work = [], [cell(best_of_n, budget=n, key=f"{n}", replicate=n) for n in (8, 1, 4)]
    results = run(toy(slots=1), work, on_result=told_.append)
    assert [r.cell.key for r in results] == ["8", "1", "4"]
    assert sorted(r.cell.key for r in told_) == ["1", "4", "8"]


def test_a_reply_on_disk_is_not_asked_for_again(tmp_path):
    def judges(problem, budget, rng):
        drawn = yield from sample(problem.prompt, budget)
        values = yield from probe(Probe(r, "?", ("Y", "N"), "self_eval") for r in drawn)
        return Answer(drawn[0], tuple(drawn), tuple(a for a, _ in values), "probed")

    streams = Streams(tmp_path, "one")
    engine = toy(yes=lambda said, adapter: len(said.text) / 100)
    [first] = run(engine, [cell(judges)], streams)
    streams.close()
    [again] = run(Silent(told(lines)), [cell(judges)], Streams(tmp_path))
    assert plain(again) == plain(first)


def test_a_nested_gathering_shares_what_is_left_of_the_budget():
    def tree(problem, budget, rng):
        yield from sample(problem.prompt, 2)
        pools = yield from gather([sample(problem.prompt, 9) for _ in range(3)])
        return all_of([r for pool in pools for r in pool])

    result = one(tree, 8, ToyEngine(told(lambda text: {"a": 1.0})))
    assert result.cost.generated == 80
    assert [sum(r.n_tokens for r in result.answer.pool[i : i + 9]) for i in (0, 9, 18)] == [20] * 3
