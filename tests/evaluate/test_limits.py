"""What the report tells of limits: when samples stop paying, what draws cost, and what it takes to match a vote."""

import json
import math

import numpy as np
import pytest
from run_folder import draw, response, result, write

from extratime.evaluate.report.limits import Draws, limits
from extratime.evaluate.report.page import report
from extratime.evaluate.report.pools import pool_statistics
from extratime.evaluate.report.read import read
from extratime.evaluate.statistics.saturation import Spread


def pooled(folder, counts, n, tokens=lambda draw, right: 4, answer=lambda right: "1" if right else "2"):
    """A run of one vote a question, with so many right draws of `n`; the first draw answers."""
    draws, records, responses = np.random.default_rng(0), [], []
    for i, count in enumerate(counts):
        names = [f"{i}-{j}" for j in range(n)]
        for j, name in enumerate(names):
            right = j < count
            responses.append(response(name, right, answer(right), n_tokens=tokens(draws, right)))
        pool = [(name, 1.0) for name in names]
        records.append(result(f"t/{i}", f"self_consistency@{n}#0", float(count > 0), pool, response=names[0]))
    return read(write(folder, records, responses))


def report_of(folder):
    return (report(folder).parent / "leaderboard.md").read_text()


def test_when_samples_stop_paying_is_told_with_its_interval(tmp_path):
    """Solvable with probability .6, by one draw with .2: the twelfth draw is the last that adds a point."""
    noise = np.random.default_rng(3)
    counts = np.where(noise.random(200) < 0.6, noise.binomial(16, 0.2, 200), 0)
    run = pooled(tmp_path, counts.tolist(), 16)
    bends = {x.kind: x for x in pool_statistics(run, 100)[2]}
    assert set(bends) == {"pass", "maj"} and bends["pass"].low <= 12 <= bends["pass"].high
    assert bends["pass"].p == pytest.approx(0.2, abs=0.03) and bends["pass"].ceiling == pytest.approx(0.6, abs=0.09)
    assert abs(bends["pass"].enough - 12) <= 2 and bends["pass"].misfit < 0.01
    assert not any(line.startswith("| pass@k") and "~" in line for line in report_of(tmp_path).splitlines())
    assert math.isnan(bends["maj"].enough), "a vote of what is mostly wrong gets worse: it has no curve"


def test_where_questions_differ_the_fit_ends_too_early(tmp_path):
    law, noise = Spread(0.4, 0.8), np.random.default_rng(5)
    run = pooled(tmp_path, noise.binomial(8, noise.beta(0.4, 0.8, 150)).tolist(), 8)
    bend = next(x for x in pool_statistics(run, 100)[2] if x.kind == "pass")
    truly = next(n for n in range(100) if law.at(n + 1) - law.at(n) <= 0.01)
    assert bend.high < truly and bend.ceiling < law.at(64) - 0.05 and bend.misfit > 0.01
    assert any(line.startswith("| pass@k") and "~" in line for line in report_of(tmp_path).splitlines())


def test_two_points_or_one_question_have_no_bend(tmp_path):
    assert pool_statistics(pooled(tmp_path / "a", [1, 0, 1], 2), 50)[2] == []
    assert pool_statistics(pooled(tmp_path / "b", [3], 8), 50)[2] == []


def test_how_much_tokens_of_one_prompt_vary_is_recovered(tmp_path):
    """Log-normal with σ = ½: √(e^¼ − 1) = .533; that questions differ in length adds nothing."""
    long = iter(np.repeat(np.random.default_rng(1).integers(1, 9, 120) * 1000, 32))

    def tokens(draw, right):
        return round(float(next(long)) * draw.lognormal(0.0, 0.5))

    (draws,) = limits(pooled(tmp_path, [16] * 120, 32, tokens), 10).draws
    assert draws.variation == pytest.approx(0.533, abs=0.03) and draws.questions == 120
    assert draws.right / draws.wrong == pytest.approx(1, abs=0.1)


def test_tokens_of_right_and_wrong_draws_by_hand(tmp_path):
    """Lengths 2 where right and 4, 6 where not; one draw a prompt tells nothing of variation."""
    lengths = iter((2, 4, 6, 2, 2, 4))
    (draws,) = limits(pooled(tmp_path / "a", [1, 2], 3, lambda draw, right: next(lengths)), 10).draws
    each = [np.std([2, 4, 6], ddof=1) / 4, np.std([2, 2, 4], ddof=1) / (8 / 3)]
    assert draws == Draws("t", 2, 20 / 6, 2.0, 14 / 3, pytest.approx(np.mean(each)))
    (same,) = limits(pooled(tmp_path / "b", [2, 2], 2), 10).draws
    assert (same.variation, same.right) == (0.0, 4.0) and math.isnan(same.wrong)
    assert limits(pooled(tmp_path / "c", [1, 1], 1), 10).draws == ()


def spent(label, budget, tokens, scores):
    cost = {"generated": tokens, "sequential": 1, "requests": 1}
    cost |= dict.fromkeys(("prefill", "prefill_uncached", "pairs", "decode_pairs", "pairs_uncached"), 0)
    return [result(f"t/{i}", f"{label}@{budget}#0", score, cost=cost) for i, score in enumerate(scores)]


def accuracy(n, of=20):
    return [1.0] * n + [0.0] * (of - n)


VOTE = [(1, 10, 8), (2, 20, 10), (4, 40, 12), (8, 80, 12)]


def matched(folder, label, *cells, recipe=""):
    records = [r for b, tokens, n in VOTE for r in spent("self_consistency", b, tokens, accuracy(n))]
    records += [r for b, tokens, n in cells for r in spent(label, b, tokens, accuracy(n))]
    write(folder, records)
    if recipe:
        (folder / "recipe.yaml").write_text(recipe)
    return limits(read(folder), 100).matches


def test_what_it_takes_to_match_the_vote_by_hand(tmp_path):
    """The vote is at .60 for 40 tokens; the other has .55 at 80 and .65 at 320: it matches at 160."""
    (met,) = matched(tmp_path, "x", (4, 80, 11), (16, 320, 13))
    assert (met.plateau, met.gain) == (pytest.approx(0.6), pytest.approx(0.05))
    assert met.saturates == pytest.approx(20 * 2 ** (0.095 / 0.1)) and met.matches == pytest.approx(160)
    assert met.multiplier == pytest.approx(160 / met.saturates) and met.low <= met.multiplier


def test_what_never_matches_has_no_number_and_is_told(tmp_path):
    (met,) = matched(tmp_path, "x", (4, 80, 9), (16, 320, 11))
    assert math.isnan(met.matches) and math.isnan(met.multiplier) and met.gain == pytest.approx(-0.05)
    text = (report(tmp_path).parent / "leaderboard.md").read_text()
    (line,) = [
        line for line in text.splitlines() if line.startswith("| x ") and line.count("|") == 7 and "60.0" in line
    ]
    assert line.count("–") == 2 and "-5.0" in line
    told = json.loads((tmp_path / "leaderboard.json").read_text())["versus_plateau"]
    assert told[0]["matches"] is None and told[0]["plateau"] == pytest.approx(0.6)


def test_oracles_single_draws_and_the_vote_itself_are_not_held_against_it(tmp_path):
    oracle = "strategies: [self_consistency, {best_of_n: {verify: oracle, label: x}}]"
    assert matched(tmp_path / "a", "x", (4, 40, 15), recipe=oracle) == ()
    assert matched(tmp_path / "b", "best_of_n", (1, 10, 8)) == ()
    write(tmp_path / "c", spent("self_consistency", 1, 10, accuracy(8)) + spent("x", 1, 10, accuracy(9)))
    assert limits(read(tmp_path / "c"), 10).matches == (), "a vote of one budget has no plateau"


def test_a_real_run_tells_its_limits(tmp_path):
    draw(tmp_path, problems=6, tasks=("sums_easy",), budgets=(1, 2, 4))
    text = (report(tmp_path).parent / "leaderboard.md").read_text()
    told = json.loads((tmp_path / "leaderboard.json").read_text())
    assert {x["strategy"] for x in told["versus_plateau"]} >= {"weighted_vote", "first_finish"}
    assert "self_consistency" not in {x["strategy"] for x in told["versus_plateau"]}
    assert {x["kind"] for x in told["pools"]["enough"]} == {"pass", "maj", "best"}
    assert len(told["pools"]["draws"]) == 1 and "Tokens of a draw:" in text and "worst@k" in text
    assert max(map(len, text.splitlines())) <= 120
