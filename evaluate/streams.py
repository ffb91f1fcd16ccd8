"""Named i.i.d. streams of token paths: the only thing a run must keep.

A stream is named by (engine fingerprint, prompt, sampling law). Its elements are token paths, addressed by a lane and
a place in the lane; every path is drawn once, read as far as anyone needs, and extended, never redrawn. Requests with
a single possible reply (`Score`, `Probe`) are kept beside them under the digest of the request.

On disk a folder holds append-only files of checksummed lines. A torn or damaged line is dropped with a warning that
names it; files merge by lying in one folder, and of two records of the same piece the first wins.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import time
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, NamedTuple, TextIO

from extratime.models.paths import digest
from extratime.models.request import Completion, Drawn, Engine, Finish, Path, Probe, Prompt, Sampling, Score

log = logging.getLogger(__name__)

SYNC_SECONDS = 1.0
"""Draws that a machine may lose when its power fails. A disk takes milliseconds to sync, more than the scheduler."""

_json = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


@dataclass(slots=True)
class Known:
    """What is known of one path; see `Drawn` for the fields. Whoever reads all of it shares these very tuples."""

    text: str = ""
    ends: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    tempered: tuple[float, ...] = ()
    eos: bool = False
    skipped: tuple[int, ...] = ()

    def append(self, drawn: Drawn) -> None:
        """Add what was read after the part already known."""
        self.ends += _shifted(drawn.ends, len(self.text))
        self.text += drawn.text
        self.tokens += drawn.tokens
        self.logprobs += drawn.logprobs
        self.tempered += drawn.tempered
        self.eos = self.eos or drawn.eos
        self.skipped += drawn.skipped

    @property
    def stopped(self) -> bool:
        """Whether a controller ended the path here."""
        return len(self.skipped) > len(self.ends)

    def after(self, stem: Completion) -> Known:
        """A whole response: `stem` and this path. A stop may straddle the seam, but none ends within `stem`."""
        offset = len(stem.text)
        return Known(
            stem.text + self.text,
            (offset,) * stem.n_tokens + _shifted(self.ends, offset),
            stem.tokens + self.tokens,
            stem.logprobs + self.logprobs,
            stem.tempered + self.tempered,
            self.eos,
            (0,) * stem.n_tokens + self.skipped if self.skipped else (),
        )

    def chars(self, tokens: int) -> int:
        """Characters of text after so many tokens."""
        return self.ends[tokens - 1] if tokens else 0


def _shifted(ends: tuple[int, ...], offset: int) -> tuple[int, ...]:
    return tuple([offset + end for end in ends]) if offset else ends


class Reader(NamedTuple):
    """How far someone reads.

    Attributes:
        max_tokens: length at which to stop.
        until: terminal stop strings.
        pause: separators; one that ends within the first `after` characters is no longer new.
        after: characters the reader has already seen.
    """

    max_tokens: int
    until: tuple[str, ...] = ()
    pause: tuple[str, ...] = ()
    after: int = 0


def read(
    known: Known,
    prompt: Prompt,
    path: Path,
    reader: Reader,
    law: Sampling | None = None,
    stem: tuple[int, int] = (0, 0),
    cut: bool = False,
) -> Completion | None:
    """The path as far as `reader` wants it, or None if more must be drawn first.

    Args:
        known: what is known of the path, or of the whole response if it has a stem.
        prompt: what it continues.
        path: where it was drawn.
        reader: how far to read.
        law: under which it was drawn.
        stem: tokens and characters at the beginning that `path` does not hold.
        cut: whether the reader's length is where the budget ends.
    """
    stop = min(_stops(known, reader), default=None)
    if stop is None:
        return None
    n, _, finish, end = stop
    text, ids = known.text[:end], known.tokens[: n - 1 if finish == "eos" else n]
    if cut and finish == "length":
        finish = "cut"
    return Completion(prompt, text, n, ids, known.logprobs[:n], known.tempered[:n], finish, law, path, stem)


def reply_key(engine: Engine, request: Score | Probe) -> str:
    """The name under which the reply to a request with one possible reply is kept.

    Raises:
        KeyError: the engine does not have the adapter that a probe names.
    """
    if isinstance(request, Score):
        return digest(engine.fingerprint, "score", request.prompt, request.continuation)
    if request.adapter is not None and request.adapter not in engine.adapters:
        have = ", ".join(sorted(engine.adapters)) or "none"
        raise KeyError(f"a probe names the adapter {request.adapter!r}, but the engine's adapters are: {have}")
    adapter = engine.adapters[request.adapter] if request.adapter is not None else None
    said = request.completion
    heard = said.tokens or said.text
    return digest(engine.fingerprint, adapter, "probe", said.prompt, heard, request.question, request.targets)


def _stops(known: Known, reader: Reader) -> Iterator[tuple[int, int, Finish, int]]:
    """Each way for a reader to stop: (tokens read, precedence, why, characters of text kept)."""
    length = len(known.ends)
    if known.eos:
        yield length, 0, "eos", len(known.text)
    for text in reader.until:
        if (at := known.text.find(text)) >= 0:
            yield _tokens_to(known, at + len(text)), 1, "until", at
    for text in reader.pause:
        if (at := known.text.find(text, max(0, reader.after - len(text) + 1))) >= 0:
            n = _tokens_to(known, at + len(text))
            yield n, 2, "pause", known.chars(n)
    if length >= reader.max_tokens:
        yield reader.max_tokens, 3, "length", known.chars(reader.max_tokens)
    if known.stopped:
        yield length, 4, "stopped", len(known.text)


def _tokens_to(known: Known, chars: int) -> int:
    return min(bisect_left(known.ends, chars) + 1, len(known.ends))


class Streams:
    """All paths and single replies of a run; in memory, and in `folder` if one is given.

    Args:
        folder: where the files are; None keeps everything in memory.
        writer: name of the file that this process appends to; None reads only.

    Raises:
        RuntimeError: another process is writing the same file.
    """

    def __init__(self, folder: File | None = None, writer: str | None = None) -> None:
        self.paths: dict[Path, Known] = {}
        self.values: dict[str, tuple[tuple[float, ...], int]] = {}
        self._file: TextIO | None = None
        self._synced = -math.inf
        if folder is not None:
            if writer is not None:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = _own(folder / f"{writer}.jsonl")
            self._load(sorted(folder.glob("*.jsonl")))

    def append(self, path: Path, drawn: Drawn) -> None:
        """Keep what was drawn along `path` after its known part."""
        known = self.paths.setdefault(path, Known())
        record = {
            "path": path,
            "start": len(known.ends),
            "after": _crc(known.text),
            "text": drawn.text,
            "ends": drawn.ends,
            "tokens": drawn.tokens,
            "logprobs": drawn.logprobs,
            "eos": drawn.eos,
        }
        if drawn.tempered != drawn.logprobs:
            record["tempered"] = drawn.tempered
        if drawn.skipped:
            record["skipped"] = drawn.skipped
        known.append(drawn)
        self._write(record)

    def remember(self, key: str, values: tuple[float, ...], tokens: int) -> None:
        """Keep the reply to a request with one possible reply, and how many tokens it asked to read."""
        self.values[key] = (values, tokens)
        self._write({"key": key, "values": values, "tokens": tokens})

    def commit(self, durable: bool = False) -> None:
        """Hand everything kept so far to the system, where it outlives this process; on to the disk once a second.

        Args:
            durable: on to the disk at once, so that it outlives the machine.
        """
        if self._file is None:
            return
        self._file.flush()
        if durable or time.monotonic() >= self._synced + SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Commit and give the file up."""
        if self._file is not None:
            self.commit(durable=True)
            self._file.close()
            self._file = None

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(_line(record))

    def _load(self, files: Iterable[File]) -> None:
        pieces: dict[Path, list[_Piece]] = {}
        for file in files:
            for record in _records(file):
                if "key" in record:
                    self.values.setdefault(record["key"], (tuple(record["values"]), record["tokens"]))
                else:
                    pieces.setdefault(_path(record["path"]), []).append(_piece(record))
        for path, found in pieces.items():
            self.paths[path] = _stitch(path, found)


class _Piece(NamedTuple):
    """A record of a path: where it begins, the checksum of the text before it, and what it adds."""

    start: int
    after: str
    drawn: Drawn


def _stitch(path: Path, pieces: list[_Piece]) -> Known:
    """Join pieces in the order of their beginning; what does not follow from the first found is left out."""
    known = Known()
    for piece in sorted(pieces, key=lambda piece: piece.start):
        if piece.start > len(known.ends):
            log.warning("a piece of path %s from token %d on has no beginning; it is left out", path, piece.start)
        elif (rest := _rest(known, piece)) is not None:
            known.append(rest)
    return known


def _rest(known: Known, piece: _Piece) -> Drawn | None:
    """What `piece` adds to `known`, or None if that is nothing or belongs to other tokens."""
    drawn, skip = piece.drawn, len(known.ends) - piece.start
    ends_here = (drawn.eos or drawn.stopped) and skip == 0  # an end may come without a token
    if known.eos or known.stopped or (skip >= len(drawn.ends) and not ends_here):
        return None
    at = known.chars(piece.start) if skip else len(known.text)
    seen = drawn.ends[skip - 1] if skip else 0
    if _crc(known.text[:at]) != piece.after or known.text[at:] != drawn.text[:seen]:
        return None
    return Drawn(
        drawn.text[seen:],
        tuple(end - seen for end in drawn.ends[skip:]),
        drawn.tokens[skip:],
        drawn.logprobs[skip:],
        drawn.tempered[skip:],
        drawn.eos,
        skipped=drawn.skipped[skip:],
    )


def _own(file: File) -> TextIO:
    """Open `file` for appending as its only writer; a torn last line is ended so that it stays alone."""
    handle = open(file, "a+", encoding="utf-8", newline="\n")  # noqa: SIM115  (kept open for the whole run)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise RuntimeError(
            f"{file} is being written by another process; wait for it, or give this run another folder or shard"
        ) from None
    if file.stat().st_size and not _ends_with_newline(file):
        handle.write("\n")
        handle.flush()
    return handle


def _ends_with_newline(file: File) -> bool:
    with open(file, "rb") as tail:
        tail.seek(-1, os.SEEK_END)
        return tail.read() == b"\n"


def _line(record: dict[str, Any]) -> str:
    text = _json(record)
    return f"{_crc(text)} {text}\n"


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"


def _records(file: File) -> Iterator[dict[str, Any]]:
    with open(file, "rb") as lines:
        for number, raw in enumerate(lines, 1):
            crc, _, body = raw.rstrip(b"\n").partition(b" ")
            if raw != b"\n" and crc == f"{zlib.crc32(body):08x}".encode():
                yield json.loads(body)
            elif raw != b"\n":
                log.warning("%s, line %d: torn or damaged record dropped; it will be drawn again", file, number)


def _path(name: list[Any]) -> Path:
    return Path(name[0], tuple(name[1]), name[2])


def _piece(record: dict[str, Any]) -> _Piece:
    logprobs = tuple(record["logprobs"])
    drawn = Drawn(
        record["text"],
        tuple(record["ends"]),
        tuple(record["tokens"]),
        logprobs,
        tuple(record.get("tempered", logprobs)),
        record["eos"],
        skipped=tuple(record.get("skipped", ())),
    )
    return _Piece(record["start"], record["after"], drawn)
