"""The names of streams, and the randomness that the name of a path stands for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from extratime.models.request import Path, Prompt, Sampling


@lru_cache(maxsize=16_384)
def stream_name(fingerprint: str, prompt: Prompt, sampling: Sampling) -> str:
    """The stream of token paths that an engine draws after `prompt` under a law; stops and lengths are not part."""
    said = list(prompt.ids) if prompt.ids is not None else prompt.text
    return digest(fingerprint, said, sampling)


def path_seed(path: Path) -> int:
    """64-bit key of a path's randomness."""
    name = json.dumps([path.stream, path.lane, path.place]).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def uniforms(seed: int, start: int, count: int) -> list[float]:
    """The uniforms in [0, 1) that tokens start … start+count-1 of a path use (SplitMix64 in counter mode)."""
    return [_splitmix(seed, t) for t in range(start, start + count)]


def _splitmix(seed: int, position: int) -> float:
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return float((z ^ (z >> 31)) >> 11) * 2.0**-53


def digest(*parts: Any) -> str:
    """A short stable name for plain values: 128 bits of BLAKE2 over their JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    try:
        return asdict(value)
    except TypeError:
        raise TypeError(f"cannot name a stream after {value!r}") from None
