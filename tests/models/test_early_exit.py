"""The controller's labels and decisions in closed form, and the engine on toy models against plain forward passes."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from transformers import DynamicCache

from extratime.models.early_exit import CONTINUE, EXIT, STOP, Controller, EarlyExit, decide, labels, loss
from extratime.models.engines.early_exit import EarlyExitEngine, copy_state
from extratime.models.load import Loaded
from extratime.models.request import Draw, Failure, Probe, Prompt, Sampling, Score, Work

GREEDY = Sampling(0)


def controller(said, hidden=32, seed=1):
    """One with translators and a classifier of some size, so that it acts differently from token to token."""
    torch.manual_seed(seed)
    made = Controller(said, hidden)
    torch.nn.init.normal_(made.up, std=0.1)
    torch.nn.init.normal_(made.classifier.weight, std=0.5)
    return made.eval()


def always(action, said):
    """A controller that says the same at every exit with a probability near 1, whatever it reads."""
    made = Controller(said, 32)
    made.forward = lambda hidden, norm, exit: (
        Controller.forward(made, hidden, norm, exit)[0],
        torch.eye(3)[action].expand(*hidden.shape[:-1], 3) * 20,
    )
    return made.eval()


def engine(control, kind="llama", layers=4, eos=False, **shape):
    model = tiny.model(kind, layers=layers, eos=eos, **shape)
    reads = tiny.tokenizer()
    if not eos:
        reads.eos_token = None
    return EarlyExitEngine(Loaded(model, reads, "tiny", "tiny", controller=control))


OFF = EarlyExit((1, 2, 3), rank=4, exit=None, stop=None)
EAGER = EarlyExit((1, 2, 3), rank=4, exit=0.4, stop=None)


# --- labels, loss and decision


def test_labels_of_hand_made_cases():
    #        none  first  late  early, then wrong  only the model itself  not at first, then at each
    right = [
        [0, 1, 0, 1, 0, 0],
        [0, 1, 0, 0, 0, 1],
        [0, 1, 1, 0, 0, 1],
        [0, 1, 1, 0, 1, 1],  # the model's own end
    ]
    s, e, c = STOP, EXIT, CONTINUE
    wanted = [[s, e, c, e, c, c], [s, e, c, e, c, e], [s, e, e, e, c, e]]
    assert labels(torch.tensor(right).bool()).tolist() == wanted


def test_later_exit_points_weigh_more():
    logits = torch.randn(3, 5, 3)
    wanted = torch.randint(0, 3, (3, 5))
    each = [torch.nn.functional.cross_entropy(logits[i], wanted[i]).item() for i in range(3)]
    assert loss(logits, wanted).item() == pytest.approx((1 * each[0] + 2 * each[1] + 3 * each[2]) / 6, rel=1e-5)


@pytest.mark.parametrize(
    ("chances", "exit", "stop", "wanted"),
    [
        ((0.2, 0.7, 0.1), 0.6, 0.1, EXIT),
        ((0.0, 1.0, 0.0), 0.99, 0.1, EXIT),
        ((0.0, 1.0, 0.0), 1, 0.1, CONTINUE),  # strictly above
        ((0.2, 0.7, 0.1), None, 0.1, CONTINUE),  # a stop that is not the likeliest does not act
        ((0.2, 0.7, 0.1), 100, 0.1, CONTINUE),
        ((0.6, 0.3, 0.1), 0.0, 0.5, STOP),
        ((0.6, 0.3, 0.1), 0.0, None, CONTINUE),
        ((0.6, 0.3, 0.1), 0.0, 1, CONTINUE),
        ((0.1, 0.2, 0.7), 0.0, 0.0, CONTINUE),
    ],
)
def test_an_action_needs_to_be_the_likeliest_and_above_its_threshold(chances, exit, stop, wanted):
    assert decide(torch.tensor(chances, dtype=torch.float64).log(), EarlyExit((1,), 1, exit, stop)) == wanted


@pytest.mark.parametrize("wrong", [{"exits": ()}, {"exits": (0, 2)}, {"exits": (3, 3)}, {"rank": 0}, {"exit": -0.1}])
def test_a_controller_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=r"exits must be|early exit needs"):
        EarlyExit(**wrong)


def test_an_untrained_controller_reads_the_model_s_own_head():
    model, hidden = tiny.model(), torch.randn(2, 5, 32)
    state, _ = Controller(EarlyExit((1, 2), 4), 32)(hidden, model.model.norm)
    assert torch.equal(state, model.model.norm(hidden))


def test_one_exit_point_is_a_part_of_all_and_the_classifier_moves_no_translator():
    made, norm = controller(EAGER), tiny.model().model.norm
    hidden = torch.randn(3, 5, 32)
    states, told = made(hidden, norm)
    for i in range(3):
        state, said = made(hidden[i], norm, i)
        torch.testing.assert_close(state, states[i])
        torch.testing.assert_close(said, told[i])
    told.sum().backward()
    assert made.down.grad is None and made.up.grad is None and made.classifier.weight.grad is not None
    assert [part.requires_grad for part in made(hidden, norm, learns="translators")] == [True, False]
    assert [part.requires_grad for part in made(hidden.detach(), norm, learns="classifier")] == [False, True]


# --- the engine


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_with_the_thresholds_off_it_is_the_model_bit_by_bit(kind):
    for said in (OFF, EarlyExit((1, 2, 3), 4, 100, 100)):
        on = engine(controller(said), kind)
        draws = [Draw(tiny.prompt(n, seed=n), 0, GREEDY, 12) for n in (1, 2, 9, 30)]
        for draw, reply in zip(draws, tiny.serve(on, draws), strict=True):
            ids = torch.tensor([draw.prompt.ids])
            plain = on._model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
            assert list(reply.tokens) == plain and set(reply.skipped) == {0}
            assert list(reply.logprobs) == by_the_library(on._model, draw.prompt.ids, plain)


def by_the_library(model, prompt, tokens):
    """Log-probabilities of tokens, from the library's own passes over the same pieces."""
    cache, found = DynamicCache(), []
    with torch.inference_mode():
        if len(prompt) > 1:
            model(torch.tensor([prompt[:-1]]), past_key_values=cache, use_cache=True)
        for before, token in zip((prompt[-1], *tokens), tokens, strict=False):
            logits = model(torch.tensor([[before]]), past_key_values=cache, use_cache=True).logits[0, -1:].float()
            found.append((logits[0, token] - logits.logsumexp(-1)[0]).item())
    return found


def by_hand(model, control, said, prompt, count):
    """Tokens and layers left out of a greedy path, with all states recomputed and kept by hand: [layer][token]."""
    core, n = model.model, len(model.model.layers)
    keys, values, ids, tokens, skipped = [[] for _ in range(n)], [[] for _ in range(n)], list(prompt), [], []
    with torch.inference_mode():
        for at in range(len(prompt) + count - 1):
            hidden = core.embed_tokens(torch.tensor([[ids[at]]]))
            rotary = core.rotary_emb(hidden, torch.tensor([[at]]))
            gone, state = None, None
            for number, layer in enumerate(core.layers, 1):
                seen = layer.input_layernorm(hidden)
                key, value = turned(layer.self_attn, seen, rotary)
                keys[number - 1].append(key)
                values[number - 1].append(value)
                if gone is not None:
                    continue
                hidden = through(layer, hidden, seen, rotary, keys[number - 1], values[number - 1])
                if at >= len(prompt) and number in said.exits:
                    state, told = control(hidden, core.norm, said.exits.index(number))
                    gone = number if decide(told[0, 0], said) == EXIT else None
            if at >= len(prompt) - 1:
                token = model.lm_head(core.norm(hidden) if gone is None else state)[0, 0].argmax().item()
                tokens.append(token)
                ids.append(token)
                skipped.append(0 if gone is None else n - gone)
    return tokens, skipped


def turned(attention, seen, rotary):
    """A token's key and value, [heads, head_dim]: the key turned by its place, pair by pair."""
    key = attention.k_proj(seen).view(-1, attention.head_dim)
    value = attention.v_proj(seen).view(-1, attention.head_dim)
    half = attention.head_dim // 2
    cos, sin = (part[0, 0, :half] for part in rotary)
    a, b = key[:, :half], key[:, half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1), value


def through(layer, hidden, seen, rotary, keys, values):
    """A decoder layer of a single token that sees the keys and values of those before it, and its own."""
    attention = layer.self_attn
    half = attention.head_dim // 2
    cos, sin = (part[0, 0, :half] for part in rotary)
    query = attention.q_proj(seen).view(-1, attention.head_dim)
    a, b = query[:, :half], query[:, half:]
    query = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    group = len(query) // len(keys[0])
    out = []
    for head in range(len(query)):
        k = torch.stack([key[head // group] for key in keys])
        v = torch.stack([value[head // group] for value in values])
        out.append((k @ query[head] / math.sqrt(attention.head_dim)).softmax(-1) @ v)
    hidden = hidden + attention.o_proj(torch.cat(out)[None, None])
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_path_is_the_one_worked_out_by_hand_with_copied_states(kind):
    control = controller(EAGER)
    on = engine(control, kind)
    for n in (1, 7, 20):
        draw = Draw(tiny.prompt(n, seed=n), 0, GREEDY, 15)
        (reply,) = tiny.serve(on, [draw])
        tokens, skipped = by_hand(on._model, control, EAGER, draw.prompt.ids, 15)
        assert (list(reply.tokens), list(reply.skipped)) == (tokens, skipped)
        assert len(set(skipped)) > 1 and skipped[0] == 0


def test_copied_keys_and_values_are_the_projections_of_the_state():
    model, hidden = tiny.model("qwen2", layers=3), torch.randn(1, 1, 32)
    layer, cache = model.model.layers[2], DynamicCache()
    rotary = model.model.rotary_emb(hidden, torch.tensor([[5]]))
    with torch.inference_mode():
        copy_state(layer, hidden, rotary, cache)
        key, value = turned(layer.self_attn, layer.input_layernorm(hidden), rotary)
    torch.testing.assert_close(cache.layers[2].keys[0, :, 0], key)
    torch.testing.assert_close(cache.layers[2].values[0, :, 0], value)
    assert [part.get_seq_length() for part in cache.layers] == [0, 0, 1]


def test_exit_at_every_token_leaves_all_but_the_first_after_the_first_exit():
    said = EarlyExit((1, 3), rank=4, exit=0.9)
    (reply,) = tiny.serve(engine(always(EXIT, said)), [Draw(tiny.prompt(6), 0, GREEDY, 9)])
    assert reply.skipped == (0, *[3] * 8) and len(reply.tokens) == 9 and not reply.stopped


def test_a_stop_comes_after_the_first_token_and_ends_the_path_for_good():
    said = EarlyExit((1, 3), rank=4, stop=0.9)
    on = engine(always(STOP, said))
    draw = Draw(tiny.prompt(6), 0, GREEDY, 9)
    (reply,) = tiny.serve(on, [draw])
    assert (len(reply.tokens), reply.skipped, reply.stopped, reply.eos) == (1, (0, 3), True, False)
    assert reply.work == Work(5 + 1, 1, 0, tiny.pairs(0, 5) + 6 + 7, 6, 3, 3 * 7)
    (more,) = tiny.serve(on, [replace(draw, have=reply.tokens)])
    assert (more.tokens, more.skipped, more.stopped) == ((), (3,), True)
    (one,) = tiny.serve(on, [replace(draw, max_tokens=1)])
    assert one.tokens == reply.tokens and not one.stopped
    (none,) = tiny.serve(on, [replace(draw, max_tokens=1, have=reply.tokens)])
    assert none.tokens == () and not none.stopped and none.work == Work()


@pytest.mark.parametrize("law", [GREEDY, Sampling(1.0), Sampling(0.7, top_p=0.9)], ids=str)
def test_a_path_read_in_parts_is_the_path_read_at_once(law):
    said = replace(EAGER, stop=0.75)
    for seed in range(12):
        draw = Draw(tiny.prompt(5 + seed, seed), seed, law, 24)
        (whole,) = tiny.serve(engine(controller(said)), [draw])
        for fresh in (True, False):
            on, parts, have = engine(controller(said)), [], ()
            for length in (1, 2, 9, 24):
                on = engine(controller(said)) if fresh else on
                (part,) = tiny.serve(on, [replace(draw, have=have, max_tokens=length)])
                have += part.tokens
                parts.append(part)
                if part.stopped:
                    break
            assert have == whole.tokens and parts[-1].stopped == whole.stopped
            assert sum((part.logprobs for part in parts), ()) == whole.logprobs
            assert sum((part.skipped for part in parts), ()) == whole.skipped


def test_draws_do_not_hang_on_what_was_read_before():
    draws = [Draw(tiny.prompt(5 + i % 2, i % 2), i, Sampling(), 12) for i in range(6)]
    together = tiny.serve(engine(controller(EAGER)), draws)
    for draw, reply in zip(draws, together, strict=True):
        (alone,) = tiny.serve(engine(controller(EAGER)), [draw])
        assert replace(alone, work=Work()) == replace(reply, work=Work())


def test_a_response_ends_where_the_model_ends_it():
    on, draw = engine(always(EXIT, EarlyExit((1,), 4, 0.9)), eos=True), Draw(tiny.prompt(6), 0, GREEDY, 9)
    on._ends = frozenset(range(264))
    (reply,) = tiny.serve(on, [draw])
    assert reply.eos and reply.tokens == () and reply.skipped == (0,) and not reply.stopped


# --- counting


def test_work_is_counted_layer_by_layer():
    on, draw = engine(controller(EAGER)), Draw(tiny.prompt(8), 3, GREEDY, 10)
    (first,) = tiny.serve(on, [draw])
    seen = [8 + i for i in range(10)]  # context of each pass, its own token included
    skipped_pairs = sum(layers * n for layers, n in zip(first.skipped, seen, strict=True))
    work = Work(7, 10, 0, tiny.pairs(0, 7) + sum(seen), sum(seen), sum(first.skipped), skipped_pairs)
    assert first.work == work and sum(first.skipped) > 0
    (again,) = tiny.serve(on, [replace(draw, seed=4)])
    assert again.work == replace(work, prefill=0, cached=7, pairs=sum(seen))
    (more,) = tiny.serve(on, [replace(draw, have=first.tokens, max_tokens=11)])
    left_out = more.skipped[0]
    assert more.work == Work(0, 1, 17, 18, 18, left_out, left_out * 18)
    assert on.counts == first.work + again.work + more.work
    (fresh,) = tiny.serve(engine(controller(EAGER)), [replace(draw, have=first.tokens, max_tokens=11)])
    assert (fresh.work.prefill, fresh.work.cached, fresh.work.decode) == (17, 0, 1)
    replayed = first.skipped[1:] + more.skipped  # the first pass of a path leaves nothing out
    assert fresh.work.skipped == sum(replayed) and fresh.tokens == more.tokens


def test_cancelling_before_the_start_answers_nothing_and_after_it_what_was_read():
    on = engine(controller(EAGER))
    on.submit("a", Draw(tiny.prompt(4), 0, GREEDY, 9))
    assert on.cancel("a") is None and on.poll() == [] and on.counts == Work()
    on.submit("b", Draw(tiny.prompt(4), 0, GREEDY, 9))
    with torch.inference_mode():
        on._advance(on._rows["b"])
    part = on.cancel("b")
    assert len(part.tokens) == 1 and part.work.decode == 1 and on.poll() == []


def test_the_sizes_tell_what_a_layer_left_out_saves():
    on = engine(controller(EAGER))
    h, inner, heads, kv, head = 32, 64, 4, 2, 8
    layer = 2 * h + h * head * (2 * heads + 2 * kv) + 3 * h * inner
    shape = on.profile.shape
    assert shape.skippable == layer - h - 2 * h * kv * head
    beside = 3 * 2 * 4 * h + 3 * h
    assert shape.parameters == 4 * layer + h + 264 * h + beside and shape.layers == 4


# --- what is refused


def test_scores_questions_and_prompts_of_nothing_are_refused():
    on = engine(controller(EAGER), context=16)
    drawn = Prompt("a", (1,))
    for request in (Score(drawn, "b", role="policy"), Probe(None, "?", ("y",))):
        with pytest.raises(ValueError, match=r"only draws; it cannot answer a (Score|Probe)"):
            on.submit("t", request)
    assert not on.profile.scores and not on.profile.probes
    nothing, long = tiny.serve(on, [Draw(Prompt("", ()), 0, GREEDY, 3), Draw(tiny.prompt(16), 0, GREEDY, 3)])
    assert isinstance(nothing, Failure) and "no tokens" in nothing.error
    assert isinstance(long, Failure) and "shorten the prompt" in long.error
    (full,) = tiny.serve(on, [Draw(tiny.prompt(10), 0, GREEDY, 30)])
    assert len(full.tokens) == 6


def test_models_that_cannot_be_taken_apart_are_refused():
    with pytest.raises(ValueError, match=r"exits \[1, 2, 3\] must lie before the last of the model's 3 layers"):
        engine(controller(EAGER), layers=3)
    model = tiny.model(layers=4)
    model.config.model_type = "gemma"
    loaded = Loaded(model, tiny.tokenizer(), "tiny", "tiny", controller=controller(EAGER))
    with pytest.raises(ValueError, match="layer by layer, which is done for llama, mistral, qwen2, qwen3 only"):
        EarlyExitEngine(loaded)
    with pytest.raises(ValueError, match="one draw at a time"):
        EarlyExitEngine(replace(loaded, adapters={"a": "b"}))
    with pytest.raises(ValueError, match="one draw at a time"):
        EarlyExitEngine(loaded, slots=4)
