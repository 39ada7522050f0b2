"""Fixtures of this folder; `tiny_rows` is importable from its files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lora.model.lora import LoRA
from lora.tasks.causal import CausalTask
from lora.tasks.classification import ClassificationTask
from tiny_models import tiny

sys.path.insert(0, str(Path(__file__).parent))

from tiny_rows import LABELS, with_adapters, word_tokenizer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small run many times slower when threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture
def classifier() -> LoRA:
    """A BERT with one adapter, ``tuned``, that stores a classification task of three labels."""
    model = with_adapters(tiny("bert"), "tuned")
    model.notes["tuned"] = {"task": ClassificationTask(LABELS).state()}
    return model


@pytest.fixture
def writer() -> LoRA:
    """A Llama with one adapter, ``tuned``, that stores a causal task of prompts and completions."""
    model = with_adapters(tiny("llama"), "tuned")
    model.notes["tuned"] = {"task": CausalTask(prompt="prompt", completion="completion").state()}
    return model


@pytest.fixture(scope="session")
def body_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a BERT without task head, tokenizer beside it: what fine-tuning usually begins with."""
    folder = tmp_path_factory.mktemp("base")
    tiny("bert").bert.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder
