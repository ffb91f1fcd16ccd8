"""Guides compared after their search was tuned, not before: arXiv 2411.09238, on chains of steps."""

import functools
import json

import numpy as np
import optuna
import pytest
from walks import STEPS, chain, fooled, judge, sees, walked

from extratime.evaluate.strategies.beam_search import beam_search
from extratime.evaluate.strategies.dvts import dvts
from extratime.evaluate.strategies.self_consistency import self_consistency
from extratime.evaluate.strategies.weighted_vote import weighted_vote
from extratime.evaluate.tuning.tune import Outcome, Settings, finish

QUESTIONS = 60
PARTS = ("tuning", "validation", "holdout")
GUIDES = {"sharp, but can be fooled": judge(fooled), "dim, but safe": sees(1, 1), "none": judge(lambda r: 0.5)}
SEARCHES = {"beam": beam_search, "subtrees": dvts, "vote": weighted_vote}
GRID = [(name, n, width) for name in ("beam", "subtrees") for n in (4, 16) for width in (2, 4)] + [("vote", 16, 1)]
"""Searches, and their widths; at most 16 full lengths."""
FIRST = ("beam", 16, 4)


@functools.cache
def graded(guide, name, n, width):
    """Of each question of all parts, whether it was answered right, and the tokens that took."""
    told = {"verify": GUIDES[guide]} | ({} if name == "vote" else {"width": width})
    results = walked(SEARCHES[name], n, chain(0.7, hack=0.005), 3 * QUESTIONS, **told)
    right = np.array([r.answer.response.text.endswith("=1") for r in results], dtype=float)
    return right, np.array([r.cost.generated for r in results])


def place(candidate):
    """Of a candidate on the grid."""
    return tuple(json.loads(candidate["strategies"][0]["search"]["at"]))


def tuned(guide, folder):
    """The search that tuning ends with: the grid is its space, and nothing may take more tokens than the first."""

    def evaluate(candidates, part):
        rows = slice(PARTS.index(part) * QUESTIONS, (PARTS.index(part) + 1) * QUESTIONS)
        return [Outcome(*(values[rows] for values in graded(guide, *place(one)))) for one in candidates]

    at = [json.dumps(FIRST), *(json.dumps(point) for point in GRID if point != FIRST)]
    raw = {"strategies": [{"search": {"at": {"choice": at}}}]}
    settings = Settings(trials=len(GRID), batch=3, tokens=16.0 * (STEPS + 1))
    found = finish(raw, settings, optuna.create_study(direction="maximize"), evaluate, folder)
    return place(found.best.candidate if found.taken else found.first.candidate)


@pytest.mark.slow
def test_which_guide_is_better_hangs_on_how_the_search_was_tuned(tmp_path):
    """By the first search the dim guide is far better; tuned, the one that can be fooled is as good as that.

    Without a guide no search is worth much: a little more than a majority vote, since right beams that share a
    beginning agree and wrong ones do not.
    """
    before, after = {}, {}
    for guide in GUIDES:
        worth = {point: graded(guide, *point)[0].mean() for point in GRID}
        before[guide], after[guide] = worth[FIRST], worth[tuned(guide, tmp_path / guide)]
        assert guide == "none" or after[guide] >= max(worth.values()) - 0.03
    sharp, dim, none = GUIDES
    assert before[dim] >= before[sharp] + 0.1 and abs(after[dim] - after[sharp]) <= 0.05
    majority = walked(self_consistency, 16, chain(0.7, hack=0.005), 3 * QUESTIONS)
    level = np.mean([r.answer.response.text.endswith("=1") for r in majority])
    assert 0.7**STEPS - 0.08 <= after[none] <= level + 0.2 and after[none] <= after[sharp] - 0.5
