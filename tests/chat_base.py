"""A small base that knows ChatML, one token per word, with adapters that each answer otherwise."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lora.data.templates import NAMED
from lora.model.base import load_base, load_tokenizer
from lora.model.lora import LoRA
from lora.tasks import Task
from lora.tasks.causal import CausalTask
from lora.tasks.chat import ChatTask
from small_base import WORDS, tokenizer
from tiny_models import randomise

CHAT = ChatTask(messages="messages")
SINGLE = CausalTask(prompt="prompt", completion="completion")
POSITIONS = 128


def save_chat_base(folder: Path, seed: int = 0, template: bool = True) -> Path:
    """Random weights, large enough that the next word depends on those before it."""
    known = tokenizer("llama")
    known.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    known.chat_template = NAMED["chatml"][0] if template else None
    known.model_max_length = POSITIONS
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(known), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, pad_token_id=0, eos_token_id=4, bos_token_id=None,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    known.save_pretrained(folder)
    return folder


def save_adapters(base: Path, folder: Path, tasks: dict[str, Task]) -> dict[str, Path]:
    """An adapter for each of ``tasks``, in a folder of its name."""
    model, known = (
        LoRA(load_base(str(base), "AutoModelForCausalLM", torch.float32), name=None),
        load_tokenizer(str(base)),
    )
    out = {}
    for place, (name, task) in enumerate(tasks.items()):
        model.add_adapter(name, rank=4, seed=place)
        randomise(model.adapter_parameters(name).values(), seed=place + 5)
        model.notes[name] = {"task": task.with_tokenizer(known).state(), "training": {"dtype": "float32"}}
        out[name] = model.save_adapter(name, folder / name)
    return out


def sentences(count: int, seed: int = 0, longest: int = 9) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


def loaded_model(base: Path, adapters: dict[str, Path]) -> tuple[LoRA, Any]:
    model = LoRA(load_base(str(base), "AutoModelForCausalLM", torch.float32), name=None)
    for name, folder in adapters.items():
        model.load_adapter(folder, name)
    return model.eval(), load_tokenizer(str(base))
