"""What is kept of a path, on disk and off it: nothing is lost but what was damaged, and nothing is read twice."""

import logging
import random
import shutil
import subprocess
import sys

import pytest
from toy import ToyEngine, lines, told

from extratime.evaluate.streams import Known, Reader, Streams, read, reply_key
from extratime.models.paths import path_seed, stream_name
from extratime.models.request import Completion, Drawn, Path, Probe, Prompt, Sampling, Score

A, B, C = (Path("stream", (0, 1), place) for place in range(3))


def drawn(text, start=0, eos=False, tempered=True):
    """A piece of one token per character; token and log-probability tell where in the path it stands."""
    at = range(start, start + len(text) + eos)
    ids = tuple(ord(letter) for letter in text)
    logprobs = tuple(-0.1 * (i + 1) for i in at)
    hot = tuple(-0.2 * (i + 1) for i in at) if tempered else logprobs
    return Drawn(text, tuple(range(1, len(text) + 1)) + (len(text),) * eos, ids, logprobs, hot, eos)


def written(folder, *pieces, writer="one", replies=()):
    streams = Streams(folder, writer)
    for path, piece in pieces:
        streams.append(path, piece)
    for reply in replies:
        streams.remember(*reply)
    streams.close()
    return streams


def known(text, eos=False):
    whole = Known()
    whole.append(drawn(text, eos=eos))
    return whole


def test_what_is_written_is_read(tmp_path):
    odd = 'tab\t, quote", line\nbreak, é𝟙∞, \ud800, \0'
    kept = written(
        tmp_path,
        (A, drawn("ab")),
        (B, drawn(odd, eos=True, tempered=False)),
        (A, drawn("cd", 2, eos=True)),
        replies=[("key", (0.5, float("-inf"), 1e-300), 7)],
    )
    again = Streams(tmp_path)
    assert again.paths == kept.paths and again.values == kept.values
    assert again.paths[A] == known("abcd", eos=True)


def test_the_disk_is_made_to_sync_once_a_second_and_at_the_end(tmp_path, monkeypatch):
    synced, now = [], [100.0]
    monkeypatch.setattr("extratime.evaluate.streams.os.fsync", synced.append)
    monkeypatch.setattr("extratime.evaluate.streams.time.monotonic", lambda: now[0])
    streams = Streams(tmp_path, "one")
    for now[0], count in ((100.0, 1), (100.9, 1), (101.0, 2), (101.5, 2)):
        streams.append(A, drawn("a"))
        streams.commit()
        assert len(synced) == count, now
    streams.close()
    assert len(synced) == 3


def test_a_record_outlives_the_process_after_commit_and_not_only_after_close(tmp_path):
    streams = Streams(tmp_path, "one")
    streams.append(A, drawn("ab"))
    streams.commit()
    assert Streams(tmp_path).paths == {A: known("ab")}
    streams.close()


def test_a_reader_writes_nothing(tmp_path):
    streams = Streams(tmp_path / "none")
    streams.append(A, drawn("ab"))
    streams.close()
    assert streams.paths and not (tmp_path / "none").exists()


# --- damage


def test_a_tail_torn_at_any_byte_costs_the_last_record_alone(tmp_path, caplog):
    written(tmp_path / "whole", (A, drawn("ab")), (B, drawn("xyz")))
    whole = (tmp_path / "whole" / "one.jsonl").read_bytes()
    last = whole.index(b"\n") + 1
    file = tmp_path / "one.jsonl"
    for size in range(last + 1, len(whole) - 1, 3):
        file.write_bytes(whole[:size])
        caplog.clear()
        streams = Streams(tmp_path, "one")
        assert streams.paths == {A: known("ab")}
        assert "one.jsonl, line 2" in caplog.text
        streams.append(B, drawn("xyz"))
        streams.close()
        assert Streams(tmp_path).paths == {A: known("ab"), B: known("xyz")}


def test_a_record_that_lacks_only_its_newline_is_whole(tmp_path, caplog):
    written(tmp_path, (A, drawn("ab")))
    file = tmp_path / "one.jsonl"
    file.write_bytes(file.read_bytes()[:-1])
    written(tmp_path, (B, drawn("c")))
    assert Streams(tmp_path).paths == {A: known("ab"), B: known("c")}
    assert not caplog.records


@pytest.mark.parametrize("flip", [0x01, 0x2A, 0x80])
def test_a_flipped_byte_anywhere_costs_the_records_that_it_touches(tmp_path, caplog, flip):
    paths = [Path("stream", (), place) for place in range(4)]
    written(tmp_path, *((path, drawn("ab\n")) for path in paths))
    file = tmp_path / "one.jsonl"
    whole = file.read_bytes()
    for at in range(0, len(whole), 4):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        line = whole[:at].count(b"\n")
        touched = {line, line + 1} if whole[at : at + 1] == b"\n" else {line}
        caplog.clear()
        found = Streams(tmp_path).paths
        assert found == {path: known("ab\n") for i, path in enumerate(paths) if i not in touched}
        assert f"one.jsonl, line {line + 1}" in caplog.text


def test_what_follows_a_lost_piece_is_left_out_with_a_word(tmp_path, caplog):
    written(tmp_path, (A, drawn("ab")), (A, drawn("cd", 2)), (A, drawn("ef", 4)))
    file = tmp_path / "one.jsonl"
    first, _, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + third)
    with caplog.at_level(logging.WARNING):
        assert Streams(tmp_path).paths == {A: known("ab")}
    assert "from token 4 on has no beginning" in caplog.text


# --- merging


def test_a_copy_of_a_file_changes_nothing(tmp_path):
    kept = written(tmp_path, (A, drawn("ab")), (A, drawn("c", 2, eos=True)), replies=[("key", (1.0,), 3)])
    for name in ("0", "two", "zzz"):
        shutil.copy(tmp_path / "one.jsonl", tmp_path / f"{name}.jsonl")
    again = Streams(tmp_path)
    assert again.paths == kept.paths and again.values == kept.values


def test_the_first_record_wins(tmp_path):
    written(tmp_path, (A, drawn("ab")), writer="1", replies=[("key", (1.0,), 3)])
    for writer, text in (("2", "xy"), ("3", "xyz")):
        shutil.move(written_file(tmp_path / writer, text), tmp_path / f"{writer}.jsonl")
    again = Streams(tmp_path)
    assert again.paths == {A: known("ab")} and again.values == {"key": ((1.0,), 3)}


def written_file(folder, text):
    written(folder, (A, drawn(text)), replies=[("key", (0.0,), 5)])
    return folder / "one.jsonl"


def test_pieces_of_one_path_join_in_any_order_and_overlap(tmp_path):
    text, rng = "the quick brown fox", random.Random(0)
    for trial in range(12):
        cuts = [0, *sorted(rng.sample(range(1, len(text)), 4)), len(text)]
        spans = [(start, rng.choice([end for end in cuts if end > start])) for start in cuts[:-1]]
        spans += [(start, cuts[i + 1]) for i, start in enumerate(cuts[:-1])]
        folder = tmp_path / str(trial)
        for i, (start, end) in enumerate(rng.sample(spans, len(spans))):
            part = Streams(folder, f"{i:02}")
            part.paths = {A: known(text[:start])} if start else {}
            part.append(A, drawn(text[start:end], start, eos=end == len(text)))
            part.close()
        assert Streams(folder).paths == {A: known(text, eos=True)}


def test_a_piece_that_continues_other_tokens_is_left_out(tmp_path):
    written(tmp_path, (A, drawn("ab")), writer="1")
    written(tmp_path / "other", (A, drawn("xb")), (A, drawn("cd", 2)))
    shutil.move(tmp_path / "other" / "one.jsonl", tmp_path / "2.jsonl")
    assert Streams(tmp_path).paths == {A: known("ab")}


def test_an_end_that_comes_without_a_token_is_kept(tmp_path):
    kept = written(tmp_path, (A, drawn("ab")), (A, Drawn("", (), eos=True)), (B, Drawn("", (), eos=True)))
    assert kept.paths[A].eos and Streams(tmp_path).paths == kept.paths


# --- one writer a file


def test_a_second_writer_is_refused(tmp_path):
    first = Streams(tmp_path, "one")
    with pytest.raises(RuntimeError, match=r"one\.jsonl is being written by another process"):
        Streams(tmp_path, "one")
    Streams(tmp_path, "two").close()
    first.close()
    Streams(tmp_path, "one").close()


def test_the_lock_holds_between_processes_and_ends_with_its_owner(tmp_path):
    code = f"""
import sys
from pathlib import Path
from extratime.evaluate.streams import Streams
streams = Streams(Path({str(tmp_path)!r}), "one")
print("up", flush=True)
sys.stdin.read()
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "up\n"
    with pytest.raises(RuntimeError, match="another process"):
        Streams(tmp_path, "one")
    owner.kill()
    owner.wait()
    Streams(tmp_path, "one").close()


# --- reading


@pytest.mark.parametrize(
    ("reader", "text", "n", "finish"),
    [
        (Reader(99), "ab.cd.END", 10, "eos"),
        (Reader(10), "ab.cd.END", 10, "eos"),
        (Reader(9), "ab.cd.END", 9, "length"),
        (Reader(0), "", 0, "length"),
        (Reader(99, until=("END",)), "ab.cd.", 9, "until"),
        (Reader(99, until=("END", "d.")), "ab.c", 6, "until"),
        (Reader(8, until=("END",)), "ab.cd.EN", 8, "length"),
        (Reader(9, until=("END",)), "ab.cd.", 9, "until"),
        (Reader(99, pause=(".",)), "ab.", 3, "pause"),
        (Reader(3, pause=(".",)), "ab.", 3, "pause"),
        (Reader(2, pause=(".",)), "ab", 2, "length"),
        (Reader(99, pause=(".",), after=3), "ab.cd.", 6, "pause"),
        (Reader(99, pause=(".c",), after=3), "ab.c", 4, "pause"),
        (Reader(99, pause=(".c",), after=4), "ab.cd.END", 10, "eos"),
        (Reader(99, until=(".",), pause=(".",)), "ab", 3, "until"),
        (Reader(99, pause=("D",), until=("END",)), "ab.cd.", 9, "until"),
    ],
)
def test_a_reader_stops_at_the_first_of_its_stops(reader, text, n, finish):
    got = read(known("ab.cd.END", eos=True), Prompt("?"), A, reader)
    assert (got.text, got.n_tokens, got.finish) == (text, n, finish)
    assert got.tokens == tuple(map(ord, "ab.cd.END"))[: min(n, 9)]
    assert len(got.logprobs) == len(got.tempered) == n


def test_a_reader_waits_for_what_is_not_there():
    assert read(known("ab"), Prompt("?"), A, Reader(3)) is None
    assert read(known("ab"), Prompt("?"), A, Reader(3, pause=("c",))) is None
    assert read(Known(), Prompt("?"), A, Reader(1)) is None


def test_a_pause_keeps_the_whole_token_and_a_stop_drops_the_rest_of_its_token():
    long = Known()
    long.append(Drawn("a.bc", (3, 4), (1, 2), (-1.0, -2.0)))
    assert read(long, Prompt("?"), A, Reader(9, pause=(".",))).text == "a.b"
    assert read(long, Prompt("?"), A, Reader(9, until=(".",))).text == "a"


# --- names


def test_a_stream_is_named_by_engine_prompt_and_law_alone():
    prompts = [Prompt("a"), Prompt("b"), Prompt("a", (1, 2)), Prompt("a", (12,)), Prompt("a", ())]
    laws = [Sampling(), Sampling(0.5), Sampling(top_p=0.5), Sampling(top_k=3), Sampling(min_p=0.1)]
    names = {stream_name(engine, prompt, law) for engine in "xy" for prompt in prompts for law in laws}
    assert len(names) == 50
    assert stream_name("x", Prompt("a", (1,)), Sampling()) == stream_name("x", Prompt("other text", (1,)), Sampling())


def test_no_two_paths_share_their_randomness():
    lanes = [(), (0,), (1,), (0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0), (10,), (1, 0)]
    seeds = {path_seed(Path(s, lane, place)) for s in ("x", "y") for lane in lanes for place in range(500)}
    assert len(seeds) == 2 * len(lanes) * 500


def test_replies_are_named_by_engine_adapter_and_all_that_was_asked():
    engine, other = ToyEngine(told(lines)), ToyEngine(told(lines), name="other")
    said = [Completion(Prompt("p", (1,)), "x", 1, ids) for ids in ((1,), (2,), ())]
    probes = [Probe(r, q, t, a) for r in said for q in "qr" for t in (("Y",), ("Y", "N")) for a in (None, "self_eval")]
    scores = [Score(Prompt(p), c) for p in "pq" for c in "cd"]
    keys = {reply_key(e, request) for e in (engine, other) for request in [*probes, *scores]}
    assert len(keys) == 2 * (24 + 4)
    engine.adapters["self_eval"] = "trained further"
    assert reply_key(engine, probes[1]) not in keys and reply_key(engine, probes[0]) in keys
    with pytest.raises(KeyError, match=r"'shufled'.*self_eval, shuffled"):
        reply_key(engine, Probe(said[0], "q", ("Y",), "shufled"))
