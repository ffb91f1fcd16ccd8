"""A small transformer that knows nothing, one character a token: what a bench teaches in minutes on a CPU."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, PAD, UNKNOWN, MASK = "<end>", "<pad>", "<unknown>", "<mask>"
SHAPE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
"""Of 0.8 M parameters."""


def build(folder: Path, names: Iterable[str], longest: int, masked: bool = False, **shape: int) -> None:
    """Write a checkpoint and its tokenizer.

    Args:
        folder: where to.
        names: tokens that it knows: characters, and maybe numbers, of which each is one token then.
        longest: tokens of its context.
        masked: whether tokenizer and configuration name a mask, as those of a masked-diffusion model do.
        shape: sizes in place of those in `SHAPE`.
    """
    special = [END, PAD, UNKNOWN, *[MASK] * masked]
    names = [*dict.fromkeys(names), *special]
    pieces = r"\d+|[\s\S]" if any(len(name) > 1 for name in names if name.isdigit()) else r"[\s\S]"
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(special)
    said = {"eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN, "model_max_length": longest}
    said |= {"mask_token": MASK} if masked else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **said)
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    ids |= {"mask_token_id": tokenizer.mask_token_id} if masked else {}
    config = LlamaConfig(vocab_size=len(names), max_position_embeddings=longest, **SHAPE | shape, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
