"""Early exit under strategies: what cells are charged, what a stop is worth in a vote, and replays."""

import functools
from dataclasses import replace

import pytest
import tiny
import torch
from toy import plain

from extratime.evaluate.cost import Cost, Ledger, Meter, flops, kv_bytes
from extratime.evaluate.program import Answer, Problem, extend, sample
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.streams import Streams
from extratime.models.early_exit import Controller, EarlyExit
from extratime.models.engines.early_exit import EarlyExitEngine
from extratime.models.engines.replay import ReplayEngine
from extratime.models.load import Loaded
from extratime.models.request import Path, Sampling, Shape, Work

DRAWN = Sampling()


def engine(exit=0.4, stop=None):
    """Four layers and a controller that acts differently from token to token; nothing but it ends a response."""
    torch.manual_seed(1)
    control = Controller(EarlyExit((1, 2, 3), 4, exit, stop), 32)
    torch.nn.init.normal_(control.up, std=0.1)
    torch.nn.init.normal_(control.classifier.weight, std=0.5)
    reads = tiny.tokenizer()
    reads.eos_token = None
    model = tiny.model(layers=4, eos=False)
    return EarlyExitEngine(Loaded(model, reads, "tiny", "tiny", controller=control.eval()))


def cells(strategy, budget, law=DRAWN, problems=6, length=14, **more):
    asked = [Problem(f"p{i}", tiny.prompt(5 + i, i), answer=len, max_tokens=length) for i in range(problems)]
    return [Cell(p.id, p, strategy, budget, law, **more) for p in asked]


def in_parts(problem, budget, rng):
    responses = yield from sample(problem.prompt, budget, max_tokens=3)
    for length in (4, 9, None):
        responses = yield from extend(responses, max_tokens=length)
    return Answer(responses[0], tuple(responses), (1.0,) * len(responses), "")


def run(on, cells, streams=None, ledger=None):
    return Schedule({"policy": on}, Streams() if streams is None else streams, ledger).run(cells)


SHAPE = Shape(parameters=1000, layers=4, heads=2, kv_heads=1, head_dim=3, skippable=50)


def test_layers_left_out_cost_their_keys_and_values_only():
    # Three tokens after 10, 11 and 12 others, leaving out 0, 2 and 3 of four layers.
    whole, pairs, skipped, skipped_pairs = 0, 0, 0, 0
    for context, left_out in ((11, 0), (12, 2), (13, 3)):
        ran = 4 - left_out
        layer, others = 50, 1000 - 4 * 50  # per layer what is skippable; embeddings, head, keys and values
        whole += 2 * (others + ran * layer) + ran * 2 * 3 * (2 + 2) * context  # q·k and weights·v, two heads of size 3
        pairs, skipped, skipped_pairs = pairs + context, skipped + left_out, skipped_pairs + left_out * context
    assert flops(SHAPE, 3, pairs, skipped, skipped_pairs) == whole
    assert flops(SHAPE, 3, pairs) == 2 * 1000 * 3 + 4 * 2 * 3 * 4 * pairs
    read = sum((4 - left_out) * 2 * 1 * 3 * 2 * context for context, left_out in ((11, 0), (12, 2), (13, 3)))
    assert kv_bytes(SHAPE, pairs, skipped_pairs) == read


def test_a_meter_charges_each_token_s_layers_once():
    meter, path = Meter(100), Path("s", (), 0)
    meter.draw(path, 10, 0, 2, skipped=(0, 3))
    meter.draw(path, 10, 0, 2, skipped=(0, 3))
    meter.draw(path, 10, 0, 4, skipped=(0, 3, 1, 2))
    assert (meter.cost.skipped, meter.cost.skipped_pairs) == (6, 3 * 12 + 1 * 13 + 2 * 14)
    ended = Meter(100)
    ended.draw(path, 10, 0, 2, skipped=(0, 3, 2))  # a third pass gave it up
    ended.draw(path, 10, 0, 2, skipped=(0, 3, 2))
    assert (ended.cost.generated, ended.cost.prefill) == (2, 10 + 1)
    assert (ended.cost.skipped, ended.cost.skipped_pairs) == (5, 3 * 12 + 2 * 13)
    assert ended.cost.decode_pairs == 11 + 12 + 13


@pytest.mark.parametrize("law", [Sampling(0), Sampling()], ids=["greedy", "drawn"])
@pytest.mark.parametrize("strategy", [self_consistency, in_parts])
def test_a_cell_is_charged_the_layers_that_its_tokens_went_through(strategy, law):
    on, ledger, streams = engine(stop=0.7), Ledger(), Streams()
    results = run(on, cells(strategy, 3, law), streams, ledger)
    assert ledger.total() == on.counts and on.counts.skipped > 0
    for result in results:
        paths = {r.path: r for r in result.answer.pool}
        told = {path: streams.paths[path].skipped for path in paths}
        assert result.cost.skipped == sum(map(sum, told.values()))
        prompt = len(result.cell.problem.prompt.ids)
        pairs = sum(s * (prompt + t) for skipped in told.values() for t, s in enumerate(skipped, 1))
        assert result.cost.skipped_pairs == pairs
        assert result.cost.generated == sum(r.n_tokens for r in paths.values())
    if strategy is self_consistency:
        stopped = sum(known.stopped for known in streams.paths.values())
        prompts = sum(len(r.cell.problem.prompt.ids) - 1 for r in results)
        assert stopped and on.counts.prefill == prompts + stopped


def test_cells_read_in_parts_are_those_read_at_once():
    whole, parts = (run(engine(stop=0.9), cells(s, 3)) for s in (self_consistency, in_parts))
    for one, other in zip(whole, parts, strict=True):
        assert [(r.text, r.finish, r.logprobs) for r in one.answer.pool] == [
            (r.text, r.finish, r.logprobs) for r in other.answer.pool
        ]
    finishes = {r.finish for result in whole for r in result.answer.pool}
    assert finishes == {"stopped", "length"}


def test_a_response_that_was_given_up_is_not_finished_never_votes_and_is_read_no_further():
    asked = cells(functools.partial(self_consistency), 8, until=("\n", "e", "u"), problems=12)
    for result in run(engine(stop=0.7), asked):
        gone = [r for r in result.answer.pool if r.finish == "stopped"]
        assert not any(r.finished or r.readable for r in gone)
        if any(r.finished for r in result.answer.pool):
            assert result.answer.response.finish == "until"
    assert any(r.finish == "stopped" for result in run(engine(stop=0.7), asked) for r in result.answer.pool)


def test_a_budget_of_one_and_streams_kept_on_disk_replay_without_the_model(tmp_path):
    asked = [replace(c, key=f"{c.key}{n}") for n, s in enumerate(STRATEGIES) for c in cells(s, n or 1)]
    on, streams = engine(stop=0.7), Streams(tmp_path, "0")
    before = run(on, asked, streams)
    streams.close()
    kept = Streams(tmp_path)
    again = run(ReplayEngine(on.fingerprint, on.profile, {}, on.encode), asked, kept)
    assert list(map(plain, again)) == list(map(plain, before))
    assert [r.cost for r in again] == [r.cost for r in before] and sum(r.cost.skipped for r in before) > 0
    assert any(known.stopped for known in kept.paths.values())
    torn = Streams(tmp_path / "half")
    first = run(engine(stop=0.7), asked[:3], torn)  # what is there already changes nothing
    assert list(map(plain, first)) == list(map(plain, before[:3]))


STRATEGIES = [self_consistency, self_consistency, best_of_n, in_parts]


def test_a_stop_that_adds_no_token_is_kept(tmp_path):
    """A path read up to the token after which it is given up, then further."""

    def reads(problem, budget, rng):
        responses = yield from sample(problem.prompt, 1)
        n = responses[0].n_tokens
        again = yield from sample(problem.prompt, 1, max_tokens=n)
        return Answer(again[0], (responses[0], again[0]), (1.0, 1.0), "")

    def later(problem, budget, rng):
        responses = yield from sample(problem.prompt, 1, max_tokens=lengths[problem.id])
        more = yield from extend(responses)
        return Answer(more[0], (responses[0], more[0]), (1.0, 1.0), "")

    found = run(engine(stop=0.7), cells(reads, 2, Sampling(0), problems=12))
    lengths = {r.cell.problem.id: r.answer.pool[0].n_tokens for r in found}
    stopped = [r.cell.problem.id for r in found if r.answer.pool[0].finish == "stopped"]
    assert stopped and all(r.answer.pool[1].finish == "length" for r in found)
    streams = Streams(tmp_path, "0")
    on = engine(stop=0.7)
    asked = [c for c in cells(later, 2, Sampling(0), problems=12) if c.problem.id in stopped]
    before = run(on, asked, streams)
    streams.close()
    assert all(r.answer.pool[1].finish == "stopped" for r in before)
    again = run(ReplayEngine(on.fingerprint, on.profile, {}, on.encode), asked, Streams(tmp_path))
    assert list(map(plain, again)) == list(map(plain, before))


def test_work_and_costs_add_up():
    assert Work(skipped=3, skipped_pairs=5) + Work(skipped=1, skipped_pairs=2) == Work(skipped=4, skipped_pairs=7)
    assert Cost(skipped=3) + Cost(skipped_pairs=2) == Cost(skipped=3, skipped_pairs=2)
