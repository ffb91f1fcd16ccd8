"""A small transformer that knows nothing, one character a token: what a bench teaches in minutes on a CPU."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, PAD, UNKNOWN = "<end>", "<pad>", "<unknown>"


def build(folder: Path, letters: str, longest: int) -> None:
    """Write a checkpoint of 0.8 M parameters and its tokenizer, which knows `letters`; `longest` is its context."""
    names = [*dict.fromkeys(letters), END, PAD, UNKNOWN]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([END, PAD, UNKNOWN])
    said = {"eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN, "model_max_length": longest}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **said)
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(names), max_position_embeddings=longest, **shape, **ids))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
