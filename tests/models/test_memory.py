"""Running out of memory makes batches smaller; what does not fit alone fails and says why."""

from dataclasses import replace

import pytest
import torch
from tiny import engine, prompt, serve

from extratime.models.engines.memory import attempt, out_of_memory
from extratime.models.request import Completion, Draw, Drawn, Failure, Probe, Read, Sampling, Score, Work

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]


def starve(runs, allowed, error=ERRORS[0]):
    """Let forward passes fail for which `allowed(rows, tokens)` is false; returns the sizes tried."""
    tried = []

    def hook(_, args, asked):
        rows, tokens = asked["input_ids"].shape
        tried.append((rows, tokens))
        if not allowed(rows, tokens):
            raise error

    runs._run.model.register_forward_pre_hook(hook, with_kwargs=True)
    return tried


def told(reply):
    return replace(reply, work=Work(), logprobs=(), tempered=())


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu"])
def test_decoding_goes_on_in_smaller_batches(error):
    draws = [Draw(prompt(5 + i, i), i, Sampling(), 12) for i in range(8)]
    runs = engine(slots=8, eos=False)
    tried = starve(runs, lambda rows, tokens: tokens > 1 or rows <= 3, error)
    replies = serve(runs, draws)
    assert [told(r) for r in replies] == [told(r) for r in serve(engine(slots=8, eos=False), draws)]
    assert (8, 1) in tried and (4, 1) in tried
    assert tried.count((8, 1)) == 1
    assert runs.counts == sum((r.work for r in replies), Work())


def test_prompts_are_read_in_smaller_batches_and_pieces():
    draws = [Draw(prompt(100, i), i, Sampling(), 4) for i in range(6)]
    runs = engine(eos=False)
    tried = starve(runs, lambda rows, tokens: rows * tokens <= 50)
    replies = serve(runs, draws)
    assert [told(r) for r in replies] == [told(r) for r in serve(engine(eos=False), draws)]
    assert max(rows for rows, tokens in tried if tokens > 1) == 6
    assert (1, 32) in tried


def test_questions_are_answered_in_smaller_batches():
    said = [Completion(prompt(9, i), "", 3, prompt(3, i).ids) for i in range(6)]
    asks = [Probe(c, "better?", ("a", "b")) for c in said] + [Score(c.prompt, "yes" * 20) for c in said]
    runs = engine()
    starve(runs, lambda rows, tokens: rows * tokens <= 40)
    for reply, wanted in zip(serve(runs, asks), serve(engine(), asks), strict=True):
        assert reply.values == pytest.approx(wanted.values, abs=1e-4)


def test_what_does_not_fit_alone_fails_and_says_so():
    completion = Completion(prompt(9), "", 3, prompt(3).ids)
    asks = [Draw(prompt(9), 0, Sampling(), 5), Score(prompt(9), "yes"), Probe(completion, "?", ("a",))]
    runs = engine()
    starve(runs, lambda rows, tokens: False)
    for reply in serve(runs, asks):
        assert isinstance(reply, Failure)
        assert "out of memory with a single row of" in reply.error
        assert "smaller model" in reply.error and "Tried to allocate" in reply.error


def test_a_draw_that_stops_fitting_fails_alone():
    draws = [Draw(prompt(5, i), i, Sampling(), 4 if i else 40) for i in range(3)]
    runs = engine(slots=1, eos=False)
    long = []

    def hook(_, args, asked):
        if asked["position_ids"].max() >= 20:
            long.append(1)
            raise ERRORS[0]

    runs._run.model.register_forward_pre_hook(hook, with_kwargs=True)
    first, *others = serve(runs, draws)
    assert (isinstance(first, Failure) and "20 tokens" in first.error) or "21 tokens" in first.error
    assert first.work.decode == 16
    assert all(isinstance(r, Drawn) and len(r.tokens) == 4 for r in others)


def test_the_engine_works_on_after_memory_came_back():
    runs, scarce = engine(eos=False), [True]
    starve(runs, lambda rows, tokens: not scarce[0])
    assert isinstance(serve(runs, [Draw(prompt(5), 0, Sampling(), 3)])[0], Failure)
    scarce[0] = False
    (reply,) = serve(runs, [Draw(prompt(5), 0, Sampling(), 3)])
    assert told(reply) == told(serve(engine(eos=False), [Draw(prompt(5), 0, Sampling(), 3)])[0])
    assert isinstance(serve(runs, [Score(prompt(5), "x")])[0], Read)


def test_no_memory_to_keep_a_prefix_costs_only_reading_it_again(monkeypatch):
    runs, draw = engine(eos=False), Draw(prompt(9), 0, Sampling(), 6)

    def full(*args):
        raise ERRORS[0]

    monkeypatch.setattr(type(runs._run.store), "insert", full)
    (one,), (two,) = serve(runs, [draw]), serve(runs, [replace(draw, prompt=prompt(9, 1))])
    assert told(one) == told(serve(engine(eos=False), [draw])[0])
    assert isinstance(two, Drawn)


def test_no_memory_to_enter_a_row_waits_for_room(monkeypatch):
    runs = engine(slots=4, eos=False)
    draws = [Draw(prompt(9, i), i, Sampling(), 6 + i) for i in range(4)]
    enter, calls = type(runs._batch)._enter, []

    def crowded(self, row, pieces):
        if any(self._rows):
            calls.append(row.ticket)
            return "no room"
        return enter(self, row, pieces)

    monkeypatch.setattr(type(runs._batch), "_enter", crowded)
    replies = serve(runs, draws)
    assert calls
    assert [told(r) for r in replies] == [told(r) for r in serve(engine(eos=False), draws)]


def test_other_errors_are_not_mistaken_for_memory():
    def broken():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        attempt(broken)
    assert attempt(lambda: None) is None
    assert out_of_memory(MemoryError())
    runs = engine()
    starve(runs, lambda rows, tokens: False, RuntimeError("shapes do not match"))
    runs.submit(0, Draw(prompt(3), 0, Sampling(), 3))
    with pytest.raises(RuntimeError, match="shapes"):
        runs.poll()


def test_a_failed_pass_holds_no_memory_while_it_is_tried_again():
    import weakref

    alive = []

    def work():
        tensor = torch.zeros(3)
        alive.append(weakref.ref(tensor))
        raise ERRORS[0].__class__("out of memory")

    assert attempt(work) == "out of memory"
    assert alive[0]() is None
