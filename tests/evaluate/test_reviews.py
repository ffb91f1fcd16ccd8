"""Right answers whose work was checked: what is left of accuracy and of pass@k, and what is no review."""

import json

import numpy as np
import pytest
from run_folder import response, result, write

from extratime.evaluate.report.limits import limits
from extratime.evaluate.report.page import report
from extratime.evaluate.report.read import read
from extratime.evaluate.statistics.at_k import pass_at_k

VALID, LUCKY, N = 0.2, 0.1, 16


def folder_of(place, questions=60, part=1.0, seed=0):
    """Votes of N draws, some valid and some lucky; `part` of the right ones are reviewed, one at least."""
    draw, records, responses, reviews = np.random.default_rng(seed), [], [], []
    for i in range(questions):
        kinds = draw.choice(3, size=N, p=(VALID, LUCKY, 1 - VALID - LUCKY))
        names = [f"{i}-{j}" for j in range(N)]
        responses += [
            response(name, float(kind < 2), "1" if kind < 2 else "2") for name, kind in zip(names, kinds, strict=True)
        ]
        answer = int(np.argmax(kinds < 2))
        pool = [(name, 1.0) for name in names]
        score = float(kinds[answer] < 2)
        records.append(result(f"t/{i}", f"self_consistency@{N}#0", score, pool, response=names[answer]))
        right = [j for j in range(N) if kinds[j] < 2]
        taken = draw.permutation(right)[: max(1, round(part * len(right)))] if right else []
        reviews += [{"response": names[j], "valid": bool(kinds[j] == 0)} for j in taken]
    write(place, records, responses)
    (place / "reviews.jsonl").write_text("".join(json.dumps(line) + "\n" for line in reviews))
    return place


def test_a_whole_review_tells_both_curves(tmp_path):
    run = read(folder_of(tmp_path))
    told = limits(run, 200)
    assert [x.k for x in told.true_at_k] == [1, 2, 4, 8, 16]
    for x in told.true_at_k:
        assert x.graded == pytest.approx(1 - 0.7**x.k, abs=0.08) and x.true == pytest.approx(1 - 0.8**x.k, abs=0.08)
        assert x.true <= x.graded
    gaps = {x.k: x.graded - x.true for x in told.true_at_k}
    assert max(gaps, key=gaps.get) in (2, 4, 8) and gaps[4] > gaps[1] and gaps[4] > gaps[16]
    (row,) = told.reviewed
    assert row.low <= LUCKY / (LUCKY + VALID) <= row.high and row.rate == row.false / row.reviewed
    assert row.true == pytest.approx(row.accuracy * (1 - row.rate)) and row.reviewed == round(row.accuracy * 60)


def test_a_part_of_the_draws_tells_nearly_the_same(tmp_path):
    whole = {x.k: x.true for x in limits(read(folder_of(tmp_path / "a")), 50).true_at_k}
    part = {x.k: x.true for x in limits(read(folder_of(tmp_path / "b", part=0.5)), 50).true_at_k}
    assert all(part[k] == pytest.approx(whole[k], abs=0.08) for k in whole)


def test_the_report_says_it_beside_the_rest(tmp_path):
    folder = folder_of(tmp_path, 20)
    text = (report(folder).parent / "leaderboard.md").read_text()
    board = json.loads((folder / "leaderboard.json").read_text())
    assert "as graded → with valid work" in text and "wrong work %" in text
    assert len(board["reviewed"]) == 1 and len(board["pools"]["true_at_k"]) == 5
    assert max(map(len, text.splitlines())) <= 120
    (folder / "reviews.jsonl").unlink()
    assert "valid work" not in (report(folder).parent / "leaderboard.md").read_text()


def test_a_question_without_a_review_leaves_the_curve_untold(tmp_path):
    folder = folder_of(tmp_path)
    lines = (folder / "reviews.jsonl").read_text().splitlines(keepends=True)
    first = json.loads(lines[0])["response"].partition("-")[0]
    (folder / "reviews.jsonl").write_text("".join(x for x in lines if not x.startswith(f'{{"response": "{first}-')))
    told = limits(read(folder), 50)
    assert told.true_at_k == () and told.reviewed


def test_wrong_answers_have_no_false_positives(tmp_path):
    """A review of a wrong answer is not counted, and a cell without right answers has no rate."""
    records = [result(f"t/{i}", "self_consistency@1#0", 0.0, [(f"{i}", 1.0)], response=f"{i}") for i in range(3)]
    write(tmp_path, records, [response(f"{i}", 0.0, "2") for i in range(3)])
    (tmp_path / "reviews.jsonl").write_text('{"response": "0", "valid": false}\n')
    told = limits(read(tmp_path), 50)
    assert told.reviewed == () and [(x.graded, x.true) for x in told.true_at_k] == [(0.0, 0.0)]
    assert pass_at_k(1, 0, 1) == 0.0


@pytest.mark.parametrize(
    "line", ['{"response": "0-0"}', '{"response": "gone", "valid": true}', "[", '{"response": "0-0", "valid": 1}']
)
def test_what_is_no_review_is_named(tmp_path, line):
    folder = folder_of(tmp_path, 2)
    (folder / "reviews.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"reviews\.jsonl:1: "):
        limits(read(folder), 50)
