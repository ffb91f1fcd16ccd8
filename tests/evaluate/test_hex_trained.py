"""HEX on a masked-diffusion model that was trained, from a checkpoint folder to results, as a user would run it.

Five prompts, each with a law of three digits that the model learns. Which digit is written first decides what is
found: each of three block schedules errs on one of the first three prompts, and no two on the same.
"""

import itertools
import json
import math
from collections import Counter

import masked
import pytest
import torch
from scipy.stats import binom

from extratime.evaluate.grid import EngineSpec, parse
from extratime.evaluate.report.read import read
from extratime.evaluate.run import run_recipe
from extratime.models.engines.open import open_engine
from extratime.models.request import Draw
from extratime.models.unmasking import Unmasking

LAWS = {
    "1": {"307": 0.42, "117": 0.34, "217": 0.24},  # left to right errs
    "2": {"307": 0.42, "117": 0.17, "118": 0.15, "217": 0.11, "218": 0.15},  # blocks of two err
    "3": {"307": 0.38, "118": 0.30, "117": 0.14, "217": 0.18},  # one block errs
    "4": {"307": 0.4, "117": 0.3, "217": 0.3},
    "5": {"017": 0.5, "107": 0.5},
}
RIGHT = {"1": "11", "2": "30", "3": "11"}
WRONG = {1: "1", 2: "2", 4: "3"}
"""By block, the prompt on which it errs."""
LAW = Unmasking(0, length=4, block=4, steps=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = masked.trained({f"{prompt}=": law for prompt, law in LAWS.items()}, length=4)
    return masked.save(model, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(checkpoint):
    return open_engine(str(checkpoint), {}, EngineSpec(kind="diffusion", device="cpu", slots=64)).engine


def drawn(engine, prompt, law, n=1):
    for seed in range(n):
        engine.submit(seed, Draw(engine.encode(f"{prompt}="), (seed + 1) * 0x9E3779B97F4A7C15 % 2**64, law, 4))
    replies = {}
    while len(replies) < n:
        replies |= dict(engine.poll())
    return [replies[seed].text for seed in range(n)]


def marginal(prompt, path, place):
    """Law of a digit given those of a path that are written; "_" is a mask."""
    found = Counter()
    for text, p in LAWS[prompt].items():
        if all(here in ("_", there) for here, there in zip(path, text, strict=True)):
            found[text[place]] += p
    return {digit: p / found.total() for digit, p in found.items()}


def in_order(prompt, order):
    """What is written where the likeliest digit is taken at each place in turn."""
    path = ["_"] * 3
    for place in order:
        law = marginal(prompt, path, place)
        path[place] = max(law, key=law.get)
    return "".join(path[:2])


@pytest.mark.parametrize("prompt", LAWS)
@pytest.mark.parametrize("path", ["___", "_1_", "__7"])
def test_the_model_has_learned_its_laws(engine, prompt, path):
    ids = [*engine.encode(f"{prompt}=").ids, *(masked.MASK if c == "_" else int(c) for c in path), masked.MASK]
    with torch.inference_mode():
        told = engine._logits([ids], [2, 3, 4, 5])[0].softmax(-1)
    for place in (i for i, c in enumerate(path) if c == "_"):
        for digit, p in marginal(prompt, path, place).items():
            assert told[place, int(digit)].item() == pytest.approx(p, abs=0.05)
    assert told[3, masked.END] > 0.98


def test_the_order_of_writing_decides_what_is_found(engine):
    """P(3,0) = 0.4, P(1,1) = P(2,1) = 0.3. Left to right finds the first, any order one of the others."""
    assert drawn(engine, "4", LAW.in_blocks(1)) == ["307"]
    assert drawn(engine, "4", LAW.in_blocks(2))[0] in ("117", "217")
    for block, prompt in WRONG.items():
        said = {p: drawn(engine, p, LAW.in_blocks(block))[0][:2] for p in RIGHT}
        assert {p for p in RIGHT if said[p] != RIGHT[p]} == {prompt}


def test_tokens_written_at_once_do_not_agree(engine):
    """Uniform on 01 and 10: two at once are invalid with probability 1/2, one at a time (nearly) never."""
    n = 300
    at_once, one_by_one = Unmasking(length=4, block=2, steps=2), Unmasking(length=4, block=2, steps=4)
    invalid = [
        sum(text[:2] not in ("01", "10") for text in drawn(engine, "5", law, n)) for law in (at_once, one_by_one)
    ]
    assert binom.ppf(0.0005, n, 0.45) <= invalid[0] <= binom.ppf(0.9995, n, 0.55)
    assert invalid[1] <= 0.05 * n


def recipe(checkpoint, output, strategies, replicates=1, **sampling):
    folder = output / "data"
    folder.mkdir(parents=True)
    lines = [json.dumps({"expression": prompt, "answer": right}) for prompt, right in RIGHT.items()]
    (folder / "test.jsonl").write_text("\n".join(lines))
    task = {
        "custom_dataset": None,
        "training_split": None,
        "validation_split": None,
        "doc_to_text": "{{expression}}=",
        "filter_list": [
            {
                "name": "first",
                "filter": [{"function": "regex", "regex_pattern": "^(..)"}, {"function": "take_first"}],
            }
        ],
    }
    said = {
        "model": str(checkpoint),
        "tasks": ["sums_easy"],
        "data": {"sums_easy": str(folder)},
        "overrides": {"sums_easy": task},
        "strategies": strategies,
        "budgets": [3],
        "replicates": replicates,
        "max_tokens": 4,
        "chat": False,
        "engine": {"kind": "diffusion", "device": "cpu", "slots": 64},
        "sampling": {"temperature": 0, "length": 4, "block": 4, "steps": 4, **sampling},
        "output": str(output / "run"),
    }
    return read(run_recipe(parse(said))).results


def right_ones(results, strategy):
    return [r.score for r in results if r.strategy == strategy]


def test_the_vote_is_right_where_each_schedule_errs(checkpoint, tmp_path):
    """Each fixed schedule has two of three, whatever its budget, and the vote over schedules has all."""
    fixed = [{"hex": {"blocks": [block], "label": f"block {block}"}} for block in WRONG]
    results = recipe(checkpoint, tmp_path, [{"hex": {"blocks": list(WRONG)}}, *fixed])
    assert right_ones(results, "hex") == [1.0] * 3
    for block in WRONG:
        assert sum(right_ones(results, f"block {block}")) == 2.0


def test_random_remasking_of_equal_compute_is_beaten_and_has_its_exact_law(checkpoint, tmp_path):
    """Three decodes of one block in a random order: each of the six orders of the three digits is as likely."""
    n = 40
    results = recipe(checkpoint, tmp_path, ["self_consistency"], n, confidence="random")
    orders = list(itertools.permutations(range(3)))
    expected = []
    for prompt, right in RIGHT.items():
        single = Counter(in_order(prompt, order) for order in orders)
        wins = 0.0
        for votes in itertools.product(single, repeat=3):
            elected = max(dict.fromkeys(votes), key=votes.count)
            wins += (elected == right) * math.prod(single[vote] / len(orders) for vote in votes)
        expected.append(wins)
    assert sum(expected) / 3 < 0.85
    got = sum(right_ones(results, "self_consistency"))
    mean = sum(expected) / 3
    assert binom.ppf(0.0005, 3 * n, mean) <= got <= binom.ppf(0.9995, 3 * n, mean)
    assert got < 3 * n
