"""Where a program reads: lanes, cursors, and responses that branch.

Every program has a lane of its own in all streams: replicates start in different lanes, and programs gathered side by
side get lanes below their parent's. Within its lane a program reads each stream from the beginning, one element after
the other. So no element is read twice within a cell or across its replicates, whatever finishes first, while cells of
the same shape read the same elements.

A response is read on along its own path as long as this program drew the path and has not read beyond this point of it
before; otherwise it branches: a fresh path begins in the stream named after the prompt and the response so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from extratime.evaluate.streams import Known, Reader, read
from extratime.models.paths import path_seed, stream_name
from extratime.models.request import Completion, Draw, Engine, Path, Prompt, Sampling


class Aim(NamedTuple):
    """One path, and how it completes a response.

    Attributes:
        origin: the prompt that the response continues.
        sampling: the law.
        path: where to read.
        response: what was read before, if anything.
        stem: the part of the response that the path does not hold.
        reader: how far to read the response, counted from its beginning.
        cut: whether the budget ends the reading.
    """

    origin: Prompt
    sampling: Sampling
    path: Path
    response: Completion | None
    stem: Completion | None
    reader: Reader
    cut: bool

    def read(self, known: Known, last: bool) -> Completion | None:
        """The response as far as it was wanted, or None if more must be drawn.

        Args:
            known: what is known of the path.
            last: nothing more can be drawn; a path that is too short then counts as cut.
        """
        whole = known.after(self.stem) if self.stem else known
        reader, cut = self.reader, self.cut
        if last and len(whole.ends) < reader.max_tokens:
            reader, cut = reader._replace(max_tokens=len(whole.ends)), True
        return read(whole, self.origin, self.path, reader, self.sampling, _size(self.stem), cut)

    def draw(self, known: Known, full: int | None) -> Draw:
        """Ask for the rest of the path.

        Args:
            known: what is known of the path.
            full: length of a full response, for an engine that can't go on where it stopped: it draws all at once.
        """
        prompt, tokens = self.origin, 0
        if self.stem:
            prompt, tokens = prompt.then(self.stem), self.stem.n_tokens
        return Draw(
            prompt,
            path_seed(self.path),
            self.sampling,
            (full or self.reader.max_tokens) - tokens,
            known.tokens,
            known.text,
            self.reader.until,
            () if full else self.reader.pause,
        )

    def failed(self, error: str) -> Completion:
        """The response as a failure that keeps what was there before."""
        kept = self.response or Completion(self.origin, "", 0)
        return replace(kept, finish="failed", path=self.path, stem=_size(self.stem), error=error)


@dataclass(slots=True)
class Cursor:
    """A program's place in all streams, those of the policy and of whoever else draws.

    Attributes:
        fingerprint: of the policy.
        lane: of the program.
        extents: tokens of each path that the program has read; the meter keeps them.
        places: next element to read, by stream.
        claimed: points of paths from which this program has read on.
    """

    fingerprint: str
    lane: tuple[int, ...]
    extents: Mapping[Path, int]
    places: dict[str, int] = field(default_factory=dict)
    claimed: set[tuple[Path, int]] = field(default_factory=set)

    def fork(self, serial: int, child: int, extents: Mapping[Path, int]) -> Cursor:
        """The cursor of the `child`-th program of the `serial`-th gathering."""
        return Cursor(self.fingerprint, (*self.lane, serial, child), extents)

    def aim(
        self,
        prompt: Prompt,
        law: Sampling,
        response: Completion | None,
        reader: Reader,
        cut: bool,
        engine: str | None = None,
    ) -> Aim:
        """Where to read a fresh response to `prompt`, or more of `response`; see `Aim` for `reader` and `cut`.

        `engine` is the fingerprint of who draws, if that is not the policy.
        """
        if response is None:
            return Aim(prompt, law, self.fresh(prompt, law, engine), None, None, reader, cut)
        origin, path, stem = response.prompt, response.path, _stem(response)
        if path is None or not self._own(response, path, law):
            path, stem = self.fresh(origin.then(response), law, engine), response
        return Aim(origin, law, path, response, stem, reader, cut)

    def _own(self, response: Completion, path: Path, law: Sampling) -> bool:
        """Whether `response` may be read on along its own path; if so, claims it."""
        if response.sampling != law:
            return False
        point = (path, response.n_tokens)
        beyond = self.extents.get(path, 0) > response.n_tokens - response.stem[0]
        if not law.greedy and (path.lane != self.lane or point in self.claimed or beyond):
            return False
        self.claimed.add(point)
        return True

    def fresh(self, prompt: Prompt, law: Sampling, engine: str | None = None) -> Path:
        """The next path that the program has not read, in the stream of `prompt` under `law`."""
        stream = stream_name(engine or self.fingerprint, prompt, law)
        if law.greedy:
            return Path(stream, (), 0)
        place = self.places.get(stream, 0)
        self.places[stream] = place + 1
        return Path(stream, self.lane, place)


def in_tokens(response: Completion, engine: Engine) -> Completion:
    """`response` in an engine's tokens, where a program wrote its words and no engine has read them yet."""
    before = response.prompt.ids
    if response.path is not None or response.tokens or not (response.readable and response.text) or before is None:
        return response
    whole = engine.encode(response.prompt.text + response.text).ids or ()
    if whole[: len(before)] != before:
        return response
    return replace(response, tokens=whole[len(before) :], n_tokens=len(whole) - len(before))


def _stem(response: Completion) -> Completion | None:
    """The part of a response that its own path does not hold."""
    tokens, chars = response.stem
    if not tokens:
        return None
    return replace(
        response,
        text=response.text[:chars],
        n_tokens=tokens,
        tokens=response.tokens[:tokens],
        logprobs=response.logprobs[:tokens],
        tempered=response.tempered[:tokens],
        stem=(0, 0),
    )


def _size(stem: Completion | None) -> tuple[int, int]:
    return (stem.n_tokens, len(stem.text)) if stem else (0, 0)
