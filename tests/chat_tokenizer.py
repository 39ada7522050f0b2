"""A byte-level tokenizer with the special tokens of the known chat formats."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FORMATS = [
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
    "<end_of_turn>", "[INST]", "[/INST]",
]  # fmt: skip


def byte_tokenizer(merges: list[tuple[str, str]] = [], extra: list[str] = FORMATS, **special: Any) -> Any:  # noqa: B006
    """Every byte is a token, but for ``merges``; ``extra``: special tokens beside beginning and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<s>", "</s>", *alphabet, *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **special}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **settings)
    tokenizer.add_special_tokens({"additional_special_tokens": list(extra)})
    return tokenizer
