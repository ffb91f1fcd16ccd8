"""Both accounts: the read one against closed forms written by hand, the computed one against the engine's counts."""

import functools
from dataclasses import replace

import pytest
from toy import SHAPE, Rebooting, ToyEngine, lines, problem, run, told

from extratime.evaluate.cost import Cost, Ledger, Meter, Rates, eflops, flops, kv_bytes, rates, span_pairs
from extratime.evaluate.program import Answer, gather, sample
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.beam_search import beam_search
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.dvts import dvts
from extratime.evaluate.strategies.first_finish import first_finish
from extratime.evaluate.strategies.greedy import greedy
from extratime.evaluate.strategies.particle_filter import particle_filter
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.streams import Streams
from extratime.evaluate.verifiers.reward_model import reward_model
from extratime.evaluate.verifiers.self_eval import self_eval
from extratime.models.request import Path, Shape, Work

P = 2
"""Tokens of the prompt "p?"."""


def steps(text):
    """Three steps of two tokens; the last is an answer and the end. Six tokens, always."""
    piece = {0: ("a", "b"), 1: ("\n",), 2: ("a", "b"), 3: ("\n",), 4: ("=1", "=2")}.get(len(text), ("",))
    return dict.fromkeys(piece, 1 / len(piece))


def cost(strategy, budget, law=steps, engine=ToyEngine, **fields):
    [result] = run(engine(told(law)), [Cell("c", problem(**fields), strategy, budget)])
    assert not result.error
    return result.cost


def triangle(n):
    """1 + 2 + … + n."""
    return n * (n + 1) // 2


# --- the read account


def test_pairs_of_a_span():
    assert span_pairs(0, 4) == 1 + 2 + 3 + 4
    assert span_pairs(10, 3) == 11 + 12 + 13
    assert span_pairs(10, 0) == 0


def test_greedy_reads_one_prompt_and_one_response():
    decode = sum(P + t for t in range(1, 7))
    for budget in (1, 4):
        assert cost(greedy, budget) == Cost(
            generated=6,
            sequential=6,
            prefill=P,
            prefill_uncached=P,
            pairs=decode + triangle(P),
            decode_pairs=decode,
            pairs_uncached=decode + triangle(P),
            requests=1,
        )


@pytest.mark.parametrize("strategy", [best_of_n, self_consistency])
@pytest.mark.parametrize("n", [1, 4, 16])
def test_n_samples_share_their_prompt_in_the_cache_only(strategy, n):
    decode = n * sum(P + t for t in range(1, 7))
    assert cost(strategy, n) == Cost(
        generated=6 * n,
        sequential=6,
        prefill=P,
        prefill_uncached=P * n,
        pairs=decode + triangle(P),
        decode_pairs=decode,
        pairs_uncached=decode + triangle(P) * n,
        requests=n,
    )


def test_a_question_reads_its_own_tokens_behind_the_response():
    """The toy question has 7 tokens; all responses are different here, and their end token is not part of the text."""
    question = 7

    def different(text):
        return {f"{i}": 1 / 64 for i in range(64)} if not text else {"": 1.0}

    n, length = 4, 2
    decode = n * sum(P + t for t in range(1, length + 1))
    context = P + length - 1
    asked = n * sum(context + t for t in range(1, question + 1))
    assert cost(functools.partial(best_of_n, verify=self_eval), n, different) == Cost(
        generated=length * n,
        sequential=length,
        prefill=P + question * n,
        prefill_uncached=P * n + (context + question) * n,
        pairs=decode + triangle(P) + asked,
        decode_pairs=decode,
        pairs_uncached=decode + triangle(P) * n + triangle(context + question) * n,
        requests=2 * n,
    )


def test_the_same_question_about_the_same_words_is_in_the_cache():
    one_word = {"": {"x": 1.0}, "x": {"": 1.0}}.__getitem__
    once, twice = (cost(functools.partial(best_of_n, verify=self_eval), n, one_word) for n in (1, 2))
    assert twice.prefill == once.prefill == P + 7
    assert twice.prefill_uncached == 2 * once.prefill_uncached


def test_a_reward_model_reads_the_response_behind_the_prompt():
    n, chars = 4, len("a\nb\n=1")
    read = cost(functools.partial(best_of_n, verify=reward_model), n)
    plain = cost(best_of_n, n)
    kinds = (read.prefill - plain.prefill) // chars
    assert 1 < kinds <= n  # equal responses are read once
    assert read.pairs - plain.pairs == kinds * sum(P + t for t in range(1, chars + 1))
    assert read.prefill_uncached - plain.prefill_uncached == n * (P + chars)
    assert read.generated == plain.generated


@pytest.mark.parametrize(("n", "width"), [(4, 2), (4, 4), (8, 2), (1, 4)])
def test_beam_search_reads_each_step_of_each_beam_once(n, width):
    """Each round all n beams draw a step of two tokens behind prefixes of 0, 2 and 4 tokens; prefixes are cached."""
    prefixes = (0, 2, 4)
    decode = n * sum(P + t for t in range(1, 7))
    assert cost(functools.partial(beam_search, width=width), n) == Cost(
        generated=6 * n,
        sequential=6,
        prefill=P,
        prefill_uncached=n * sum(P + prefix for prefix in prefixes),
        pairs=decode + triangle(P),
        decode_pairs=decode,
        pairs_uncached=decode + n * sum(triangle(P + prefix) for prefix in prefixes),
        requests=n * len(prefixes),
    )


def test_filter_and_subtrees_cost_what_beam_search_costs():
    expected = cost(functools.partial(beam_search, width=2), 8)
    assert cost(particle_filter, 8) == expected
    assert cost(functools.partial(dvts, width=2), 8) == expected


def test_first_finish_pays_for_those_that_it_abandons():
    """Lengths 5, 7 and 9: the chain is 5 long, and 15 tokens are read, not 5."""
    lengths = iter((5, 7, 9))

    class Set(ToyEngine):
        def submit(self, ticket, request):
            self.ends.setdefault(request.seed, next(lengths, None))
            super().submit(ticket, request)

        def _step(self, row):
            at = len(row.draw.have) + len(row.pieces) + 1
            end = self.ends[row.draw.seed]
            self.law = lambda prompt, text: {"": 1.0} if at == end else {"=1" if at == end - 1 else "x": 1.0}
            super()._step(row)

    Set.ends = {}
    read = cost(functools.partial(first_finish, chunk=1), 3, engine=Set)
    assert (read.sequential, read.generated) == (5, 15)
    assert read.decode_pairs == 3 * sum(P + t for t in range(1, 6))


def test_side_by_side_chains_count_by_the_longest():
    def uneven(problem, budget, rng):
        def chain(n):
            for _ in range(n):
                responses = yield from sample(problem.prompt)
            return responses

        first, second = yield from gather([chain(1), chain(3)])
        last = yield from sample(problem.prompt)
        return Answer(last[0], (*first, *second, *last), (0.0,) * 3, "all")

    read = cost(uneven, 8)
    assert (read.generated, read.sequential, read.requests, read.prefill) == (6 * 5, 6 * 4, 5, P)


def test_a_share_of_the_budget_is_what_is_left_over_the_number_of_shares():
    meter = Meter(103)
    meter.draw(Path("s", (), 0), 5, 0, 3)
    assert [meter.fork(3).left for _ in range(3)] == [33] * 3
    assert Meter(2).fork(3).left == 0
    meter.draw(Path("s", (), 1), 5, 0, 200)
    assert meter.left == 0


def test_reading_on_charges_only_what_is_new():
    meter = Meter(1000)
    path = Path("s", (), 0)
    assert [meter.draw(path, 5, 0, n) for n in (4, 4, 3, 10)] == [4, 0, 0, 6]
    assert meter.cost.generated == 10 and meter.cost.prefill == 5
    assert meter.cost.decode_pairs == sum(5 + t for t in range(1, 11))


# --- the computed account


@pytest.mark.parametrize("strategy", [best_of_n, particle_filter, dvts])
def test_computed_is_what_the_engine_counts_when_draws_fail(strategy):
    engine, ledger = Rebooting(told(lines), patience=2, times=1, slots=3), Ledger()
    for _ in range(3):
        run(engine, [Cell(f"{i}", problem(max_tokens=10), strategy, 8, replicate=i) for i in range(5)], ledger=ledger)
    assert engine.timeouts and ledger.total() == engine.counts
    computed = ledger.computed["policy"]
    assert computed.decode_pairs == computed.pairs > computed.decode > 0


@pytest.mark.parametrize("kept", [0, 3, 11])
def test_computed_holds_cancelled_work(kept):
    seen = []

    def stop(result):
        seen.append(result)
        if len(seen) > kept:
            raise KeyboardInterrupt

    engine, ledger, streams = ToyEngine(told(lines), slots=5), Ledger(), Streams()
    cells = [Cell(f"{i}", problem(max_tokens=10), best_of_n, 2, replicate=i) for i in range(20)]
    with pytest.raises(KeyboardInterrupt):
        run(engine, cells, streams, ledger, on_result=stop)
    assert ledger.total() == engine.counts
    assert engine.counts.decode == sum(len(known.ends) for known in streams.paths.values())
    assert not engine._rows


def test_the_ledger_keeps_roles_apart():
    ledger = Ledger()
    for role, tokens in (("policy", 1), ("verifier", 10), ("policy", 100)):
        ledger.charge(role, Work(prefill=tokens, decode=2 * tokens, cached=3, pairs=4, decode_pairs=5))
    assert ledger.total(["policy"]) == Work(101, 202, 6, 8, 10)
    assert ledger.total() == Work(111, 222, 9, 12, 15) and ledger.total(["judge"]) == Work()


# --- FLOPs, bytes and seconds (Kinetics)

QWEN3_06B = Shape(parameters=752_000_000, layers=28, heads=16, kv_heads=8, head_dim=128)
QWEN3_32B = Shape(parameters=32_760_000_000, layers=64, heads=64, kv_heads=8, head_dim=128)
B200 = 562.5


@pytest.mark.parametrize(("shape", "gib"), [(QWEN3_06B, 3.5), (QWEN3_32B, 8.0)])
def test_cache_of_32k_tokens(shape, gib):
    assert kv_bytes(shape, 32_768) == gib * 2**30


def test_published_cost_of_eight_samples():
    """Card, acceptance 2: 0.6B, 256 prompt tokens, 4096 generated, 8 samples."""
    compute = eflops(QWEN3_06B, 256, 4096, 8, 0.0)
    assert compute == pytest.approx(6.660e13, rel=1e-3)
    assert eflops(QWEN3_06B, 256, 4096, 8, B200) - compute == pytest.approx(4.397e15, rel=1e-3)


@pytest.mark.parametrize(("shape", "ratio"), [(QWEN3_06B, 716), (QWEN3_32B, 38)])
def test_attention_and_memory_outweigh_parameters(shape, ratio):
    """Card, acceptance 3: 32k tokens after 256."""
    parameters = 2.0 * shape.parameters * 32_768
    assert (eflops(shape, 256, 32_768, 1, B200) - parameters) / parameters == pytest.approx(ratio, abs=0.5)


@pytest.mark.parametrize("n", [1, 8])
def test_eflops_are_a_sum_over_tokens_at_the_middle_of_their_step(n):
    shape, prompt, generated = QWEN3_06B, 256, 512
    width = shape.head_dim * shape.layers
    compute = bytes_read = 0.0
    for t in range(generated):
        compute += n * (2.0 * shape.parameters + 4 * shape.heads * width * (prompt + t + 0.5))
        bytes_read += 2 * shape.dtype_bytes * shape.kv_heads * width * (prompt + n * (t + 0.5))
    assert eflops(shape, prompt, generated, n, B200) == pytest.approx(compute + B200 * bytes_read, rel=1e-9)


def test_the_exact_count_differs_from_eflops_by_half_a_token_a_step():
    shape, prompt, generated = QWEN3_06B, 256, 512
    exact = flops(shape, generated, span_pairs(prompt, generated))
    half = 4.0 * shape.heads * shape.head_dim * shape.layers * generated / 2
    assert exact - half == pytest.approx(eflops(shape, prompt, generated, 1, 0.0), rel=1e-12)
    assert flops(SHAPE, 3, 0) == 6000 and flops(replace(SHAPE, parameters=0), 0, 10) == 4 * 4 * 10


def test_doubling_the_length_quadruples_memory():
    memory = [eflops(QWEN3_06B, 256, n, 1, 1.0) - eflops(QWEN3_06B, 256, n, 1, 0.0) for n in (32_768, 65_536)]
    assert memory[1] / memory[0] == pytest.approx(4, abs=0.05)


def test_rates_are_calibrated_on_what_was_done():
    assert rates(Work(prefill=100, decode=50), {"prefill": 2.0, "decode": 10.0}) == Rates(0.02, 0.2)
    assert rates(Work(), {"prefill": 2.0}) == Rates(0.0, 0.0)
    assert Rates(0.02, 0.2).seconds(10, 5) == pytest.approx(1.2)
