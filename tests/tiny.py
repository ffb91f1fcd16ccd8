"""Toy Hugging Face models and tokenizers, built in memory: quick enough for any test, real enough for any engine."""

import random
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from extratime.models.engines.hf import HFEngine
from extratime.models.load import Loaded
from extratime.models.request import Drawn, Prompt, Work

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MERGES = [("a", "b"), ("ab", "c"), ("1", "2"), ("Ċ", "Ċ"), ("Ġ", "Ġ")]


def tokenizer(chat=True):
    """Bytes, a handful of merges, and ChatML's special tokens: 256 + 5 + 3 = 264 ids; `<|im_end|>` ends."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    for left, right in MERGES:
        vocabulary[left + right] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=512
    )
    if chat:
        fast.chat_template = CHATML
    return fast


def model(kind="llama", seed=0, hidden=32, layers=2, context=512, vocabulary=264, scale=0.3, eos=True):
    """A random causal model; `scale` is the spread of its weights (larger: more peaked), `eos` whether it may end."""
    torch.manual_seed(seed)
    build, shape = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}[kind]
    config = shape(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=scale,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=263 if eos else None,
        pad_token_id=261,
    )
    made = build(config).eval()
    made.generation_config.eos_token_id = 263 if eos else None
    made.generation_config.pad_token_id = 261
    return made


def save(folder, chat=True, **shape) -> Path:
    """A model folder as a user would have it."""
    folder = Path(folder)
    model(**shape).save_pretrained(folder)
    tokenizer(chat).save_pretrained(folder)
    return folder


def save_adapter(base, folder, invocation=None, seed=1) -> Path:
    """A LoRA on the model folder `base` with random, non-zero weights; activated by token ids if they are given."""
    plain = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], alora_invocation_tokens=invocation
    )
    adapted = get_peft_model(plain, config)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return Path(folder)


def engine(kind="llama", slots=8, kv_bytes=None, dtype=torch.float32, eos=True, **shape):
    """The engine on a toy model; nothing ends a response where `eos` is off."""
    reads = tokenizer()
    if not eos:
        reads.eos_token = None
    made = model(kind, eos=eos, **shape).to(dtype)
    return HFEngine(Loaded(made, reads, "tiny", "tiny"), slots, kv_bytes)


def serve(engine, requests):
    """Submit requests and wait for all replies; returns them in order."""
    for ticket, request in enumerate(requests):
        engine.submit(ticket, request)
    replies = {}
    while answered := engine.poll():
        replies.update(answered)
    return [replies[ticket] for ticket in range(len(requests))]


def prompt(length, seed=0):
    """A random prompt of plain ASCII, in ids of the toy tokenizer."""
    rng = random.Random(seed)
    return Prompt("", tuple(rng.randrange(94) for _ in range(length)))


def logits_of(model, ids):
    """Logits [tokens, vocabulary] of a plain forward pass."""
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()


def same(one, other):
    """Whether two replies tell the same path, whatever it cost."""
    for mine, yours in ((one.logprobs, other.logprobs), (one.tempered, other.tempered)):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(yours), atol=2e-4, rtol=0)
    bare = {"work": Work(), "logprobs": (), "tempered": ()}
    return replace(one, **bare) == replace(other, **bare)


def joined(parts):
    """One reply from the replies along a path."""
    text, ends = "", []
    for part in parts:
        ends += [len(text) + end for end in part.ends]
        text += part.text
    columns = {name: sum((getattr(p, name) for p in parts), ()) for name in ("tokens", "logprobs", "tempered")}
    return Drawn(text, tuple(ends), **columns, eos=parts[-1].eos)


def pairs(before, tokens):
    """Query-key pairs of reading `tokens` tokens after `before`."""
    return sum(before + i + 1 for i in range(tokens))
