"""What the `hf` engine refuses, what it counts, and what cancelling leaves behind."""

from dataclasses import replace

from tiny import engine, joined, pairs, prompt, same, serve

from extratime.models.request import Draw, Drawn, Failure, Prompt, Sampling, Work

GREEDY = Sampling(0.0)
WARM = Sampling(0.8, top_p=0.9, top_k=40)


# Limits


def test_a_prompt_longer_than_the_context_fails_and_names_lengths():
    runs = engine(context=64)
    long, fine, full = serve(runs, [Draw(prompt(n), 0, GREEDY, 200) for n in (64, 60, 63)])
    assert isinstance(long, Failure)
    assert "64 tokens" in long.error and "context is 64" in long.error
    assert (len(fine.ends), len(full.ends)) == (4, 1) or fine.eos or full.eos


def test_an_empty_prompt_fails_unless_a_path_is_given():
    runs = engine(eos=False)
    nothing, path = serve(runs, [Draw(Prompt("", ()), 0, GREEDY, 4), Draw(Prompt("", ()), 0, GREEDY, 4, have=(65,))])
    assert isinstance(nothing, Failure) and "no tokens" in nothing.error
    assert len(path.tokens) == 3


def test_a_path_read_to_its_length_needs_no_work():
    runs = engine()
    (reply,) = serve(runs, [Draw(prompt(3), 0, GREEDY, 2, have=(65, 66))])
    assert reply == Drawn("", ())
    assert runs.counts == Work()


# Counts


def test_counts_are_closed_forms():
    runs, ask = engine(eos=False), prompt(20)
    (one,) = serve(runs, [Draw(ask, 0, WARM, 8)])
    drawn = pairs(19, 8)
    assert one.work == Work(prefill=19, decode=8, cached=0, pairs=pairs(0, 19) + drawn, decode_pairs=drawn)
    (again,) = serve(runs, [Draw(ask, 1, WARM, 8)])
    assert again.work == Work(prefill=0, decode=8, cached=19, pairs=drawn, decode_pairs=drawn)
    (more,) = serve(runs, [Draw(ask, 0, WARM, 11, have=one.tokens)])
    assert more.work == Work(decode=3, cached=27, pairs=pairs(27, 3), decode_pairs=pairs(27, 3))
    (longer,) = serve(runs, [Draw(Prompt("", ask.ids + prompt(5, 1).ids), 0, WARM, 1)])
    assert longer.work == Work(
        prefill=4, decode=1, cached=20, pairs=pairs(20, 4) + pairs(24, 1), decode_pairs=pairs(24, 1)
    )
    assert runs.counts == one.work + again.work + more.work + longer.work
    assert set(runs.seconds) == {"prefill", "decode"} and min(runs.seconds.values()) > 0


def test_a_prompt_is_read_once_for_all_its_draws():
    runs, ask = engine(slots=4, eos=False), prompt(50)
    replies = serve(runs, [Draw(ask, seed, WARM, 6) for seed in range(16)])
    assert runs.counts.prefill == 49
    assert runs.counts.cached == 15 * 49
    assert runs.counts.decode == 16 * 6
    assert runs.counts == sum((r.work for r in replies), Work())


def test_a_shared_beginning_is_read_once():
    runs, head = engine(eos=False), prompt(60).ids
    asks = [Prompt("", head + prompt(6, i).ids) for i in range(1, 6)]
    serve(runs, [Draw(ask, 0, WARM, 1) for ask in asks])
    assert runs.counts.prefill == 60 + 5 * 5
    assert runs.counts.cached == 4 * 60


def test_step_search_reads_new_tokens_only():
    runs, ask = engine(eos=False), prompt(100)
    paths = [()] * 4
    for step in range(1, 5):
        replies = serve(runs, [Draw(ask, i, WARM, 8 * step, have=p) for i, p in enumerate(paths)])
        paths = [p + r.tokens for p, r in zip(paths, replies, strict=True)]
        paths = [paths[i // 2] for i in range(4)]
    assert runs.counts.decode == 4 * 4 * 8
    # The last token of a step is read with the first of the next.
    assert runs.counts.prefill == 99


# Cancelling


def test_cancelling_before_the_start_answers_nothing():
    runs = engine(slots=1, eos=False)
    runs.submit("a", Draw(prompt(4), 0, WARM, 3))
    assert runs.cancel("a") is None
    assert runs.poll() == []
    assert runs.counts == Work()
    assert runs.cancel("never heard of") is None


def test_cancelling_at_every_stage_keeps_counts_exact():
    for stage in range(5):
        runs = engine(slots=2, eos=False)
        draws = [Draw(prompt(10, i), i, WARM, 4 + 6 * i) for i in range(5)]
        for i, draw in enumerate(draws):
            runs.submit(i, draw)
        works, done = [], set()
        for _ in range(stage):
            for ticket, reply in runs.poll():
                works.append(reply.work)
                done.add(ticket)
        for i in sorted(set(range(5)) - done):
            reply = runs.cancel(i)
            if reply is not None:
                works.append(reply.work)
                (whole,) = serve(engine(eos=False), [draws[i]])
                assert whole.tokens[: len(reply.tokens)] == reply.tokens
        assert runs.poll() == []
        assert runs.counts == sum(works, Work())


def test_a_cancelled_path_is_read_on_from_where_it_was():
    runs = engine(slots=2, eos=False)
    long, short = Draw(prompt(10), 0, WARM, 30), Draw(prompt(5), 1, WARM, 12)
    runs.submit("long", long)
    runs.submit("short", short)
    assert [ticket for ticket, _ in runs.poll()] == ["short"]
    part = runs.cancel("long")
    assert len(part.tokens) == 12
    (rest,) = serve(runs, [replace(long, have=part.tokens)])
    assert rest.work.prefill == 0
    assert same(joined([part, rest]), serve(engine(eos=False), [long])[0])


def test_cancelling_what_is_finished_but_not_fetched_hands_it_over():
    runs = engine(context=16)
    runs.submit("bad", Draw(prompt(40), 0, WARM, 4))
    assert isinstance(runs.cancel("bad"), Failure)
    assert runs.poll() == []


def test_closing_forgets_everything():
    runs = engine(eos=False)
    runs.submit("a", Draw(prompt(4), 0, WARM, 3))
    runs.submit("b", Draw(prompt(600), 0, WARM, 3))
    runs.close()
    assert runs.poll() == []
    (reply,) = serve(runs, [Draw(prompt(4), 0, WARM, 3)])
    assert same(reply, serve(engine(eos=False), [Draw(prompt(4), 0, WARM, 3)])[0])
