"""The diffusion engine on models whose conditionals are known exactly, and on a transformers model."""

import functools
import itertools
import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import binom
from tiny import model, save, tokenizer
from toy import p_value, plain
from transformers import LlamaConfig

from extratime.evaluate.cost import Ledger
from extratime.evaluate.grid import EngineSpec
from extratime.evaluate.program import Answer, Problem, extend, sample
from extratime.evaluate.schedule import Cell, Schedule
from extratime.evaluate.strategies.hex import hex
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.streams import Streams
from extratime.models.engines.diffusion import DiffusionEngine
from extratime.models.engines.open import open_engine
from extratime.models.load import Loaded
from extratime.models.request import Draw, Failure, Prompt, Sampling, Score, Work
from extratime.models.unmasking import Unmasking

WORDS = tokenizer()
MASK, END = 262, 263


def ids(text):
    return [END if letter == "." else WORDS(letter).input_ids[0] for letter in text]


class Tabular(torch.nn.Module):
    """A masked-diffusion model that knows its joint law: text to probability; "." is the end token."""

    def __init__(self, table):
        super().__init__()
        self.table = {tuple(ids(text)): p for text, p in table.items()}
        self.length = len(next(iter(self.table)))
        self.config = LlamaConfig(vocab_size=264, mask_token_id=MASK, max_position_embeddings=64)
        self.generation_config = SimpleNamespace(eos_token_id=None)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.seen, self.known = [], {}
        self.embedding = torch.nn.Embedding(264, 1)

    def get_input_embeddings(self):
        return self.embedding

    get_output_embeddings = get_input_embeddings

    def forward(self, input_ids, attention_mask, logits_to_keep, position_ids=None, past_key_values=None, use_cache=0):
        self.seen += input_ids.tolist()
        rows = [self.marginals(tuple(row[-self.length :])) for row in input_ids.tolist()]
        begin = input_ids.shape[1] - self.length
        return SimpleNamespace(logits=torch.stack(rows)[:, logits_to_keep - begin].log())

    def marginals(self, path):
        if path not in self.known:
            told = torch.zeros(self.length, 264)
            for text, p in self.table.items():
                if all(here in (MASK, there) for here, there in zip(path, text, strict=True)):
                    told[range(self.length), text] += p
            self.known[path] = told if told.any() else torch.ones_like(told)
        return self.known[path]


def engine(table, slots=64):
    return DiffusionEngine(Loaded(Tabular(table), WORDS, str(sorted(table.items())), "tabular"), slots)


def drawn(on, law, seeds=(0,), prompt="p", **fields):
    """Replies to one draw for each seed, in their order."""
    fields = {"max_tokens": law.length} | fields
    for seed in seeds:
        on.submit(seed, Draw(on.encode(prompt), seed * 0x9E3779B97F4A7C15 % 2**64, law, **fields))
    replies = {}
    while len(replies) < len(seeds):
        replies |= dict(on.poll())
    return [replies[seed] for seed in seeds]


def texts(on, law, n):
    return [reply.text + "." * reply.eos for reply in drawn(on, law, range(n))]


# --- the order of writing decides


def test_small_blocks_and_large_ones_find_other_texts():
    on = engine({"c0": 0.4, "a1": 0.3, "b1": 0.3})
    assert texts(on, Unmasking(0, length=2, block=1, steps=2), 1) == ["c0"]
    assert texts(on, Unmasking(0, length=2, block=2, steps=2), 1) == ["a1"]


def test_tokens_of_one_step_do_not_know_of_each_other():
    on, n = engine({"01": 0.5, "10": 0.5}), 400
    at_once, one_by_one = Unmasking(length=2, block=2, steps=1), Unmasking(length=2, block=2, steps=2)
    assert texts(on, at_once.at(0), 1) == ["00"]
    invalid = sum(text in ("00", "11") for text in texts(on, at_once, n))
    assert binom.ppf(0.0005, n, 0.5) <= invalid <= binom.ppf(0.9995, n, 0.5)
    assert set(texts(on, one_by_one, n)) == {"01", "10"} and texts(on, one_by_one.at(0), 1) == ["01"]


JOINT = dict(zip(map("".join, itertools.product("ab", repeat=3)), (20, 5, 8, 22, 3, 17, 15, 10), strict=True))


def unmasked(law):
    """Exact law of the texts of a three-letter joint, by summing over proposals and over what stays."""
    whole, final = {"___": 1.0}, Counter()
    for _ in range(law.total):
        grown = Counter()
        for path, chance in whole.items():
            block = [i for i in range(3) if path[i] == "_"]
            here = [i for i in block if i // law.block == block[0] // law.block]
            for proposal, p in proposals(path, here, law):
                for kept, q in stay(path, here, proposal, law):
                    new = "".join(proposal[here.index(i)] if i in kept else c for i, c in enumerate(path))
                    grown[new] += chance * p * q
        whole = grown
    for path, chance in whole.items():
        final[path] += chance
    return dict(final)


def conditional(path, place, letter):
    fits = {t: p for t, p in JOINT.items() if all(a in ("_", b) for a, b in zip(path, t, strict=True))}
    return sum(p for t, p in fits.items() if t[place] == letter) / sum(fits.values())


def proposals(path, here, law):
    hot = {i: {c: conditional(path, i, c) ** (1 / law.temperature) for c in "ab"} for i in here}
    for letters in itertools.product("ab", repeat=len(here)):
        yield letters, math.prod(hot[i][c] / sum(hot[i].values()) for i, c in zip(here, letters, strict=True))


def stay(path, here, proposal, law):
    n = law.counts[sum(c != "_" for c in path) % law.block * len(law.counts) // law.block]
    if law.confidence == "random":
        every = list(itertools.combinations(here, n))
        return [(kept, 1 / len(every)) for kept in every]
    sure = {i: conditional(path, i, c) for i, c in zip(here, proposal, strict=True)}
    if law.confidence == "topk_margin":
        sure = {i: abs(2 * conditional(path, i, "a") - 1) for i in here}
    return [(sorted(here, key=lambda i: (-round(sure[i], 9), i))[:n], 1.0)]


LAWS = [
    Unmasking(length=3, block=1, steps=3),
    Unmasking(length=3, block=3, steps=3),
    Unmasking(length=3, block=3, steps=1),
    Unmasking(length=3, block=3, steps=3, confidence="random"),
    Unmasking(length=3, block=3, steps=3, confidence="topk_margin"),
    Unmasking(0.5, length=3, block=3, steps=3),
]


@pytest.mark.parametrize("law", LAWS)
def test_each_schedule_has_its_exact_law(law):
    assert p_value(texts(engine(JOINT), law, 700), unmasked(law)) > 1e-3


def test_random_remasking_of_the_likeliest_tokens_draws_their_order_alone():
    law = Unmasking(0, length=2, block=2, steps=2, confidence="random")
    assert p_value(texts(engine({"c0": 0.4, "a1": 0.3, "b1": 0.3}), law, 300), {"c0": 0.5, "a1": 0.5}) > 1e-3


def test_blocks_of_one_draw_from_the_joint_itself_and_one_step_from_the_marginals():
    left_to_right, at_once = unmasked(LAWS[0]), unmasked(LAWS[2])
    first = {c: sum(p for t, p in JOINT.items() if t[0] == c) / 100 for c in "ab"}
    assert left_to_right == pytest.approx({t: p / 100 for t, p in JOINT.items()})
    assert sum(p for t, p in at_once.items() if t[0] == "a") == pytest.approx(first["a"])
    assert p_value(texts(engine(JOINT), LAWS[1], 700), left_to_right) < 1e-3  # so the test above can fail


def test_log_probabilities_are_those_under_which_tokens_were_written():
    [reply] = drawn(engine(JOINT), Unmasking(0.5, length=3, block=1, steps=3))
    raw = [conditional(reply.text[:i] + "___"[i:], i, reply.text[i]) for i in range(3)]
    assert reply.logprobs == pytest.approx(list(map(math.log, raw)), abs=1e-5)
    hot = [p**2 / (p**2 + (1 - p) ** 2) for p in raw]
    assert reply.tempered == pytest.approx(list(map(math.log, hot)), abs=1e-5)


# --- what never happens


EVEN = {"".join(t): 1.0 for t in itertools.product("ab", repeat=6)}


@pytest.mark.parametrize(("block", "steps"), [(1, 6), (2, 3), (3, 4), (6, 4), (6, 6), (6, 1)])
def test_blocks_fill_in_order_and_each_step_is_one_pass(block, steps):
    on = engine(EVEN)
    law = Unmasking(length=6, block=block, steps=steps)
    [reply] = drawn(on, law, prompt="xy")
    seen, written = on._model.seen, []
    assert len(seen) == steps and sum(law.counts) == block
    assert all(row[:2] == ids("xy") for row in seen) and len(reply.tokens) == 6 and MASK not in reply.tokens
    for row in seen:
        done = [i for i, token in enumerate(row[2:]) if token != MASK]
        assert set(written) <= set(done) and len(done) >= max(done, default=-1) // block * block
        written = done
    assert reply.work == Work(prefill=8 * steps - 6, decode=6, pairs=64 * steps) == on.counts


def test_nothing_is_written_behind_an_end_and_the_end_counts():
    on = engine({"a.cccc": 0.5, "b.cccc": 0.5})
    [reply] = drawn(on, Unmasking(length=6, block=2, steps=6))
    assert reply.text in ("a", "b") and reply.eos and reply.ends == (1, 1) and len(reply.logprobs) == 2
    assert len(on._model.seen) == 2 and reply.work.decode == 2


@pytest.mark.parametrize("fields", [{"until": ("a",)}, {"pause": ("a",)}, {"max_tokens": 2}])
def test_a_draw_goes_no_further_than_the_block_of_its_stop(fields):
    on = engine({"aaabbb": 1.0})
    assert drawn(on, Unmasking(length=6, block=3, steps=6), **fields)[0].text == "aaa"


def test_a_path_goes_on_where_it_was_left_whoever_shares_its_passes():
    law = Unmasking(length=6, block=2, steps=6)
    whole = drawn(engine(EVEN), law, range(20))
    alone = [drawn(engine(EVEN, slots=1), law, [seed])[0] for seed in range(20)]
    assert whole == alone and len({reply.text for reply in whole}) > 10
    on = engine(EVEN, slots=3)
    for seed, reply in enumerate(whole):
        [begun] = drawn(on, law, [seed], max_tokens=3)
        assert len(begun.tokens) == 4
        [rest] = drawn(on, law, [seed], have=begun.tokens, have_text=begun.text)
        assert begun.text + rest.text == reply.text and begun.logprobs + rest.logprobs == reply.logprobs
        assert begun.work + rest.work == reply.work


def test_what_was_cancelled_keeps_its_blocks():
    on, law = engine(EVEN), Unmasking(length=6, block=2, steps=6)
    on.submit("t", Draw(on.encode("p"), 7, law, 6))
    assert on.cancel("never") is None
    with torch.inference_mode():
        for _ in range(3):
            on._advance()
    kept = on.cancel("t")
    assert len(kept.tokens) == 2 and kept.work.decode == 3 and on.poll() == [] and on.cancel("t") is None


def test_what_does_not_fit_fails_alone():
    on, law = engine(EVEN), Unmasking(length=6, block=2, steps=6)
    [long] = drawn(on, law, prompt="p" * 60)
    [torn] = drawn(on, law, have=(1, 2, 3))
    assert isinstance(long, Failure) and "shorten the prompt" in long.error
    assert isinstance(torn, Failure) and "no whole blocks" in torn.error
    for wrong in (Score(Prompt("p"), "a"), Draw(Prompt("p"), 0, Sampling(), 3)):
        with pytest.raises(ValueError, match=r"only draws|policy only"):
            on.submit("w", wrong)
    with pytest.raises(ValueError, match="names no mask token"):
        DiffusionEngine(Loaded(model(), WORDS, "x", "here"))
    with pytest.raises(ValueError, match="merge adapters"):
        DiffusionEngine(Loaded(Tabular(EVEN), WORDS, "x", "here", {"self_eval": "y"}))


# --- through the scheduler


def task(i=0, length=3):
    return Problem(f"p{i}", Prompt("p", tuple(ids("p"))), answer=lambda text: text or None, max_tokens=length)


def elected(votes):
    return max(dict.fromkeys(votes), key=votes.count)


def test_the_vote_over_schedules_has_its_exact_law():
    """Two left-to-right decodes and one in any order, each of its own law; ties go to the first."""
    told = {t + ".": p for t, p in JOINT.items()}
    narrow, wide = unmasked(LAWS[0]), unmasked(LAWS[1])
    law = Counter()
    for votes in itertools.product(JOINT, repeat=3):
        law[elected(votes)] += narrow[votes[0]] * wide[votes[1]] * narrow[votes[2]]
    sampling = Unmasking(length=4, block=4, steps=4)
    strategy = functools.partial(hex, blocks=(1, 4))
    cells = [Cell(f"{i}", task(length=4), strategy, 3, sampling, replicate=i) for i in range(250)]
    streams = Streams()
    results = Schedule({"policy": engine(told)}, streams).run(cells)
    assert p_value((r.answer.response.text for r in results), law) > 1e-3
    assert {r.sampling.block for r in results[0].answer.pool} == {1, 4}
    again = Schedule({"policy": engine(told, slots=5)}, streams).run(cells)
    assert list(map(plain, again)) == list(map(plain, results))
    fresh = Schedule({"policy": engine(told, slots=5)}, Streams()).run(cells[29::-1])
    assert list(map(plain, fresh)) == list(map(plain, results[29::-1]))


def test_schedules_are_streams_of_their_own_and_a_replay_asks_no_engine():
    on, streams = engine({"c0.": 0.4, "a1.": 0.3, "b1.": 0.3}), Streams()
    cell = Cell("c", task(), functools.partial(hex, blocks=(1, 3)), 4, Unmasking(0, length=3, block=1, steps=3))
    [result] = Schedule({"policy": on}, streams).run([cell])
    assert [r.text for r in result.answer.pool] == ["c0", "a1", "c0", "a1"]
    assert (result.answer.response.text, result.answer.why) == ("c0", "tie between schedules")
    assert len(streams.paths) == 2 and len(on._model.seen) == 6  # a greedy schedule is decoded once
    [again] = Schedule({"policy": on}, streams).run([cell])
    assert len(on._model.seen) == 6 and plain(again) == plain(result)


def test_reading_in_parts_is_reading_at_once():
    def parts(problem, budget, rng):
        responses = yield from sample(problem.prompt, 2, max_tokens=3)
        responses = yield from extend(responses)
        return Answer(responses[0], tuple(responses), (0.0, 0.0), "")

    def whole(problem, budget, rng):
        responses = yield from sample(problem.prompt, 2)
        return Answer(responses[0], tuple(responses), (0.0, 0.0), "")

    law = Unmasking(length=6, block=2, steps=6)
    results = [
        Schedule({"policy": engine(EVEN)}, Streams()).run([Cell("c", task(length=6), s, 2, law)])[0]
        for s in (parts, whole)
    ]
    assert results[0].answer == results[1].answer and results[0].cost.generated == results[1].cost.generated == 12
    one, other = (result.cost._replace(requests=0) for result in results)
    assert one == other and one.sequential == 6


@pytest.mark.parametrize("table", [EVEN, {"a.cccc": 0.5, "bbb.cc": 0.5}])
@pytest.mark.parametrize("until", [(), ("b",)])
@pytest.mark.parametrize(("block", "steps"), [(1, 6), (2, 3), (3, 4), (6, 2)])
def test_a_cell_is_charged_what_the_engine_did_and_what_is_shared_twice(table, until, block, steps):
    law = Unmasking(length=6, block=block, steps=steps)
    on = engine(table)
    ledger = Ledger()
    cells = [Cell(name, task(length=6), self_consistency, 5, law, until) for name in ("one", "two")]
    costs = [result.cost for result in Schedule({"policy": on}, Streams(), ledger).run(cells)]
    assert costs[0] == costs[1] and ledger.total() == on.counts
    assert costs[0].decoded + costs[0].prefill == on.counts.decode + on.counts.prefill == 7 * len(on._model.seen)
    assert costs[0].pairs == costs[0].pairs_uncached == on.counts.pairs == 49 * len(on._model.seen)
    assert costs[0].decode_pairs == on.counts.decode_pairs == 0


def test_a_branch_stands_before_masks_of_its_own():
    def branches(problem, budget, rng):
        [first] = yield from sample(problem.prompt, 1, max_tokens=2)
        responses = yield from extend([first, first])
        return Answer(responses[0], tuple(responses), (0.0, 0.0), "")

    on = engine(EVEN)
    law = Unmasking(length=6, block=2, steps=3)
    [result] = Schedule({"policy": on}, Streams()).run([Cell("c", task(length=6), branches, 4, law)])
    assert [len(row) for row in on._model.seen].count(7) == 3 and result.cost.sequential == 3
    assert result.cost.decoded + result.cost.prefill == on.counts.decode + on.counts.prefill
    assert result.cost.pairs == on.counts.pairs


# --- a transformers model


def folder(path, mask=MASK):
    save(path, eos=False)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | ({"mask_token_id": mask} if mask else {})))
    return str(path)


def test_every_token_sees_every_other(tmp_path):
    on = open_engine(folder(tmp_path), {}, EngineSpec(kind="diffusion", device="cpu")).engine
    with torch.inference_mode():
        one, other = (on._logits([[5, MASK, MASK, last]], [1]) for last in (6, 7))
    assert isinstance(on, DiffusionEngine) and not torch.allclose(one, other) and one[0, 0, MASK] == -math.inf


def test_it_is_of_the_size_that_the_same_weights_have_for_the_hf_engine(tmp_path):
    where = folder(tmp_path)
    ours, theirs = (open_engine(where, {}, EngineSpec(kind, device="cpu")).engine for kind in ("diffusion", "hf"))
    assert ours.profile.shape == theirs.profile.shape and ours.profile.shape.parameters > 0


def test_a_model_of_a_folder_draws_alike_alone_and_in_company(tmp_path):
    where, law = folder(tmp_path), Unmasking(length=16, block=4, steps=8)
    both = []
    for slots in (1, 7):
        on = open_engine(where, {}, EngineSpec(kind="diffusion", device="cpu", slots=slots)).engine
        for seed in range(6):
            on.submit(seed, Draw(on.encode("ab" * (seed % 2 + 1)), seed, law, 16))
        replies = {}
        while len(replies) < 6:
            replies |= dict(on.poll())
        both.append({seed: (reply.tokens, reply.eos) for seed, reply in replies.items()})
    assert both[0] == both[1] and all(eos or len(tokens) == 16 for tokens, eos in both[0].values())
    assert len(set(both[0].values())) == 6


# --- the law


def test_a_schedule_that_does_not_come_out_even_is_refused():
    for wrong, match in (
        ({"length": 8, "block": 3}, "do not fill"),
        ({"length": 8, "block": 2, "steps": 6}, "cannot be shared"),
        ({"length": 8, "block": 1, "steps": 4}, "cannot be shared"),
        ({"length": 8, "block": 2, "steps": 12}, "cannot be shared"),
        ({"length": 8, "block": 2, "steps": 0}, "cannot be shared"),
        ({"length": 8, "block": 0}, "do not fill"),
        ({"confidence": "high"}, "confidence must be"),
        ({"temperature": -1.0}, "temperature must be"),
    ):
        with pytest.raises(ValueError, match=match):
            Unmasking(**wrong)
    law = Unmasking(length=8, block=4)
    assert (law.total, law.counts, law.in_blocks(8).counts) == (4, [2, 2], [2] * 4)
    assert Unmasking(length=10, block=5, steps=4).counts == [3, 2]
    assert law.at(0).greedy and law.at(0).block == 4 and not law.greedy
    assert Unmasking(0.7, 0.9, 3, 0.1, length=8, block=4).at(0) == law.at(0) == Unmasking(0, length=8, block=4)
    assert Unmasking(0.7, 0.9, 3, 0.1, length=8, block=8).at(0.5) == Unmasking(0.5, 0.9, 3, 0.1, length=8, block=8)
    assert Unmasking(length=8, block=1).total == 8 and Unmasking(1.0, top_k=1).greedy
    assert not Unmasking(0, confidence="random").greedy
    assert Sampling(0.5).in_blocks(4) == Sampling(0.5)
