"""What stops early is not paid for: nothing is computed that the strategy did not want, and the ledger shows it."""

import functools
import itertools
import math

import numpy as np
import pytest
from toy import ToyEngine, ended, problem, run, told

from extratime.evaluate.algorithms.stages import Generator, Verification
from extratime.evaluate.cost import Ledger
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.adaptive_best_of_n import adaptive_best_of_n
from extratime.evaluate.strategies.adaptive_consistency import adaptive_consistency
from extratime.evaluate.strategies.archon import archon
from extratime.evaluate.strategies.deepconf_online import deepconf_online
from extratime.evaluate.strategies.early_stopping import early_stopping
from extratime.evaluate.strategies.early_stopping_consistency import early_stopping_consistency
from extratime.evaluate.strategies.first_finish import first_finish
from extratime.evaluate.strategies.iterative_agent_decoding import iterative_agent_decoding
from extratime.evaluate.strategies.multi_temperature import multi_temperature
from extratime.evaluate.strategies.pruned_best_of_n import pruned_best_of_n
from extratime.evaluate.strategies.self_refine import self_refine
from extratime.evaluate.verifiers.oracle import oracle


def computed(strategy, budget, law, n=24, max_tokens=12):
    """Run cells that share no draw: their results, and what was really computed, by engine and ledger."""
    engine, ledger = ToyEngine(law, slots=16), Ledger()
    cells = [Cell(f"{i}", problem(f"{i}", max_tokens=max_tokens), strategy, budget) for i in range(n)]
    results = run(engine, cells, ledger=ledger)
    assert ledger.total() == engine.counts
    return results, engine


def worded(prompt, text):
    """Three to eleven tokens, and right with probability 0.6; a critic finds nothing in half of the cases."""
    if "Check it" in prompt:
        return {"": 1.0} if text else {"No error": 0.5, "hm": 0.5}
    if "=" in text:
        return {"": 1.0}
    if len(text) == 9:
        return {"=1": 0.6, "=2": 0.4}
    return {"a": 0.4, "b": 0.2, "=1": 0.24, "=2": 0.16}


def by_letter(problem, responses):
    yield from ()
    return [0.01 if "b" in r.text else 0.9 for r in responses]


STOPPING = {
    "first_finish": functools.partial(first_finish, chunk=1),
    "multi_temperature": functools.partial(multi_temperature, temperatures=(0.5, 1.0)),
    "adaptive_consistency": adaptive_consistency,
    "early_stopping_consistency": functools.partial(early_stopping_consistency, window=2),
    "deepconf_online": functools.partial(deepconf_online, warmup=4, window=2, chunk=1),
    "adaptive_best_of_n": functools.partial(adaptive_best_of_n, verify=oracle, schedule=None),
    "pruned_best_of_n": functools.partial(pruned_best_of_n, verify=by_letter, look=2),
    "early_stopping": functools.partial(early_stopping, verify=by_letter, every=2),
    "iterative_agent_decoding": functools.partial(iterative_agent_decoding, verify=oracle, samples=2),
    "self_refine": functools.partial(self_refine, rounds=9),
    "archon": functools.partial(archon, stages=(Generator(n=4), Verification(verify=oracle, first=1))),
}


@pytest.mark.parametrize("name", STOPPING)
def test_all_that_is_computed_was_wanted(name):
    """The engine decoded what the cells read, token by token, and was sent no draw that none of them counts."""
    results, engine = computed(STOPPING[name], 12, worded)
    read = sum(result.cost.generated for result in results)
    assert engine.counts.decode == read == sum(result.cost.decoded for result in results)
    if name != "self_refine":  # critiques are no candidates
        drawn = itertools.chain.from_iterable(result.answer.pool for result in results)
        given_up = sum(r.n_tokens for r in drawn)
        assert read == given_up or (name == "pruned_best_of_n" and read > given_up)


@pytest.mark.parametrize("name", sorted({*STOPPING} - {"pruned_best_of_n", "archon"}))
def test_what_stops_early_costs_less_than_what_does_not(name):
    """Against the same strategy where nothing stops it."""
    never = {
        "first_finish": {"k": 12},
        "multi_temperature": {"across": 2.0},
        "adaptive_consistency": {"threshold": 2.0},
        "early_stopping_consistency": {"window": 12},
        "deepconf_online": {"consensus": 2.0, "keep": 1.0},
        "adaptive_best_of_n": {"threshold": 2.0},
        "early_stopping": {"threshold": 0.0},
        "iterative_agent_decoding": {"enough": 2.0},
        "self_refine": {"stop": "never said"},
    }
    stopped, engine = computed(STOPPING[name], 12, worded)
    whole, all_of_it = computed(functools.partial(STOPPING[name], **never[name]), 12, worded)
    assert engine.counts.decode < 0.9 * all_of_it.counts.decode
    if name != "self_refine":  # whose prompts say what it stops at, so that its draws are others
        assert all(a.cost.generated <= b.cost.generated for a, b in zip(stopped, whole, strict=True))
    if name not in ("first_finish", "early_stopping"):
        assert engine.submitted < all_of_it.submitted, "draws that are not wanted are never sent"


# --- first finish: tokens of all, also of those that are abandoned

LENGTHS = {"a": 5, "b": 7, "c": 9}


def timed(text):
    """A response of five, seven or nine tokens, its end among them, as its first letter says."""
    if not text:
        return dict.fromkeys(LENGTHS, 1 / 3)
    return {"": 1.0} if "=" in text else {"=1" if len(text) == LENGTHS[text[0]] - 2 else ".": 1.0}


@pytest.mark.parametrize(("k", "sequential", "total"), [(1, 5, 15), (2, 7, 19), (3, 9, 21)])
def test_first_finish_pays_for_abandoned_responses_too(k, sequential, total):
    """Of 5, 7 and 9 tokens 15 are read, not 5; in general Σ min(L_i, L_(k))."""
    results, _ = computed(functools.partial(first_finish, k=k, chunk=1), 3, told(timed), n=120)
    seen = 0
    for result in results:
        lengths = sorted(LENGTHS[r.text[0]] for r in result.answer.pool)
        assert result.cost.sequential == lengths[k - 1]
        assert result.cost.generated == sum(min(length, lengths[k - 1]) for length in lengths)
        if lengths == [5, 7, 9]:
            assert (result.cost.sequential, result.cost.generated) == (sequential, total)
            seen += 1
    assert seen >= 10


def test_the_first_finishes_after_so_many_tokens_on_average():
    """E[min L] = Σ_t (1 − G(t))ⁿ: 5 + 2·(2/3)³ + 2·(1/3)³ for three of them."""
    results, _ = computed(functools.partial(first_finish, chunk=1), 3, told(timed), n=400)
    first = [result.cost.sequential for result in results]
    exact = 5 + 2 * (2 / 3) ** 3 + 2 * (1 / 3) ** 3
    assert np.mean(first) == pytest.approx(exact, abs=3.3 * np.std(first) / math.sqrt(len(first)))
    assert all(ended(result.answer.response.text) == "1" for result in results)
