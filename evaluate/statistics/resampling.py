"""Which questions a bootstrap draws, and whose signs a test flips: drawn once for each state of a generator.

A report tests hundreds of rows, each with a generator of its own that begins at the same seed, so that no row depends
on its neighbours. On as many questions they all come to the same draws, and to draw takes longer than to use them.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 20  # array elements a resampling step may hold at once: 8 MB of float64


def resampled(questions: int, resamples: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.float64]]:
    """How often each question is drawn, in chunks of shape (resamples, questions).

    Raises:
        ValueError: resamples < 2.
    """
    return (counts.astype(float) for counts in _once(_counts, questions, resamples, rng))


def flipped(questions: int, resamples: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.float64]]:
    """A sign for each question, 1 or -1, in chunks of shape (resamples, questions).

    Raises:
        ValueError: resamples < 2.
    """
    return (signs.astype(float) for signs in _once(_signs, questions, resamples, rng))


def percentiles(draws: npt.NDArray[np.float64], questions: int) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of a bootstrap over so many questions; NaN below two."""
    if questions < 2:
        return math.nan, math.nan
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def batches(draws: int, width: int) -> Iterator[int]:
    """Row counts, `draws` in all, whose (rows, width) array fits the memory bound.

    Raises:
        ValueError: draws < 2.
    """
    if draws < 2:
        raise ValueError(f"{draws} draws show no spread: ask for at least 2")
    rows = max(1, _CHUNK // width)
    return (min(rows, draws - start) for start in range(0, draws, rows))


Draw = Callable[[np.random.Generator, int, int], npt.NDArray[Any]]


def _counts(rng: np.random.Generator, rows: int, questions: int) -> npt.NDArray[np.uint16]:
    drawn = rng.integers(0, questions, (rows, questions)) + questions * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * questions).reshape(rows, questions).astype(np.uint16)


def _signs(rng: np.random.Generator, rows: int, questions: int) -> npt.NDArray[np.int8]:
    return 2 * rng.integers(0, 2, (rows, questions), dtype=np.int8) - 1


def _once(draw: Draw, questions: int, resamples: int, rng: np.random.Generator) -> list[npt.NDArray[Any]]:
    """All chunks of `draw`; leaves `rng` where drawing them leaves it."""
    bits = rng.bit_generator
    chunks, after = _kept(draw, questions, resamples, type(bits), _told(bits))
    bits.state = json.loads(after)
    return chunks


@lru_cache(maxsize=8)  # two a number of questions, and a task or two besides: 10,000 × 1,000 questions take 30 MB
def _kept(
    draw: Draw, questions: int, resamples: int, kind: type[np.random.BitGenerator], before: str
) -> tuple[list[npt.NDArray[Any]], str]:
    bits = kind()
    bits.state = json.loads(before)
    rng = np.random.Generator(bits)
    chunks = [draw(rng, rows, questions) for rows in batches(resamples, questions)]
    return chunks, _told(bits)


def _told(bits: np.random.BitGenerator) -> str:
    return json.dumps(bits.state, default=np.ndarray.tolist)
