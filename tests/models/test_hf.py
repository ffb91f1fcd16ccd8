"""The `hf` engine draws what the model says: the same tokens, laws and counts as plain forward passes."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from tiny import engine, joined, logits_of, model, prompt, same, serve, tokenizer
from transformers import MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from extratime.models.engines.hf import HFEngine
from extratime.models.load import Loaded
from extratime.models.request import Draw, Failure, Prompt, Sampling

GREEDY = Sampling(0.0)
TOKENIZER = tokenizer()
WARM = Sampling(0.8, top_p=0.9, top_k=40)


def ragged(many, longest=40):
    return [prompt(1 + (7 * i) % longest, seed=i) for i in range(many)]


# Greedy


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(("many", "slots"), [(1, 1), (16, 16), (16, 3)])
def test_greedy_is_generate(kind, many, slots):
    runs = engine(kind, slots=slots, scale=0.15)
    asks, length = ragged(many), 24
    replies = serve(runs, [Draw(ask, 0, GREEDY, length) for ask in asks])
    for ask, reply in zip(asks, replies, strict=True):
        ids = torch.tensor([ask.ids])
        with torch.inference_mode():
            out = runs._run.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length
            )
        wanted = out[0, len(ask.ids) :].tolist()
        assert [*reply.tokens, *([263] if reply.eos else [])] == wanted
        # Half a character at the end is not told.
        said = TOKENIZER.decode(reply.tokens, skip_special_tokens=True)
        assert reply.text == said.removesuffix("\N{REPLACEMENT CHARACTER}")


def test_an_end_token_ends_and_is_counted():
    runs = engine(scale=0.3)
    replies = serve(runs, [Draw(prompt(5), seed, Sampling(1.5), 400) for seed in range(16)])
    ended = [r for r in replies if r.eos]
    assert ended
    for reply in ended:
        assert (
            len(reply.ends) == len(reply.logprobs) == len(reply.tempered) == len(reply.tokens) + 1 == reply.work.decode
        )
        assert 263 not in reply.tokens
        assert "im_end" not in reply.text


def test_every_listed_end_token_ends():
    made = model(scale=0.3)
    made.generation_config.eos_token_id = [65, 66]
    runs = HFEngine(Loaded(made, tokenizer(), "tiny", "tiny"))
    replies = serve(runs, [Draw(prompt(5), seed, Sampling(), 200) for seed in range(16)])
    assert any(r.eos for r in replies)
    assert not {65, 66, 263} & {t for r in replies for t in r.tokens}


# Sampling


def test_first_tokens_follow_the_exact_law():
    runs, ask, many = engine(scale=0.15, slots=64), prompt(9), 3000
    replies = serve(runs, [Draw(ask, seed, Sampling(0.9), 1) for seed in range(many)])
    wanted = (logits_of(runs._run.model, ask.ids)[-1] / 0.9).double().softmax(-1) * many
    tokens = [r.tokens[0] if r.tokens else 263 for r in replies]
    counts = torch.bincount(torch.tensor(tokens), minlength=264).double()
    often = wanted >= 5
    counts, wanted = [torch.cat([x[often], x[~often].sum()[None]]) for x in (counts, wanted)]
    assert chisquare(counts.numpy(), wanted.numpy()).pvalue > 1e-3


def test_second_tokens_follow_the_exact_law_given_the_first():
    runs, ask, many = engine(scale=0.1, slots=64), prompt(4), 4000
    law = Sampling(1.0, top_k=3)
    replies = serve(runs, [Draw(ask, seed, law, 2) for seed in range(many)])
    first = replies[0].tokens[:1]
    seconds = [r.tokens[1] if len(r.tokens) > 1 else 263 for r in replies if r.tokens[:1] == first]
    best = logits_of(runs._run.model, ask.ids + first)[-1].topk(3)
    counts = [seconds.count(i) for i in best.indices.tolist()]
    assert sum(counts) == len(seconds) > 500
    assert chisquare(counts, (best.values.double().softmax(-1) * len(seconds)).numpy()).pvalue > 1e-3


def test_log_probabilities_are_those_of_a_plain_pass():
    runs, ask = engine("qwen2", scale=0.15), prompt(11)
    (reply,) = serve(runs, [Draw(ask, 5, Sampling(0.7), 20)])
    logits = logits_of(runs._run.model, ask.ids + reply.tokens)[len(ask.ids) - 1 : -1]
    chosen = torch.tensor(reply.tokens)[:, None]
    for said, scaled in ((reply.logprobs, logits), (reply.tempered, logits / 0.7)):
        wanted = scaled.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
        assert list(said[: len(wanted)]) == pytest.approx(wanted, abs=1e-4)
    plain = serve(runs, [Draw(ask, 5, Sampling(), 20)])[0]
    assert plain.logprobs == plain.tempered


# One path, however it is read


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_path_does_not_depend_on_how_it_is_read(kind):
    asks = ragged(9, longest=30)
    laws = [WARM, Sampling(), GREEDY]
    draws = [Draw(ask, 100 + i, laws[i % 3], 40) for i, ask in enumerate(asks)]
    whole = serve(engine(kind, slots=16), draws)
    alone = [serve(engine(kind, slots=1), [draw])[0] for draw in draws]
    assert all(same(a, b) for a, b in zip(whole, alone, strict=True))
    runs, parts = engine(kind, slots=4), [[] for _ in draws]
    for limit in (1, 2, 9, 23, 40):
        going = [i for i, got in enumerate(parts) if not (got and got[-1].eos)]
        have = [sum((p.tokens for p in parts[i]), ()) for i in going]
        replies = serve(runs, [replace(draws[i], max_tokens=limit, have=h) for i, h in zip(going, have, strict=True)])
        for i, reply in zip(going, replies, strict=True):
            parts[i].append(reply)
    assert all(same(joined(p), w) for p, w in zip(parts, whole, strict=True))


def test_a_path_that_was_forgotten_is_read_on_all_the_same():
    draw = Draw(prompt(20), 3, WARM, 30)
    (whole,) = serve(engine(), [draw])
    (first,) = serve(engine(), [replace(draw, max_tokens=12)])
    (rest,) = serve(engine(kv_bytes=1), [replace(draw, have=first.tokens)])
    assert same(joined([first, rest]), whole)


def test_slots_and_company_change_no_path():
    asks = ragged(20)
    draws = [Draw(ask, i, WARM, 3 + (11 * i) % 30) for i, ask in enumerate(asks)]
    few, many = serve(engine(slots=3), draws), serve(engine(slots=20), draws)
    assert all(same(a, b) for a, b in zip(few, many, strict=True))


def test_rows_that_outgrow_their_memory_wait_and_lose_nothing():
    draws = [Draw(ask, i, WARM, 130) for i, ask in enumerate(ragged(8, longest=20))]
    roomy = engine(slots=8, eos=False)
    small = engine(slots=8, kv_bytes=2 * 200 * 256, eos=False)
    held = []

    def look(_, args, asked):
        if asked["input_ids"].shape[1] == 1:
            held.append(len(asked["input_ids"]) * asked["past_key_values"].layers[0].window.columns)

    small._run.model.register_forward_pre_hook(look, with_kwargs=True)
    assert all(same(a, b) for a, b in zip(serve(small, draws), serve(roomy, draws), strict=True))
    assert 100 < max(held) <= 200


def test_text_as_given_is_read_like_its_tokens():
    runs = engine(eos=False)
    ask = runs.encode("ab|c")
    (first,) = serve(runs, [Draw(ask, 2, GREEDY, 6)])
    said = "12\n\n"
    have = tuple(tokenizer()(said).input_ids)
    by_ids, by_text = serve(
        runs, [Draw(ask, 2, GREEDY, 12, have=have), Draw(Prompt("ab|c"), 2, GREEDY, 12, have_text=said)]
    )
    assert same(by_ids, by_text)
    assert len(by_ids.tokens) == 12 - len(have)
    assert first.tokens != by_ids.tokens


# Stops


def stop_of(reply, tokens):
    """The text that some consecutive tokens of a reply say, and the number of tokens up to its end."""
    begin, end = tokens
    return reply.text[reply.ends[begin - 1] : reply.ends[end - 1]], end


@pytest.mark.parametrize("name", ["until", "pause"])
def test_stops_that_straddle_tokens_are_found(name):
    runs = engine(eos=False, scale=0.15)
    base = Draw(prompt(7), 11, Sampling(0.5), 60)
    (whole,) = serve(runs, [base])
    for span in ((3, 5), (10, 14), (20, 23)):
        stop, end = stop_of(whole, span)
        if not stop or whole.text.find(stop) != whole.ends[span[0] - 1]:
            continue
        (cut,) = serve(runs, [replace(base, **{name: (stop,)})])
        assert cut.tokens == whole.tokens[:end]
        assert cut.text.endswith(stop)
        return
    pytest.fail("no stop string to try")


def test_a_pause_already_passed_counts_no_more():
    runs = engine(eos=False, scale=0.15)
    base = Draw(prompt(7), 11, Sampling(0.5), 60)
    (whole,) = serve(runs, [base])
    stop = whole.text[4]
    read, have = [], ()
    while len(have) < 60:
        (part,) = serve(runs, [replace(base, have=have, pause=(stop,))])
        read.append(part)
        have += part.tokens
    assert same(joined(read), whole)
    assert len(read) > 1
    assert all(part.text.endswith(stop) and stop not in part.text[:-1] for part in read[:-1])


def test_an_end_token_inside_the_prompt_is_just_a_token():
    runs = engine(eos=True, scale=0.15)
    ask = Prompt("", (*prompt(5).ids, 263, *prompt(4, 1).ids))
    (reply,) = serve(runs, [Draw(ask, 0, GREEDY, 5)])
    assert reply.tokens[0] == logits_of(runs._run.model, ask.ids)[-1].argmax()
    assert reply.tokens
    (ended,) = serve(runs, [Draw(Prompt("", (*ask.ids, 263)), 0, GREEDY, 5)])
    assert ended.tokens[0] == logits_of(runs._run.model, (*ask.ids, 263))[-1].argmax()


# Kinds of models


def test_models_that_keep_another_state_are_refused():
    config = MambaConfig(vocab_size=264, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ValueError, match=r"plain attention layers, but mamba.*vLLM"):
        HFEngine(Loaded(MambaForCausalLM(config), tokenizer(), "mamba", "mamba"))
    made = model()
    made.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="linear_attention"):
        HFEngine(Loaded(made, tokenizer(), "mixed", "mixed"))


def test_a_sliding_window_is_where_the_context_ends():
    config = MistralConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=24,
        initializer_range=0.15,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    made = MistralForCausalLM(config).eval()
    made.generation_config.pad_token_id = 261
    runs = HFEngine(Loaded(made, tokenizer(), "mistral", "mistral"))
    assert runs.profile.max_context == 24
    long, fine = serve(runs, [Draw(prompt(n), 0, GREEDY, 50) for n in (30, 10)])
    assert isinstance(long, Failure) and "sliding window is 24" in long.error
    ids = torch.tensor([prompt(10).ids])
    wanted = made.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=14)[0, 10:]
    assert list(fine.tokens) == wanted.tolist()


def test_bfloat16_runs_and_stays_near():
    made = model("qwen2", scale=0.1)
    exact = logits_of(made, prompt(12).ids)[-1].log_softmax(-1)
    runs = engine("qwen2", scale=0.1, dtype=torch.bfloat16, eos=False)
    assert runs.profile.shape.dtype_bytes == 2
    replies = serve(runs, [Draw(prompt(12), seed, Sampling(), 8) for seed in range(4)])
    for reply in replies:
        assert all(math.isfinite(x) and x <= 0 for x in reply.logprobs)
        assert reply.logprobs[0] == pytest.approx(exact[reply.tokens[0]].item(), abs=0.1)


def test_the_shape_is_the_models():
    shape = engine("qwen2", hidden=32, layers=3).profile.shape
    made = model("qwen2", hidden=32, layers=3)
    assert shape.parameters == sum(p.numel() for p in made.parameters()) - made.get_input_embeddings().weight.numel()
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim, shape.dtype_bytes) == (3, 4, 2, 8, 4)
