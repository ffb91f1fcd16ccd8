"""Where a program reads: lanes, cursors, and responses that branch.

Every program has a lane of its own in all streams: replicates start in different lanes, and programs gathered side by
side get lanes below their parent's. Within its lane a program reads each stream from the beginning, one element after
the other. So no element is read twice within a cell or across its replicates, whatever finishes first, while cells of
the same shape read the same elements.

A response is read on along its own path as long as this program drew the path and has not read on from the same point
before; otherwise it branches: a fresh path begins in the stream named after the prompt and the response so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from extratime.evaluate.streams import Known, Reader, read
from extratime.models.request import Completion, Path, Prompt, Sampling, stream_name


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a response is to be read.

    Attributes:
        max_tokens: of the whole response.
        until: terminal stop strings.
        pause: separators to stop after.
        cut: whether `max_tokens` is what the budget left, rather than what was asked for.
    """

    max_tokens: int
    until: tuple[str, ...] = ()
    pause: tuple[str, ...] = ()
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Aim:
    """One path, and how it completes a response.

    Attributes:
        origin: the prompt that the response continues.
        prompt: the prompt that the path continues: `origin` and the stem.
        sampling: the law.
        path: where to read.
        stem: the part of the response that the path does not hold.
        reader: how far to read the path.
        cut: whether the budget ends the reading.
    """

    origin: Prompt
    prompt: Prompt
    sampling: Sampling
    path: Path
    stem: Completion | None
    reader: Reader
    cut: bool

    def read(self, known: Known, last: bool) -> Completion | None:
        """The response as far as it was wanted, or None if more must be drawn.

        Args:
            known: what is known of the path.
            last: nothing more can be drawn; a path that is too short then counts as cut.
        """
        limit = min(self.reader.max_tokens, len(known.ends)) if last else self.reader.max_tokens
        part = read(known, self.origin, self.path, replace(self.reader, max_tokens=limit))
        if part is None:
            return None
        short = part.n_tokens < self.reader.max_tokens
        if part.finish == "length" and (self.cut or short):
            part = replace(part, finish="cut")
        return self._after_stem(replace(part, sampling=self.sampling))

    def failed(self, error: str) -> Completion:
        """The response as a failure that keeps what was there before."""
        kept = self.stem or Completion(self.origin, "", 0)
        tokens, chars = kept.n_tokens, len(kept.text)
        return replace(kept, finish="failed", path=self.path, stem=(tokens, chars), error=error)

    def _after_stem(self, part: Completion) -> Completion:
        stem = self.stem
        if stem is None:
            return part
        return replace(
            part,
            text=stem.text + part.text,
            n_tokens=stem.n_tokens + part.n_tokens,
            tokens=stem.tokens + part.tokens,
            logprobs=stem.logprobs + part.logprobs,
            tempered=stem.tempered + part.tempered,
            stem=(stem.n_tokens, len(stem.text)),
        )


@dataclass(slots=True)
class Cursor:
    """A program's place in all streams of the policy.

    Attributes:
        fingerprint: of the policy.
        lane: of the program.
        places: next element to read, by stream.
        claimed: points of paths from which this program has read on.
    """

    fingerprint: str
    lane: tuple[int, ...]
    places: dict[str, int] = field(default_factory=dict)
    claimed: set[tuple[Path, int]] = field(default_factory=set)

    def fork(self, serial: int, child: int) -> Cursor:
        """The cursor of the `child`-th program of the `serial`-th gathering."""
        return Cursor(self.fingerprint, (*self.lane, serial, child))

    def aim(self, prompt: Prompt, law: Sampling, response: Completion | None, reach: Reach) -> Aim:
        """Where to read a fresh response to `prompt`, or more of `response`."""
        if response is None:
            return self._aim(prompt, law, self._next(prompt, law), None, 0, reach)
        if self._own(response, law):
            assert response.path is not None
            return self._aim(response.prompt, law, response.path, _stem(response), len(response.text), reach)
        base = response.prompt.then(response)
        return self._aim(response.prompt, law, self._next(base, law), response, len(response.text), reach)

    def _aim(self, origin: Prompt, law: Sampling, path: Path, stem: Completion | None, seen: int, reach: Reach) -> Aim:
        tokens, chars = (stem.n_tokens, len(stem.text)) if stem else (0, 0)
        prompt = origin.then(stem) if stem else origin
        reader = Reader(reach.max_tokens - tokens, reach.until, reach.pause, seen - chars)
        return Aim(origin, prompt, law, path, stem, reader, reach.cut)

    def _own(self, response: Completion, law: Sampling) -> bool:
        """Whether `response` may be read on along its own path; if so, claims it."""
        path = response.path
        if path is None or response.sampling != law:
            return False
        point = (path, response.n_tokens)
        if not law.greedy and (path.lane != self.lane or point in self.claimed):
            return False
        self.claimed.add(point)
        return True

    def _next(self, prompt: Prompt, law: Sampling) -> Path:
        stream = stream_name(self.fingerprint, prompt, law)
        if law.greedy:
            return Path(stream, (), 0)
        place = self.places.get(stream, 0)
        self.places[stream] = place + 1
        return Path(stream, self.lane, place)


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
