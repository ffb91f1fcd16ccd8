import csv
import json
import math
import random
from itertools import product

import numpy as np
import pytest
from run_folder import draw, grid, response, result, write

from extratime.evaluate.report import evidence, tables
from extratime.evaluate.report.leaderboard import ALL, leaderboard
from extratime.evaluate.report.limits import limits
from extratime.evaluate.report.page import report
from extratime.evaluate.report.pools import pool_statistics
from extratime.evaluate.report.read import read
from extratime.evaluate.report.versus import versus

ONE = "self_consistency@1#0"


def row_of(rows, strategy, budget=1, task=None):
    (found,) = [r for r in rows if (r.strategy, r.budget) == (strategy, budget) and task in (None, r.task)]
    return found


def test_accuracy_averages_questions_and_keeps_failed_cells_in_the_denominator(tmp_path):
    scores = [[1.0, None, 0.0, 1.0, "-"], [1.0, 1.0, 0.0, None, "-"]]
    run = read(write(tmp_path, grid(self_consistency_1=[1.0, 0.0, 0.0, 1.0, 1.0], other_1=scores)))
    row = row_of(leaderboard(run, 100), "other")
    assert row.accuracy == pytest.approx(np.mean([1.0, 0.5, 0.0, 0.5]))
    assert (row.questions, row.replicates, row.failed, row.missing, row.paired) == (4, 2, 2, 2, 4)
    assert row.difference == pytest.approx(row.accuracy - 0.5)  # on the four problems that both have
    assert run.missing == (("t", "other@1#0", "t/4"), ("t", "other@1#1", "t/4"))


def test_intervals_are_those_of_every_resample_of_the_questions(tmp_path):
    ours, theirs = [1.0, 1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1.0]
    rows = leaderboard(read(write(tmp_path, grid(self_consistency_1=theirs, other_1=ours))), 20_000)
    row = row_of(rows, "other")
    for values, got in (
        (np.array(ours), (row.accuracy, row.accuracy_low, row.accuracy_high)),
        (np.array(ours) - theirs, (row.difference, row.difference_low, row.difference_high)),
    ):
        every = [values[list(draw)].mean() for draw in product(range(5), repeat=5)]
        assert got == pytest.approx((values.mean(), *np.quantile(every, (0.025, 0.975))))


def test_p_values_equal_enumeration(tmp_path):
    rng = random.Random(3)
    theirs = [float(rng.random() < 0.3) for _ in range(12)]
    better = [float(x or rng.random() < 0.6) for x in theirs]
    other = [float(rng.random() < 0.5) for _ in theirs]
    folder = write(tmp_path, grid(self_consistency_1=theirs, better_1=better, other_1=other, best_of_n_1=theirs))
    rows = leaderboard(read(folder), 40_000)
    exact = {}
    for name, ours in (("better", better), ("other", other)):
        d = np.array(ours) - theirs
        flips = [abs(np.dot(signs, d)) >= abs(d.sum()) - 1e-9 for signs in product((-1, 1), repeat=12)]
        exact[name] = np.mean(flips)
        row = row_of(rows, name)
        assert row.p == pytest.approx(exact[name], abs=4 * math.sqrt(exact[name] / 40_000) + 1e-4)
        wins = [x for x in d if x]
        tails = [abs(sum(signs)) >= abs(sum(wins)) for signs in product((-1, 1), repeat=len(wins))]
        assert row.p_mcnemar == pytest.approx(np.mean(tails))
    low, high = sorted(("better", "other"), key=exact.get)
    assert row_of(rows, low).p_holm == pytest.approx(min(1, 2 * row_of(rows, low).p))
    assert row_of(rows, high).p_holm == pytest.approx(max(row_of(rows, high).p, row_of(rows, low).p_holm))
    assert math.isnan(row_of(rows, "best_of_n").p_holm)  # one plain sample too, so nothing is tested


def test_ties_differ_by_nothing_and_one_of_them_is_on_the_frontier(tmp_path):
    rows = leaderboard(read(write(tmp_path, grid(self_consistency_1=[1.0, 0.0], a_1=[0.0, 1.0], b_1=[0.0, 1.0]))), 100)
    a, b = row_of(rows, "a"), row_of(rows, "b")
    assert (a.difference, a.p, a.p_holm, a.p_mcnemar) == (0.0, 1.0, 1.0, 1.0)
    assert (a.accuracy, a.accuracy_low, a.accuracy_high) == (b.accuracy, b.accuracy_low, b.accuracy_high)
    assert [r.frontier for r in rows] == [True, False, False]


def test_costs_by_hand(tmp_path):
    cost = {"generated": 30, "sequential": 7, "prefill": 5, "prefill_uncached": 20, "requests": 3}
    cost |= {"pairs": 11, "decode_pairs": 6, "pairs_uncached": 40}
    records = [result("t/0", ONE, 1.0, cost=cost), result("t/1", ONE, 0.0), result("t/2", ONE, None)]
    row = leaderboard(read(write(tmp_path, records)), 100)[0]
    assert (row.generated, row.sequential) == (pytest.approx(50 / 3), pytest.approx(27 / 3))
    assert row.tokens_per_right == 50  # all tokens, over the one right answer
    flops = [2 * 100 * 35 + 4 * 2 * 3 * 11, *[2 * 100 * 20 + 4 * 2 * 3 * 10] * 2]
    assert row.flops == pytest.approx(np.mean(flops))
    assert row.flops_uncached == pytest.approx(np.mean([2 * 100 * 50 + 24 * 40, *[2 * 100 * 20 + 24 * 10] * 2]))
    assert row.kv_bytes == pytest.approx(np.mean([2 * 2 * 1 * 3 * n for n in (6, 10, 10)]))
    assert row.seconds_modelled == pytest.approx(np.mean([5 / 50 + 30 / 5, *[10 / 50 + 10 / 5] * 2]))


def test_tokens_computed_are_those_of_all_shards_and_tokens_read_those_of_all_cells(tmp_path):
    one, other = spent(30, self_consistency_1=[1.0, 0.0]), spent(60, a_2=[1.0, 0.0])
    write(tmp_path, one, shard="0-of-2")
    write(tmp_path, other, shard="1-of-2")
    about = tables.about(read(tmp_path))
    assert (about["tokens_computed"], about["tokens_read"]) == (
        2 * 100,
        2 * 30 + 2 * 60,
    )  # judges' tokens are among them


def test_the_oracle_is_a_ceiling_and_on_no_frontier(tmp_path):
    write(tmp_path, grid(self_consistency_1=[1.0, 0.0], top_1=[1.0, 1.0]))
    (tmp_path / "recipe.yaml").write_text("strategies: [{best_of_n: {verify: oracle, label: top}}]")
    rows = leaderboard(read(tmp_path), 100)
    assert (row_of(rows, "top").oracle, row_of(rows, "top").frontier) == (True, None)
    assert row_of(rows, "self_consistency").frontier


def spent(tokens, **scores):
    """Results as `grid` makes them, each answer of `tokens` tokens, of which a third are a judge's."""
    cost = {"generated": tokens * 2 // 3, "judged": tokens // 3, "sequential": 1, "requests": 1}
    cost |= dict.fromkeys(("prefill", "prefill_uncached", "pairs", "decode_pairs", "pairs_uncached"), 0)
    return [record | {"cost": cost} for record in grid(**scores)]


def beside(folder, *records, resamples=20_000):
    rows = versus(read(write(folder, [record for some in records for record in some])), resamples)
    return {(row.strategy, row.budget): row for row in rows}


def test_at_equal_tokens_the_vote_of_two_budgets_is_mixed_so_that_it_spends_as_many(tmp_path):
    vote = [spent(30, self_consistency_1=[1.0, 0.0, 0.0, 0.0]), spent(90, self_consistency_2=[1.0, 1.0, 0.0, 0.0])]
    ours = [spent(75, a_1=[0.0, 1.0, 1.0, 1.0]), spent(30, b_4=[1.0, 0.0, 0.0, 0.0]), spent(90, c_4=[1.0] * 4)]
    rest = [spent(93, d_2=[1.0] * 4), spent(93, d_4=[1.0] * 4), spent(27, e_2=[0.0, 1.0, 0.0, 0.0])]
    rows = beside(tmp_path, *vote, *ours, *rest)
    assert rows.keys() == {("a", 1), ("b", 4), ("c", 4), ("d", 2), ("e", 2)}  # d at 4: neither budget nor tokens
    mixed = [1.0, 0.75, 0.0, 0.0]  # a quarter of the time the smaller budget: 0.25 × 30 + 0.75 × 90 = 75
    assert rows["a", 1].equal_tokens == pytest.approx(np.mean([0.0, 1.0, 1.0, 1.0]) - np.mean(mixed))
    assert rows["a", 1].equal_budget == pytest.approx(0.75 - 0.25)
    assert (rows["b", 4].equal_tokens, rows["c", 4].equal_tokens) == (0.0, 0.5)  # the ends belong to the range
    assert math.isnan(rows["d", 2].equal_tokens) and math.isnan(rows["e", 2].equal_tokens)  # nothing is extrapolated
    assert math.isnan(rows["b", 4].equal_budget)  # the vote has no budget of 4
    assert (rows["e", 2].equal_budget, rows["e", 2].tokens, rows["e", 2].paired) == (-0.25, 27, 4)


def test_the_vote_under_another_name_is_no_better_than_itself(tmp_path):
    scores = [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    vote = [spent(30 * k, **{f"self_consistency_{k}": row}) for k, row in enumerate(scores, 1)]
    rows = beside(tmp_path, *vote, *(spent(30 * k, **{f"twin_{k}": row}) for k, row in enumerate(scores, 1)))
    for row in rows.values():
        assert (row.equal_budget, row.equal_budget_low, row.equal_budget_p_holm) == (0.0, 0.0, 1.0)
        assert (row.equal_tokens, row.equal_tokens_high, row.equal_tokens_p_holm) == (0.0, 0.0, 1.0)


def test_each_comparison_with_the_vote_is_corrected_over_its_rows(tmp_path):
    rng = random.Random(5)
    vote = [float(rng.random() < 0.3) for _ in range(12)]
    better, much = ([float(x or rng.random() < share) for x in vote] for share in (0.4, 0.9))
    records = [spent(30, self_consistency_2=vote), spent(30, better_2=better), spent(60, much_2=much)]
    rows = beside(tmp_path, *records, spent(30, best_of_n_1=vote), spent(30, best_of_n_2=vote))
    assert ("best_of_n", 1) not in rows  # one plain sample
    raw = {}
    for name, ours in (("better", better), ("much", much)):
        d = np.array(ours) - vote
        raw[name] = np.mean([abs(np.dot(signs, d)) >= abs(d.sum()) - 1e-9 for signs in product((-1, 1), repeat=12)])
    holm = {"much": 3 * raw["much"], "better": max(3 * raw["much"], 2 * raw["better"])}
    for name, p in holm.items():
        assert rows[name, 2].equal_budget_p_holm == pytest.approx(min(1, p), abs=0.02), name
    assert rows["better", 2].equal_tokens_p_holm == pytest.approx(min(1, 2 * raw["better"]), abs=0.02)
    assert math.isnan(rows["much", 2].equal_tokens_p_holm)


def test_questions_that_a_budget_of_the_vote_lacks_are_left_out(tmp_path):
    vote = [spent(30, self_consistency_1=[1.0, 0.0, "-"]), spent(60, self_consistency_2=[1.0, "-", 1.0])]
    row = beside(tmp_path, *vote, spent(60, a_2=[0.0, 1.0, 1.0]))["a", 2]
    assert (row.paired, row.equal_budget, row.equal_tokens) == (1, -1.0, -1.0)


def test_without_a_vote_there_is_nothing_to_compare_with(tmp_path):
    assert versus(read(write(tmp_path, grid(best_of_n_2=[1.0, 0.0]))), 100) == []


def said(folder):
    report(folder)
    return json.loads((folder / "leaderboard.json").read_text())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "drawn"
    draw(folder, problems=6, budgets=(1, 4))
    return folder, said(folder)


def test_a_real_run_is_whole_and_the_oracle_reaches_what_its_pool_holds(drawn):
    _, board = drawn
    assert (board["warnings"], board["failed"], board["missing"]) == ([], [], [])
    reached = {x["task"]: x["value"] for x in board["pools"]["at_k"] if x["kind"] == "pass" and x["k"] == 4}
    oracle = {r["task"]: r["accuracy"] for r in board["rows"] if r["oracle"] and r["budget"] == 4}
    assert oracle == pytest.approx(reached)
    assert set(oracle) == {ALL, "sums_easy", "sums_hard"}
    ones = [r for r in board["rows"] if r["task"] == ALL and r["budget"] == 1 and r["strategy"] != "greedy"]
    assert {r["difference"] for r in ones} == {0.0, None}


def test_shards_merge_to_the_same_numbers(drawn, tmp_path):
    folder, board = drawn
    for kind in ("results", "responses"):
        lines = (folder / kind / "0-of-1.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / kind).mkdir()
        for i in (1, 0):
            (tmp_path / kind / f"{i}-of-2.jsonl").write_text("".join(reversed(lines[i::2])))
    for i in (0, 1):
        (tmp_path / f"run-{i}-of-2.json").write_text((folder / "run-0-of-1.json").read_text())
    (tmp_path / "recipe.yaml").write_text((folder / "recipe.yaml").read_text())
    merged = said(tmp_path)
    assert merged["warnings"] == []
    assert (merged["rows"], merged["pools"]) == (board["rows"], board["pools"])


def test_every_table_says_the_same_and_nothing_partial_is_left(drawn):
    folder, board = drawn
    with (folder / "leaderboard.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [{k: "" if v is None else str(v) for k, v in r.items()} for r in board["rows"]] == table
    assert {f"accuracy_{x}.png" for x in ("tokens", "flops", "seconds")} == {
        p.name for p in (folder / "figures").iterdir()
    }
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in (folder / "figures").iterdir())
    assert not list(folder.rglob(".*"))
    assert "NaN" not in (folder / "leaderboard.json").read_text()


def test_whoever_reads_a_report_reads_it_whole_while_the_next_is_written(tmp_path):
    write(tmp_path, grid(self_consistency_1=[1.0, 0.0]))
    page = report(tmp_path)
    files = [tmp_path / "leaderboard.json", tmp_path / "figures" / "accuracy_tokens.png", page]
    before = [file.read_bytes() for file in files]
    handles = [file.open("rb") for file in files]
    write(tmp_path, grid(self_consistency_1=[1.0, 1.0]))
    report(tmp_path)
    assert [handle.read() for handle in handles] == before
    after = [file.read_bytes() for file in files]
    assert all(x != y for x, y in zip(after, before, strict=True))
    (tmp_path / "results" / "0-of-1.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="not a record of results"):
        report(tmp_path)
    assert [file.read_bytes() for file in files] == after


def test_the_markdown_fits_a_terminal_and_can_not_steer_it(tmp_path):
    label = "particle_filter_with_a_very_long_name|(reward_model_of_somebody)"
    records = [
        result(f"{task}/{i}", f"{name}@{budget}#0", None if (i, budget) == (0, 1024) else float(name == label))
        for task in ("a", "b_task_with_quite_some_name")
        for i in range(8)
        for name, budget in (("self_consistency", 1), (label, 1024))
    ]
    records[1]["error"] = "\x1b[2J</script>" + "x" * 500
    run = read(write(tmp_path, records))
    found = tables.Findings(leaderboard(run, 200), *pool_statistics(run, 200), versus(run, 200), limits(run, 200))
    text = tables.as_markdown(run, found)
    assert max(map(len, text.splitlines())) <= 120
    assert all(c.isprintable() or c == "\n" for c in text)
    cells = [line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(cells) == {8, 9}  # beside the vote, and the leaderboard
    assert "100.0 [100.0, 100.0]" not in text.split("## a ")[0]  # a failed cell is in the denominator
    assert "1 failed, counted as not right" in text


def test_a_row_that_only_failed_is_named_as_failed(tmp_path):
    folder = write(tmp_path, grid(self_consistency_1=[1.0, 1.0], bad_1=[None, None]))
    board = said(folder)
    (bad,) = [r for r in board["rows"] if r["strategy"] == "bad"]
    assert (bad["accuracy"], bad["failed"], bad["questions"], bad["tokens_per_right"]) == (0.0, 2, 2, None)
    assert [x["cell"] for x in board["failed"]] == ["bad@1#0"] * 2
    assert any("2 cells failed" in w and "no route to host" in w and "bad@1#0 on t/0" in w for w in board["warnings"])
    assert "bad *" in (folder / "leaderboard.md").read_text()


def test_gaps_are_named(tmp_path):
    records = grid(self_consistency_1=[1.0, 0.0, 1.0], other_1=["-", 1.0, 1.0])
    write(tmp_path, records, shard="1-of-3", run=False)
    (tmp_path / "streams").mkdir()
    (tmp_path / "streams" / "2-of-3.jsonl").write_text("")
    file = tmp_path / "results" / "1-of-3.jsonl"
    pool = result("t/0", "third@1#0", 1.0, [("gone", 0.5)])
    file.write_text(file.read_text() + json.dumps(pool) + "\n" + '{"task": "t", "doc_')
    said = " | ".join(read(tmp_path).warnings)
    assert "results/1-of-3.jsonl, line 7: torn, dropped" in said
    assert "no results of 2 shards 0/3, 2/3 (begun)" in said
    assert "3 cells without a record, in no denominator: other@1#0 on t/0, third@1#0 on t/1" in said
    assert "run-*.json is missing" in said
    assert "1 response named in results but not in responses/, first gone" in said


def test_documents_that_no_cell_has_and_records_that_contradict_each_other_are_named(tmp_path):
    write(tmp_path, [result("t/0", ONE, 1.0), result("t/3", ONE, 1.0)], shard="first")
    write(tmp_path, [result("t/0", ONE, 0.0), result("t/3", ONE, 1.0)], shard="second")
    run = read(tmp_path)
    said = " | ".join(run.warnings)
    assert "t: no cell has 2 documents: 1, 2" in said
    assert "1 records are there twice and differ, first self_consistency@1#0 on t/0: the first file counts" in said
    assert [r.score for r in run.results] == [1.0, 1.0]


def test_failed_draws_and_scores_that_are_no_number_are_named(tmp_path):
    pool = [("x", 0.5), ("t/0-1.0", 0.5)]
    records = [result("t/0", ONE, 1.0, pool), result("t/1", ONE, math.nan)]
    run = read(write(tmp_path, records, [response("x", 1.0, "1", finish="failed")]))
    said = " | ".join(run.warnings)
    assert "1 draw failed in cells that answered" in said
    assert "1 cell failed" in said and "its score is nan, not a number" in said
    assert [r.value for r in run.results] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda d: d / "nowhere", FileNotFoundError, "nowhere is no run folder"),
        (lambda d: d, FileNotFoundError, "is no run folder: it has no results"),
        (lambda d: write(d, []), ValueError, "holds no complete record"),
        (lambda d: write(d, [result("t/0", ONE, 1.0, cost={})]), ValueError, r"0-of-1.jsonl:1: .*'generated'"),
        (lambda d: write(d, [result("t/0", ONE, 1.0) | {"pool": None}]), ValueError, r"0-of-1.jsonl:1"),
        (
            lambda d: (write(d, grid(a_1=[1.0])) / "run-x.json").write_text("{") and d,
            ValueError,
            "run-x.json: not JSON",
        ),
        (lambda d: (write(d, grid(a_1=[1.0])) / "recipe.yaml").write_text("[") and d, ValueError, "not a recipe"),
    ],
)
def test_what_is_no_run_is_refused_by_name(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        report(make(tmp_path))


def test_excerpts_leave_the_template_out(tmp_path):
    frame = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    asked = [frame.format(f"What is\n{a} + 38? [easy]") for a in (31, 37)]
    records = [result(f"t/{i}", ONE, 1.0, question=q) for i, q in enumerate(asked)]
    lines = evidence.overview(read(write(tmp_path, records)))
    assert [line["text"] for line in lines] == ["31 + 38?", "37 + 38?"]
    assert [line["outcomes"] for line in lines] == ["r", "r"]
