"""Cutting traces into episodes."""

import pytest

from extratime.evaluate.algorithms.episodes import CUES, bridge, episodes, prefixes, split

STEPS = ["Try 5.\n\n", "Wait, 6.\n\n", "So 6.\n\n", "Hm.\n\n", "But wait, 7.\n\n", "Alternatively, 8.\n\n", "8 it is."]
TRACE = "".join(STEPS)


def test_blank_lines_part_steps_and_nothing_is_lost():
    assert episodes(TRACE) == STEPS
    for text in ("", "a", "\n\n", "a\n\n\n\nb", "a\n\n\n", "\n\na", "a\nb\n\nc\n"):
        assert "".join(episodes(text)) == text
    assert episodes("a\n\n\n\nb") == ["a\n\n\n\n", "b"] and episodes("") == []


@pytest.mark.parametrize(
    ("gap", "lengths"),
    [(0, [1, 3, 1, 2]), (1, [4, 3]), (2, [4, 3]), (3, [4, 3]), (4, [5, 2]), (5, [7])],
)
def test_a_cue_begins_an_episode_unless_it_comes_too_soon(gap, lengths):
    parts = episodes(TRACE, CUES, gap)
    assert "".join(parts) == TRACE and [len(episodes(part)) for part in parts] == lengths


def test_the_first_step_counts_as_a_beginning_whatever_it_opens_with():
    assert episodes("Wait\n\nWait\n\nx", CUES, 0) == ["Wait\n\n", "Wait\n\nx"]
    assert episodes("Wait\n\nWait\n\nx", CUES, 2) == ["Wait\n\nWait\n\nx"]


def test_caps_and_groups():
    assert episodes(TRACE, most=3) == [*STEPS[:2], "".join(STEPS[2:])]
    assert episodes(TRACE, group=3) == ["".join(STEPS[:3]), "".join(STEPS[3:6]), STEPS[6]]
    assert episodes(TRACE, most=2, group=3) == [TRACE]
    for bad in ({"gap": -1}, {"most": 0}, {"group": 0}):
        with pytest.raises(ValueError, match="must be ≥ 0, most and group ≥ 1"):
            episodes(TRACE, **bad)


def test_prefixes_go_from_nothing_to_all():
    assert prefixes(["a", "b", "c"]) == ["", "a", "ab", "abc"] and prefixes([]) == [""]


def test_the_answer_begins_where_the_thinking_ends():
    assert split("5\n\nAnswer: 5", "Answer:") == ("5\n\n", "Answer: 5")
    assert split("5", "Answer:") == ("5", "") and split("5", "") == ("5", "")


@pytest.mark.parametrize(
    ("said", "whole"),
    [("", "End"), ("5", "5\n\nEnd"), ("5\n", "5\n\nEnd"), ("5\n\n", "5\n\nEnd"), ("5\n\n\n", "5\n\n\nEnd")],
)
def test_a_cue_repeats_no_line_break(said, whole):
    assert said + bridge(said, "\n\nEnd") == whole
