"""The compute-optimal choice from results: bins, cross-validation, and what a run folder tells."""

import functools
import json
import math
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
import run_folder
import yaml
from scipy.stats import binom, norm
from toy import ToyEngine, ended, problem, run, told

from extratime.evaluate.algorithms.allocation import ABSOLUTE, allocate, bin_of, choose, halves, quantile_edges
from extratime.evaluate.cli import main
from extratime.evaluate.grid import bind, parse
from extratime.evaluate.report.compute_optimal import compute_optimal
from extratime.evaluate.report.compute_optimal import entry as entry_in_recipe
from extratime.evaluate.report.read import read
from extratime.evaluate.schedule import Cell
from extratime.evaluate.strategies.beam_search import beam_search
from extratime.evaluate.strategies.best_of_n import best_of_n
from extratime.evaluate.strategies.dvts import dvts
from extratime.evaluate.strategies.self_consistency import self_consistency

RECIPE = {"model": "m", "tasks": ["t"], "output": "o"}


def rng():
    return np.random.default_rng(0)


# --- the choice from results: pure


@pytest.mark.parametrize(("value", "place"), [(0.9, 0), (0.5, 0), (0.3, 1), (0.1, 1), (0.05, 2), (math.nan, 2)])
def test_absolute_bins_are_easy_medium_and_hard(value, place):
    assert bin_of(value, ABSOLUTE) == place


def test_quantiles_are_of_like_size_and_equal_values_stay_together():
    edges = quantile_edges(np.arange(100) / 100, 5)
    assert np.bincount([bin_of(x, edges) for x in np.arange(100) / 100]).tolist() == [20] * 5
    strong = [1.0] * 76 + [0.5] * 12 + [-math.inf] * 12
    assert np.bincount([bin_of(x, quantile_edges(strong, 5)) for x in strong]).tolist() == [76, 12, 12]
    assert quantile_edges([0.3] * 7, 5) == []


def test_edges_are_values_and_never_between_a_score_and_none():
    assert quantile_edges([0.3, -math.inf, 0.2, 0.1], 4) == [0.3, 0.2, 0.1]


@pytest.mark.parametrize(("values", "bins"), [([], 5), ([0.1], 0)])
def test_quantiles_of_nothing_are_an_error(values, bins):
    with pytest.raises(ValueError, match="quantiles need values"):
        quantile_edges(values, bins)


def test_every_bin_is_halved():
    bins = np.repeat([0, 1, 2], [10, 7, 1])
    half = halves(bins, rng())
    assert [np.bincount(half[bins == b], minlength=2).min() for b in range(3)] == [5, 3, 0]


def test_halves_are_drawn_at_random_and_the_odd_question_falls_on_either_side():
    drawn = np.array([halves(np.repeat([0, 1], [5, 6]), np.random.default_rng(seed)) for seed in range(60)])
    assert {int(half[:5].sum()) for half in drawn} == {2, 3}
    assert all(0.2 < share < 0.8 for share in drawn.mean(axis=0))
    assert len({tuple(half[5:]) for half in drawn}) > 10


def alike(bins, *rows):
    """Arms by questions from an arm's value in each bin."""
    return np.array(rows, dtype=float)[:, bins]


def test_each_bin_gets_its_best_arm_ties_the_cheaper_and_a_small_bin_that_of_all():
    bins, all_ = np.repeat([0, 1, 2], [20, 10, 9]), np.ones(39, dtype=bool)
    quality = alike(bins, [0.9, 0.2, 0.0], [0.5, 0.8, 0.9], [0.9, 0.2, 0.0])
    price = alike(bins, [3, 3, 3], [3, 3, 3], [2, 2, 2])
    assert choose(quality, price, np.full(39, 4.0), bins, 4, all_) == [2, 1, 1, 1]
    assert choose(quality[:2], price[:2], np.full(39, 4.0), bins, 1 + 2, all_) == [0, 1, 1]


def test_an_arm_must_be_within_its_means_in_the_bin():
    bins = np.repeat([0, 1], 10)
    quality, price = alike(bins, [0.1, 0.1], [0.9, 0.9]), alike(bins, [4, 4], [3, 5])
    assert choose(quality, price, np.full(20, 4.0), bins, 2, bins >= 0) == [1, 0]
    with pytest.raises(ValueError, match="costs at most 2; the cheapest costs 3"):
        choose(quality, price, np.full(20, 2.0), bins, 2, bins >= 0)


def test_the_means_are_those_of_the_bin_and_of_the_questions_that_tell():
    """The dear arm is within its means in the second bin alone, and there on the first half of the questions alone."""
    bins, half = np.repeat([0, 1], 10), np.tile([0, 1], 10)
    quality, price = alike(bins, [0.1, 0.1], [0.9, 0.9]), alike(bins, [1, 1], [4, 4])
    cap = np.where(bins == 0, 3.0, np.where(half == 0, 5.0, 3.5))
    assert choose(quality, price, cap, bins, 2, half >= 0) == [0, 1]
    assert [choose(quality, price, cap, bins, 2, half == h) for h in (0, 1)] == [[0, 1], [0, 0]]


def test_a_price_that_is_the_cap_but_for_rounding_is_within_it():
    price, bins = np.array([[0.1] * 10, [0.1 + 0.2] * 10]), np.zeros(10, dtype=int)
    assert choose(np.array([[0.0] * 10, [1.0] * 10]), price, np.full(10, 0.3), bins, 1, bins == 0) == [1]


def test_a_bin_of_ten_chooses_for_itself_on_either_half():
    bins, half = np.repeat([0, 1], [10, 30]), np.arange(40) % 2
    quality, same = alike(bins, [0.9, 0.1], [0.2, 0.8]), np.ones((2, 40))
    assert allocate(quality, same, same[0], bins, 2, half).halves == ([0, 1], [0, 1])


def test_a_half_is_answered_by_the_other_half_s_choice():
    """Each arm is right on one half alone: in-sample the choice is always right, cross-validated never."""
    bins, half = np.zeros(20, dtype=int), np.arange(20) % 2
    quality = np.array([half == 0, half == 1], dtype=float)
    told = allocate(quality, np.ones((2, 20)), np.ones(20), bins, 1, half)
    assert told.halves == ([0], [1])
    assert quality[told.arms, np.arange(20)].sum() == 0


def test_one_question_has_no_halves():
    with pytest.raises(ValueError, match="1 questions cannot be split"):
        allocate(np.ones((1, 1)), np.ones((1, 1)), np.ones(1), np.zeros(1, dtype=int), 1, np.zeros(1, dtype=int))


def simulated(chances, seed, questions=100):
    """Accuracy of the choice in-sample, cross-validated, of the best single arm, and what the choice is truly worth.

    Args:
        chances: shape (S, bins), how often an arm is right.
        seed: of this replicate.
        questions: a bin.
    """
    generator, (arms, count) = np.random.default_rng(seed), chances.shape
    bins = np.repeat(np.arange(count), questions)
    quality = (generator.random((arms, bins.size)) < chances[:, bins]).astype(float)
    same, half = np.ones_like(quality), halves(bins, generator)
    told = allocate(quality, same, same[0], bins, count, half)
    single = allocate(quality, same, same[0], np.zeros_like(bins), 1, half)
    each = np.arange(bins.size)
    within = quality[np.array(told.choices)[bins], each].mean()
    worth = chances[told.choices, np.arange(count)].mean()
    return within, quality[told.arms, each].mean(), quality[single.arms, each].mean(), worth


def test_cross_validation_does_not_flatter_where_in_sample_choice_does():
    """Six equal strategies, five bins of 100 questions: in-sample the expected maximum of six, 0.562, for 0.500."""
    within, crossed, _, worth = np.mean([simulated(np.full((6, 5), 0.5), seed) for seed in range(400)], axis=0)
    assert worth == 0.5 and abs(crossed - worth) <= 0.01
    highest = sum(1 - binom.cdf(np.arange(100), 100, 0.5) ** 6) / 100
    assert within - crossed >= 0.03 and within == pytest.approx(highest, abs=0.003)


def test_where_bins_differ_the_choice_beats_the_best_single_arm():
    """Each bin has an arm that is 12 points better there, all others lose 5: worth at least 3 points."""
    chances = np.full((6, 5), 0.45) + 0.17 * np.eye(6)[:, :5]
    _, crossed, single, _ = np.mean([simulated(chances, seed) for seed in range(200)], axis=0)
    assert crossed - single >= 0.03


# --- the choice depends on the reward model (arXiv 2502.06703)

LENGTH = 6


def chain(p):
    """Six steps, each right with probability p; now and then one after which all is nonsense that looks good."""

    def law(text):
        if "=" in text:
            return {"": 1.0}
        if text.count("\n") == LENGTH:
            return {"=1": 1.0} if set(text) == {"r", "\n"} else {f"=w{i}": 0.1 for i in range(10)}
        return {"h\n": 1.0} if "h" in text else {"r\n": p * 0.995, "w\n": (1 - p) * 0.995, "h\n": 0.005}

    return law


def judge(nonsense):
    """A process reward: 0.8 if all is right, 0.3 if not, `nonsense` for nonsense; with noise of 0.05."""

    def verify(problem, responses):
        yield from ()
        values = [nonsense if "h" in r.text else 0.3 if "w" in r.text else 0.8 for r in responses]
        chances = [(crc32(repr((problem.id, r.text, r.path)).encode()) + 0.5) / 2**32 for r in responses]
        return [value + 0.05 * norm.ppf(u) for value, u in zip(values, chances, strict=True)]

    return verify


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_choice_follows_the_reward_model():
    """Beam search at 64 is best or as good with a reward model that can't be hacked, and ruins one that can."""
    laws = {"medium": told(chain(0.7)), "hard": told(chain(0.45))}
    cells = [(kind, i) for kind in laws for i in range(10)]
    bins, engine_law = np.repeat([0, 1], 10), lambda prompt, text: laws[prompt.partition("/")[0]](prompt, text)
    accuracy = {}
    for nonsense in (0.97, 0.3):
        judged = {"verify": judge(nonsense)}
        arms = [(self_consistency, {}, 16), (best_of_n, judged, 16)]
        arms += [(beam_search, judged, 4), (beam_search, judged, 64), (dvts, judged, 64)]
        quality = []
        for strategy, options, n in arms:
            work = [
                Cell(f"{kind}{i}", problem(f"{kind}/{i}", max_tokens=8), functools.partial(strategy, **options), n)
                for kind, i in cells
            ]
            results = run(ToyEngine(engine_law, slots=256), work)
            quality.append([float(ended(r.answer.response.text) == "1") for r in results])
        quality = np.array(quality)
        price = np.repeat([[float(n)] for _, _, n in arms], bins.size, axis=1)
        picked = allocate(quality, price, np.full(bins.size, 64.0), bins, 2, halves(bins, rng()))
        crossed = quality[picked.arms, np.arange(bins.size)].mean()
        accuracy[nonsense] = quality.mean(axis=1)
        assert crossed >= accuracy[nonsense].max() - 0.01
        assert {arms[arm][0] for arm in picked.choices} <= {beam_search, dvts}
        if nonsense == 0.97:  # beam search at 64 is arm 3
            assert all(3 not in arms for arms in (picked.choices, *picked.halves))
    assert accuracy[0.3][3] >= 0.9 and accuracy[0.97][4] - accuracy[0.97][3] >= 0.3


# --- the choice from a run folder


def finished(folder, look=2):
    """Thirty easy problems that a vote of one solves, thirty hard ones that only the search does, told apart by g.

    Costs are in tokens of 10 a draw; the search at 4 takes 60.
    """
    records, responses = [], []
    for i in range(60):
        easy, name = i < 30, f"t/{i}"
        pool = [(f"{name}.{k}", (0.9 if easy else 0.2) + k / 100) for k in range(4)]
        responses += [run_folder.response(id, float(easy), n_tokens=10) for id, _ in pool]
        for n in (1, 2, 4):
            cost = run_folder.COST | {"generated": 10 * n, "sequential": 10, "requests": 1}
            records.append(run_folder.result(name, f"bon@{n}#0", float(easy), pool[:n], cost=cost))
        found = {"generated": 20, "sequential": 10, "requests": 1}
        records.append(run_folder.result(name, "beam@2#0", float(not easy), cost=run_folder.COST | found))
        truth = run_folder.result(name, "ceiling@4#0", 1.0, pool)
        records.append(truth)
    run_folder.write(folder, records, responses)
    entries = [
        {"best_of_n": {"label": "bon", "verify": "self_eval"}},
        {"beam_search": {"label": "beam", "width": 2, "budgets": [2]}},
        {"best_of_n": {"label": "ceiling", "verify": "oracle"}},
    ]
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"strategies": entries}))
    return read(folder)


def test_a_run_tells_the_curve_and_the_pilot_is_charged(tmp_path):
    curve = compute_optimal(finished(tmp_path), bins=2, look=2, resamples=100)
    assert (curve.by, curve.sizes, curve.edges) == ("bon", (30, 30), (pytest.approx(0.905),))
    two, four = curve.points  # a budget of 1 does not pay for the pilot
    assert (two.budget, two.choices) == (2, (("bon", 1), ("bon", 1)))  # the search would come on top of the pilot
    assert (two.accuracy, two.tokens) == (0.5, 20)  # one draw answers, two tell how hard it is
    assert (four.budget, four.choices) == (4, (("bon", 1), ("beam", 2)))
    assert (four.accuracy, four.fixed, four.difference) == (1.0, 0.5, 0.5)
    assert four.tokens == (20 + 40) / 2


def test_an_oracle_of_difficulty_is_not_charged(tmp_path):
    curve = compute_optimal(finished(tmp_path), "oracle", edges=(0.1, 0.5), look=2, resamples=100)
    assert curve.look == 0 and curve.edges == (0.5, 0.1) and curve.sizes == (30, 0, 30)
    at = {point.budget: point for point in curve.points}
    assert at[1].accuracy == 0.5 and at[2].accuracy == 1.0 and at[2].tokens == 15


def test_matched_tokens_allow_what_plain_draws_took_on_the_same_questions(tmp_path):
    run = finished(tmp_path)
    curve = compute_optimal(run, "oracle", "tokens", bins=2, resamples=100)
    assert [point.accuracy for point in curve.points] == [0.5, 1.0, 1.0]
    dear = [replace(r, cost=r.cost._replace(judged=1)) if r.strategy == "beam" else r for r in run.results]
    curve = compute_optimal(replace(run, results=tuple(dear)), "oracle", "tokens", bins=2, resamples=100)
    assert [point.accuracy for point in curve.points] == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"by": "nobody"}, "labels with a verifier and plain draws: bon"), ({"look": 5}, "pays for a pilot of 5")],
)
def test_what_a_run_cannot_tell_is_said(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        compute_optimal(finished(tmp_path), **options)


def test_the_command_writes_a_strategy_that_a_recipe_takes(tmp_path, capsys):
    finished(tmp_path)
    assert main(["allocate", str(tmp_path), "--bins", "2", "--look", "2"]) == 0
    said = capsys.readouterr().out
    assert "Difficulty by 2 draws of bon" in said and "beam@2" in said
    point = json.loads((tmp_path / "allocation.json").read_text())["points"][1]
    assert (tmp_path / "figures" / "compute_optimal.png").read_bytes().startswith(b"\x89PNG")
    (spec,) = parse(RECIPE | {"strategies": [point["strategy"]]}).strategies
    assert spec.budgets == (4,)
    program = bind(spec, {"self_eval": [{"adapter": None}]})
    assert program.keywords["most"] == (1, 2) and program.keywords["look"] == 2
    assert [inner.func for inner in program.keywords["strategies"]] == [best_of_n, beam_search]
    assert program.keywords["strategies"][1].keywords["width"] == 2
    assert program.keywords["verify"].func.__name__ == "self_eval"


def test_the_recipe_s_strategy_reaches_what_the_curve_foretells(tmp_path):
    """A run, its choice, and the choice run on other draws: as accurate and as dear as foretold, within noise."""
    strategies = ["self_consistency", {"best_of_n": {"verify": "self_eval"}}, "greedy"]
    folder = run_folder.draw(tmp_path / "one", problems=40, tasks=("sums_easy",), budgets=(4,), strategies=strategies)
    curve = compute_optimal(read(folder), look=2, bins=2, resamples=100)
    chosen = entry_in_recipe(read(folder), curve, curve.points[-1])
    again = run_folder.draw(tmp_path / "two", problems=40, tasks=("sums_easy",), strategies=[chosen])
    results = read(again).results
    tokens = np.mean([r.cost.generated for r in results])
    assert len(results) == 40 and tokens == pytest.approx(curve.points[0].tokens, rel=0.15)
