"""Tokenizers of every habit, trained here on a few sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SENTENCES = [
    "Where is my card? It has not arrived yet.",
    "I want to cancel the order, please.",
    "A small cafe near the river serves good food.",
    "The answer is forty two: six times seven.",
]


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """``make_tokenizer(begin, end, pad_is_eos, eos)``: what the tokenizer puts around a text by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def make(begin: bool = False, end: bool = False, pad_is_eos: bool = True, eos: bool = True) -> Any:
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        special = ["<pad>", "<s>", "</s>"]
        inner.train_from_iterator(
            SENTENCES,
            trainers.BpeTrainer(
                vocab_size=400,
                special_tokens=special,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        before, after = ("<s> " if begin else ""), (" </s>" if end else "")
        inner.post_processor = processors.TemplateProcessing(
            single=f"{before}$A{after}",
            pair=f"{before}$A{after} $B:1{after and ' </s>:1'}",
            special_tokens=[("<s>", 1), ("</s>", 2)],
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=inner,
            bos_token="<s>",
            eos_token="</s>" if eos else None,
            pad_token="</s>" if pad_is_eos else "<pad>",
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    """Like an encoder's: something before and after every text."""
    return make_tokenizer(begin=True, end=True, pad_is_eos=False)
