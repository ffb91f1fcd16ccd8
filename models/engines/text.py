"""Text to token ids, and token ids to text that grows token by token.

A token need not end where a character ends, and some tokenizers drop or add a space depending on the neighbour, so a
token's text is the difference between decoding a short window with it and without it. Text that ends in an incomplete
character is held back until the character is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from extratime.models.request import Prompt

_LONGEST = 4
"""Bytes of the longest UTF-8 character: what is still broken after so many more tokens stays broken."""


class Text:
    """The stable text of a path.

    Attributes:
        value: the text so far.
    """

    __slots__ = ("_decode", "_head", "_pending", "_shown", "value")

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.value = ""
        self._decode = decode
        self._shown: list[int] = []
        self._head = ""
        self._pending: list[int] = []

    def push(self, token: int) -> None:
        """Read one more token."""
        self._pending.append(token)
        window = self._shown + self._pending
        said = self._decode(window)
        if said.endswith("\N{REPLACEMENT CHARACTER}") and len(self._pending) <= _LONGEST:
            return
        self.value += said[len(self._head) :]
        self._shown, self._pending = self._pending, []
        self._head = self._decode(self._shown)

    def ends_with_new(self, stops: Sequence[str], old: int) -> bool:
        """Whether one of `stops` occurs and ends behind the first `old` characters."""
        return any(self.value.find(stop, max(0, old - len(stop) + 1)) >= 0 for stop in stops)


def decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """The quickest function from token ids to text that a tokenizer has; special tokens are left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return lambda ids: str(backend.decode(ids, skip_special_tokens=True))
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))


def encoder(tokenizer: Any) -> Callable[[str], Prompt]:
    """How a prompt is read: what the tokenizer puts before any text, unless the text has it already, then its tokens.

    What a tokenizer puts behind a text (an end token, for some) is left out, since a prompt is there to be continued.
    """
    plain = _ids(tokenizer, "a", False)
    marked = _ids(tokenizer, "a", True)
    lead = next((marked[:i] for i in range(len(marked)) if marked[i : i + len(plain)] == plain), ())

    def encode(text: str) -> Prompt:
        ids = _ids(tokenizer, text, False)
        return Prompt(text, ids if ids[: len(lead)] == lead else lead + ids)

    return encode


def _ids(tokenizer: Any, text: str, marked: bool) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=marked).input_ids)
