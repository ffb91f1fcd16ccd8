"""A masked-diffusion language model that is trained in seconds, and saved as a user would have it."""

import itertools
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = "0123456789="
END, MASK = len(LETTERS), len(LETTERS) + 1


def tokenizer():
    """A token a letter, an end, and a mask."""
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(LETTERS)}, merges=[]))
    core.decoder = decoders.Fuse()
    core.add_special_tokens(["<end>", "<mask>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", mask_token="<mask>", pad_token="<end>")


def untrained(hidden, layers):
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 2,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
        mask_token_id=MASK,
    )
    return LlamaForCausalLM(config)


def trained(laws, length, steps=400, hidden=32, layers=2, rate=5e-3, seed=0):
    """A model of the laws of the responses to some prompts, by LLaDA's loss (arXiv 2502.09992, eq. 3).

    The loss masks each token of a response with probability t ~ U(0, 1), reads the prompt whole, and weighs by 1/t.
    Here all masks are summed, each with its share ∫ t^(k-1) (1-t)^(length-k) dt, in place of drawing some.

    Args:
        laws: by prompt, all of one length, the probability of each response; ends fill it up.
        length: tokens of a response.
        steps, hidden, layers, rate, seed: of training.
    """
    torch.manual_seed(seed)
    reads, model = tokenizer(), untrained(hidden, layers)
    told = [(reads(a).input_ids, reads(b).input_ids, p) for a, law in laws.items() for b, p in law.items()]
    masks = torch.tensor([mask for mask in itertools.product([False, True], repeat=length) if any(mask)])
    width = len(told[0][0]) + length
    hidden_part = torch.cat([torch.zeros(len(masks), width - length, dtype=torch.bool), masks], 1).repeat(len(told), 1)
    ids = torch.tensor([a + (b + [END] * length)[:length] for a, b, _ in told]).repeat_interleave(len(masks), 0)
    shares = [1 / (k * math.comb(length, k)) for k in masks.sum(1).tolist()]
    weight = torch.tensor([p * share / len(laws) for _, _, p in told for share in shares])
    weight = weight[:, None].expand(ids.shape)[hidden_part]
    every = torch.zeros(len(ids), 1, width, width)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        logits = model(input_ids=ids.masked_fill(hidden_part, MASK), attention_mask=every, use_cache=False).logits
        (cross_entropy(logits[hidden_part], ids[hidden_part], reduction="none") * weight).sum().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def save(model, folder) -> Path:
    """The folder of a checkpoint."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return Path(folder)
