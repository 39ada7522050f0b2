"""Models and made-up data for the measurements of speed: shapes of real ones, random where only the shape matters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from lora import LoRA
from lora.cli.demo import demo_base
from lora.config import DataConfig
from lora.model.base import load_base, load_tokenizer
from lora.tasks.classification import ClassificationTask
from lora.training.prepare import Prepared, prepare, read_rows

CLASSES = 8


# Millions of parameters, an embedding of 49,152 words included: hidden, intermediate, layers, heads, shared heads. 135,
# 360 and 1072 have the bodies of SmolLM-135M, SmolLM-360M and Llama-3.2-1B.
SHAPES = {
    40: (384, 1024, 12, 6, 2),
    135: (576, 1536, 30, 9, 3),
    360: (960, 2560, 32, 15, 5),
    1072: (2048, 8192, 16, 32, 8),
}


def llama(dtype: torch.dtype, quick: bool, size: int = 135) -> torch.nn.Module:
    """A Llama of one of `SHAPES`, or a tiny one; the same random weights at every call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, shared = SHAPES[size] if not quick else (96, 256, 2, 3, 1)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=shared, vocab_size=49152 if not quick else 2048, tie_word_embeddings=True,
        max_position_embeddings=8192, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # made in its own type: a copy in fp32 would be the peak of memory
    try:
        return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def minilm(dtype: torch.dtype, dropout: bool = False) -> torch.nn.Module:
    """all-MiniLM-L6-v2 with a fresh head, the same at every call. Its own dropout is random: off, losses agree."""
    torch.manual_seed(0)
    rows = [{"text": f"text {label}", "label": f"class {label}"} for label in range(CLASSES)]
    task = ClassificationTask.from_rows(rows, {"text": "text", "label": "label"})
    off = {} if dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return load_base(demo_base(), task.auto_class, dtype, {**task.model_options(), **off})


def word_tokenizer(vocabulary: int) -> Any:
    """One token a word: "w1" to "w<vocabulary - 1>"; 0 ends a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"</s>": 0} | {f"w{number}": number for number in range(1, vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")


def alpaca_lengths(count: int, seed: int, most: int = 700) -> list[int]:
    """Tokens of instruction data: log-normal, median 90; a few per cent are many times longer."""
    draw = random.Random(seed)
    return [max(8, min(most, round(draw.lognormvariate(4.5, 0.7)))) for _ in range(count)]


def instructions(lengths: Sequence[int], vocabulary: int, seed: int) -> list[dict[str, str]]:
    """Prompt and completion of half of the tokens each; small numbers are more frequent, as words are."""
    draw = random.Random(seed)

    def text(count: int) -> str:
        return " ".join(f"w{1 + int((vocabulary - 1) * draw.random() ** 3)}" for _ in range(count))

    return [
        {"prompt": text(length // 2), "completion": text(max(1, length - length // 2 - 1))}  # one ends the text
        for length in lengths
    ]


def labelled(lengths: Sequence[int], seed: int) -> list[dict[str, str]]:
    """Texts of so many tokens in MiniLM's vocabulary, in one of `CLASSES` classes; a text's first word tells which."""
    draw = random.Random(seed)
    words = sorted(word for word in load_tokenizer(demo_base()).get_vocab() if word.isascii() and word.isalpha())
    rows = []
    for number, length in enumerate(lengths):
        label = number % CLASSES
        picked = [words[label], *draw.choices(words, k=max(1, length - 3))]  # [CLS], [SEP]
        rows.append({"text": " ".join(picked), "label": f"class {label}"})
    return rows


def prepared(base: torch.nn.Module, rows: list[dict[str, str]], max_length: int = 8192) -> Prepared:
    """``rows`` tokenised by lora's own preparation, nothing held out."""
    causal = "prompt" in rows[0]
    tokenizer = word_tokenizer(base.config.vocab_size) if causal else load_tokenizer(demo_base())
    model = LoRA(base, name=None)
    try:
        return prepare(model, read_rows(rows, False, DataConfig(), 0), tokenizer, max_length if causal else 512)
    finally:
        model.unload()
