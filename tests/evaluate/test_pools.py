"""What a report tells of pools: figures at k by enumeration, and verifiers' weights by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
from run_folder import response, result, write

from extratime.evaluate.report import tables
from extratime.evaluate.report.page import report
from extratime.evaluate.report.pools import pool_statistics
from extratime.evaluate.report.read import read


def brute_pools(pool, k):
    """pass, maj, best and worst of every k-subset of (answer, score, weight, finish); a failed draw is worth 0."""
    found = []
    pool = [(a, 0 if finish == "failed" else score, w, finish) for a, score, w, finish in pool]
    for chosen in combinations(pool, k):
        finished = [x for x in chosen if x[3] == "eos"]
        votes = [x[0] for x in finished if x[0] is not None]
        top = [a for a in set(votes) if votes.count(a) == max(map(votes.count, votes))]
        majority = np.mean([a == "1" for a in top]) if top else 0.0
        keys = [(("failed", "length", "eos").index(x[3]), -math.inf if x[2] is None else x[2]) for x in chosen]
        best = np.mean([x[1] for x, key in zip(chosen, keys, strict=True) if key == max(keys)])
        found.append((max(x[1] for x in chosen), majority, best, min(x[1] for x in chosen)))
    return np.mean(found, axis=0)


POOLS = [
    [("1", 1, 0.5, "eos"), ("2", 0, 0.5, "eos"), ("2", 0, 0.1, "eos"), (None, 1, None, "failed")],
    [("1", 1, 0.2, "eos"), ("3", 1, 0.9, "length"), ("3", 0, 0.3, "eos"), ("1", 1, 0.3, "eos")],
]


def test_figures_at_k_equal_enumeration(tmp_path):
    records, responses = [], []
    for i, pool in enumerate(POOLS):
        named = [(f"{i}-{j}", weight) for j, (_, _, weight, _) in enumerate(pool)]
        responses += [
            response(f"{i}-{j}", score, answer, finish=finish) for j, (answer, score, _, finish) in enumerate(pool)
        ]
        records.append(result(f"t/{i}", "best_of_n(x)@4#0", 1.0, named, response=f"{i}-0"))
        records.append(result(f"t/{i}", "self_consistency@2#0", 1.0, [(n, 1.0) for n, _ in named[:2]]))
    at_k, rankings, _ = pool_statistics(read(write(tmp_path, records, responses)), 100)
    got = {(x.kind, x.verifier, x.k): x.value for x in at_k}
    for k in (1, 2, 4):
        expected = np.mean([brute_pools(pool, k) for pool in POOLS], axis=0)
        for kind, value in zip(("pass", "maj", "best", "worst"), expected, strict=True):
            assert got[kind, "best_of_n(x)" if kind == "best" else "", k] == pytest.approx(value), (kind, k)
    assert len(got) == 12  # self_consistency's weights are all alike: no verifier
    assert rankings[0].within == pytest.approx(np.mean([0.75, (0 + 1 + 0.5) / 3]))


@pytest.mark.parametrize(("least", "chances"), [(0.1, True), (-0.1, False)])
def test_weights_that_may_be_chances_are_told_how_far_they_are_to_be_believed(tmp_path, least, chances):
    weights, right = [0.5, 0.5, least, 0.2, 0.9, 0.3, 0.3], [1, 0, 0, 1, 1, 0, 1]
    names = [f"r{i}" for i in range(7)]
    responses = [response(name, score) for name, score in zip(names, right, strict=True)]
    folder = write(tmp_path, [result("t/0", "best_of_n@8#0", 1.0, list(zip(names, weights, strict=True)))], responses)
    (_, (found,), _) = pool_statistics(read(folder), 100)
    assert found.aurc == pytest.approx(np.mean([0, 0.5 / 2, 1 / 3, 1.5 / 4, 2 / 5, 2 / 6, 3 / 7]))
    report(folder)
    assert (tables.CALIBRATED[0] in (folder / "leaderboard.md").read_text()) is chances
    if not chances:
        assert all(map(math.isnan, (found.brier, found.ece, found.log_loss)))
        return
    assert found.brier == pytest.approx((0.25 + 0.25 + 0.01 + 0.64 + 0.01 + 0.09 + 0.49) / 7)
    assert found.ece == pytest.approx((0.1 + 0.8 + 0.4 + 0 + 0.1) / 7)
    given = [0.5, 0.5, 0.9, 0.2, 0.9, 0.7, 0.3]
    assert found.log_loss == pytest.approx(-np.log(given).mean())


def test_graded_scores_have_no_majority(tmp_path):
    records = [result("t/0", "best_of_n@2#0", 0.5, [("a", 0.1), ("b", 0.2)])]
    at_k, rankings, _ = pool_statistics(read(write(tmp_path, records, [response("a", 0.5), response("b", 0.25)])), 100)
    assert {(x.kind, x.k): x.value for x in at_k} == {
        ("pass", 1): 0.375,
        ("pass", 2): 0.5,
        ("best", 1): 0.375,
        ("best", 2): 0.25,
        ("worst", 1): 0.375,
        ("worst", 2): 0.25,
    }
    assert rankings == []
