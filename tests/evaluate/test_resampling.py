"""What is drawn once is what would be drawn again, and the generator can't tell the difference."""

import numpy as np
import pytest

from extratime.evaluate.statistics import resampling
from extratime.evaluate.statistics.questions import paired_difference, question_means
from extratime.evaluate.statistics.resampling import flipped, resampled


def direct(rng, questions, resamples):
    """Counts, signs and the next number, drawn without keeping anything."""
    drawn = rng.integers(0, questions, (resamples, questions))
    counts = np.array([np.bincount(row, minlength=questions) for row in drawn])
    signs = 2 * rng.integers(0, 2, (resamples, questions), dtype=np.int8) - 1
    return counts, signs, rng.random()


def kept(rng, questions, resamples):
    counts, signs = (np.concatenate([*of(questions, resamples, rng)]) for of in (resampled, flipped))
    return counts, signs, rng.random()


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937])
def test_every_generator_of_a_seed_comes_to_what_numpy_draws(bits):
    for seed in (0, 1, 0, 1):
        want, got = (of(np.random.Generator(bits(seed)), 7, 50) for of in (direct, kept))
        assert all(np.array_equal(a, b) for a, b in zip(want, got, strict=True))


def test_a_generator_that_went_on_draws_anew():
    rng = np.random.default_rng(3)
    first, second = (kept(rng, 20, 30) for _ in range(2))
    assert not np.array_equal(first[0], second[0]) and not np.array_equal(first[1], second[1])


def test_rows_of_one_seed_draw_once(monkeypatch):
    monkeypatch.setattr(resampling, "_kept", resampling._kept.__wrapped__)
    alone = [paired_difference(row, np.zeros(9), np.random.default_rng(8), 100) for row in np.eye(9)]
    monkeypatch.undo()
    before = resampling._kept.cache_info().misses
    rows = [paired_difference(row, np.zeros(9), np.random.default_rng(8), 100) for row in np.eye(9)]
    assert rows == alone and resampling._kept.cache_info().misses == before + 2


def test_chunks_change_no_draw(monkeypatch):
    whole = kept(np.random.default_rng(4), 6, 40)
    monkeypatch.setattr(resampling, "_CHUNK", 6 * 7)
    resampling._kept.cache_clear()
    assert [len(chunk) for chunk in resampled(6, 40, np.random.default_rng(4))] == [7] * 5 + [5]
    for a, b in zip(whole[:1], kept(np.random.default_rng(4), 6, 40)[:1], strict=True):
        assert np.array_equal(a, b)
    resampling._kept.cache_clear()


def test_means_by_question_do_not_hang_on_how_the_samples_lie():
    table = np.random.default_rng(5).random((11, 40))
    alone = [row.mean() for row in table]
    ragged = question_means([*table, [1.0]])
    assert question_means(table).tolist() == question_means(table.tolist()).tolist() == alone
    assert question_means(np.asfortranarray(table)).tolist() == alone == ragged[:-1].tolist()
