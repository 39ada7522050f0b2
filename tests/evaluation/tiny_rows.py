"""Rows, a tokenizer of one token per word, and tiny models with adapters that answer; nothing is downloaded."""

from __future__ import annotations

import random
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lora.model.lora import LoRA
from tiny_models import VOCABULARY, randomise

WORDS = [f"w{number}" for number in range(VOCABULARY - 4)]
LABELS = ["bill", "delivery", "other"]


def word_tokenizer(frame: str | None = "$A [EOS]") -> PreTrainedTokenizerFast:
    """One token per word; ids 0 padding, 1 beginning, 2 end, 3 unknown, as the tiny models have them."""
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[BOS]", "[EOS]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if frame:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"[BOS] {frame}", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"
    )


def texts(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Texts of 1 to ``longest`` words, each of another length than its neighbours."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=1 + (place * 7) % longest)) for place in range(count)]


def labelled(count: int = 30, labels: list[Any] = LABELS, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed + 1)
    return [{"text": text, "label": draw.choice(labels)} for text in texts(count, seed)]


def with_adapters(model: Any, *names: str, seed: int = 2) -> LoRA:
    """``model`` with adapters of large random weights: each answers differently from the base and from the others."""
    lora_model = LoRA(model, name=None)
    for place, name in enumerate(names):
        lora_model.add_adapter(name, rank=4, alpha=16, seed=place)
        randomise(lora_model.adapter_parameters(name).values(), seed + place)
    return lora_model.eval()


def by_hand(model: LoRA, name: str, rows: list[dict[str, Any]], length: int = 40) -> torch.Tensor:
    """Logits (b, c) of each row alone, without any of the package's batching."""
    tokenizer = word_tokenizer()
    out = []
    for row in rows:
        ids = tokenizer(row["text"], truncation=True, max_length=length, return_tensors="pt")["input_ids"]
        with torch.no_grad(), model.using(name):
            out.append(model(input_ids=ids).logits)
    return torch.cat(out)
