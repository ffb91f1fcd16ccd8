"""Folders of published masked-diffusion models, read as plain architectures: names, tokenizers, shifted logits."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from extratime.evaluate.grid import EngineSpec
from extratime.models.engines.open import open_engine
from extratime.models.load import load, load_tokenizer
from extratime.models.masked import head_of
from extratime.models.request import Draw
from extratime.models.unmasking import Unmasking

MASK = 262
NAMES = [
    ("model.layers.", "model.transformer.blocks."),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ff_norm"),
    ("self_attn.o_proj", "attn_out"),
    ("self_attn.", ""),
    ("mlp.gate_proj", "ff_proj"),
    ("mlp.down_proj", "ff_out"),
    ("mlp.", ""),
    ("model.embed_tokens", "model.transformer.wte"),
    ("model.norm", "model.transformer.ln_f"),
    ("lm_head", "model.transformer.ff_out"),
]
LLADA = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "mlp_hidden_size": 64,
    "vocab_size": 264,
    "embedding_size": 264,
    "max_sequence_length": 96,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "mask_token_id": MASK,
    "eos_token_id": 263,
    "weight_tying": False,
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "include_bias": False,
}


def told(folder, said):
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def named(name):
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


def save_llada(folder, **changes):
    """Llama's weights and settings under LLaDA's names, and code of its own that must not run."""
    tiny.save(folder)
    file = folder / "model.safetensors"
    save_file({named(name): weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    (folder / "own.py").write_text("raise SystemExit('this was run')")
    return told(folder, LLADA | changes)


def save_dream(folder, **changes):
    """Qwen2's weights and settings under Dream's name, and a tokenizer of its own."""
    tiny.save(folder, kind="qwen2")
    core = json.loads((folder / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(core["model"]["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in core["model"]["merges"]))
    (folder / "tokenizer.json").unlink()
    (folder / "own.py").write_text("raise SystemExit('this was run')")
    special = {str(token["id"]): {"content": token["content"], "special": True} for token in core["added_tokens"]}
    said = {
        "auto_map": {"AutoTokenizer": ["own.DreamTokenizer", None]},
        "tokenizer_class": "DreamTokenizer",
        "eos_token": "<|im_end|>",
        "added_tokens_decoder": special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    config = json.loads((folder / "config.json").read_text())
    theirs = {"model_type": "Dream", "architectures": ["DreamModel"], "auto_map": {"AutoConfig": "own.Config"}}
    return told(folder, config | theirs | {"mask_token_id": MASK} | changes)


def engine(folder):
    return open_engine(str(folder), {}, EngineSpec(kind="diffusion", device="cpu")).engine


def bidirectional(model, ids):
    """Logits [tokens, vocabulary] of a plain architecture without its causal mask."""
    with torch.inference_mode():
        return model(torch.tensor([ids]), attention_mask=torch.zeros(1, 1, len(ids), len(ids))).logits[0]


def asked(on, ids, places):
    with torch.inference_mode():
        return on._logits([ids], places)[0]


IDS = [5, 6, 7, MASK, MASK, 8, MASK]


def test_llada_is_llama_by_other_names(tmp_path):
    on = engine(save_llada(tmp_path))
    plain = tiny.model(context=96)
    plain.config.rope_parameters["rope_theta"] = 500000.0
    plain.model.rotary_emb = type(plain.model.rotary_emb)(plain.config)
    wanted = bidirectional(plain, IDS)[[3, 6]]
    wanted[:, MASK] = -torch.inf
    torch.testing.assert_close(asked(on, IDS, [3, 6]), wanted)
    assert (on._mask, on._ends, on.profile.max_context) == (MASK, {263}, 96)


def test_dream_is_qwen2_whose_logits_are_about_the_next_place(tmp_path):
    on = engine(save_dream(tmp_path))
    wanted = bidirectional(tiny.model(kind="qwen2"), IDS)[[0, 0, 2, 5]]
    wanted[:, MASK] = -torch.inf
    torch.testing.assert_close(asked(on, IDS, [0, 1, 3, 6]), wanted)


def test_a_dream_tokenizer_is_read_as_the_qwen2_tokenizer_that_it_copies(tmp_path):
    mine, plain = load_tokenizer(save_dream(tmp_path / "dream")), tiny.tokenizer()
    assert mine("Hi abc<|im_end|>").input_ids == plain("Hi abc<|im_end|>").input_ids
    mine.save_pretrained(tmp_path / "kept")
    assert load_tokenizer(tmp_path / "kept")("Hi abc").input_ids == plain("Hi abc").input_ids


def test_a_plain_folder_says_itself_that_its_logits_are_shifted(tmp_path):
    config = json.loads((tiny.save(tmp_path) / "config.json").read_text())
    plain, shifted = (engine(told(tmp_path, config | {"mask_token_id": MASK} | more)) for more in ({}, SHIFTED))
    torch.testing.assert_close(asked(shifted, IDS, [3, 6]), asked(plain, IDS, [2, 5]))


SHIFTED = {"shift_logits": True}


@pytest.mark.parametrize("save", [save_llada, save_dream])
def test_a_published_folder_draws(tmp_path, save):
    on = engine(save(tmp_path))
    on.submit("t", Draw(on.encode("ab"), 3, Unmasking(length=8, block=4, steps=4), 8))
    [(_, reply)] = on.poll()
    assert reply.eos or len(reply.tokens) == 8
    assert MASK not in reply.tokens


def test_tied_weights_are_read(tmp_path):
    folder = save_llada(tmp_path, weight_tying=True)
    weights = load_file(folder / "model.safetensors")
    del weights["model.transformer.ff_out.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = load(folder, head=head_of(folder)).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"attention_layer_norm": True}, "LLaDA with attention_layer_norm True"),
        ({"include_qkv_bias": True}, "LLaDA with include_qkv_bias True"),
        ({"architectures": ["LLaDAMoEModel"]}, "LLaDAMoEModel of type 'llada' is known from its own code alone"),
        ({"model_type": "sdar", "architectures": ["SDAR"]}, "SDAR of type 'sdar' is known from its own code alone"),
        ({"mask_token_id": 263}, "the mask token 263 of .* ends responses"),
        ({"mask_token_id": 264}, "the mask token 264 of .* is none of its 264 tokens"),
        ({"d_model": 32, "n_layers": 3}, "lacks weights"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match):
        engine(save_llada(tmp_path, **changes))


def test_folders_that_need_nothing_special_are_left_to_transformers(tmp_path):
    assert head_of(tiny.save(tmp_path)) is AutoModelForCausalLM
    assert head_of(tmp_path / "nowhere") is AutoModelForCausalLM
    config = json.loads((tmp_path / "config.json").read_text())
    assert head_of(told(tmp_path, config | {"auto_map": {"AutoModel": "own.Model"}})) is AutoModelForCausalLM
