"""Text to token ids, and token ids to text that grows token by token.

A token need not end where a character ends, and some tokenizers drop or add a space depending on the neighbour, so a
token's text is the difference between decoding a short window with it and without it. Text that ends in an incomplete
character is held back until the character is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from extratime.models.request import Prompt

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LEFT = 4
"""Tokens that hold what a token's text depends on: its neighbour, or the three bytes of a character begun."""


class Text:
    """The stable text of a path.

    Args:
        decode: from token ids to text.
        left: what stands before the path: what a token says can depend on its left neighbour.
        known: tokens of the path already read.

    Attributes:
        value: the text so far.
    """

    __slots__ = ("_decode", "_told", "_window", "value")

    def __init__(
        self, decode: Callable[[tuple[int, ...]], str], left: Sequence[int] = (), known: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        left = tuple(left[-_LEFT:])
        self._window = (*left, *known)
        said = _stable(decode(self._window))
        self.value = said[len(_stable(decode(left))) :]
        self._told = len(said)

    def push(self, token: int) -> None:
        """Read one more token."""
        if len(self._window) > 2 * _LEFT:
            self._window = self._window[-_LEFT:]
            self._told = len(_stable(self._decode(self._window)))
        self._window += (token,)
        said = _stable(self._decode(self._window))
        self.value += said[self._told :]
        self._told = len(said)

    def ends_with_new(self, stops: Sequence[str], old: int) -> bool:
        """Whether one of `stops` occurs and ends behind the first `old` characters."""
        return any(self.value.find(stop, max(0, old - len(stop) + 1)) >= 0 for stop in stops)


def _stable(text: str) -> str:
    """`text` without a last character that is not complete."""
    return text.removesuffix(_BROKEN)


def decoder(tokenizer: Any) -> Callable[[tuple[int, ...]], str]:
    """The quickest function from token ids to text that a tokenizer has; special tokens are left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))
    return lambda ids: str(backend.decode(ids, skip_special_tokens=True))


def encoder(tokenizer: Any) -> Callable[[str], Prompt]:
    """How a prompt is read: what the tokenizer puts before any text, unless the text has it already, then its tokens.

    What a tokenizer puts behind a text (an end token, for some) is left out, since a prompt is there to be continued.
    """
    plain = _ids(tokenizer, "a", False)
    marked = _ids(tokenizer, "a", True)
    lead = next((marked[:i] for i in range(len(marked)) if marked[i : i + len(plain)] == plain), ())

    @lru_cache(maxsize=4096)  # the cells of a problem ask the same
    def encode(text: str) -> Prompt:
        ids = _ids(tokenizer, text, False)
        return Prompt(text, ids if ids[: len(lead)] == lead else lead + ids)

    return encode


def _ids(tokenizer: Any, text: str, marked: bool) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=marked).input_ids)
