"""The base of a plan: its configuration, with the task's head and the run's vocabulary, and shapes made of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora.config import AdapterConfig, RunConfig
from lora.core.configs import text_config
from lora.io.describe import auto_class_of
from lora.io.peft_load import config_on, read_folder
from lora.model.base import load_base_config, shape_of_base
from lora.model.lora import LoRA
from lora.model.targets import find_targets
from lora.model.vocabulary import extend
from lora.tasks import Task
from lora.training.checks import sees_ahead


class PlannedBase:
    """The base that ``run`` names, as ``task`` needs it.

    Attributes:
        config: transformers' configuration of it.

    Raises:
        ModelError: there is no such base.
    """

    def __init__(self, run: RunConfig, task: Task) -> None:
        self.name, self.remote, self.task = run.model or "", run.trust_remote_code, task
        self.config: Any = load_base_config(self.name, self.remote)
        for key, value in task.model_options().items():
            setattr(self.config, key, value)
        self._shapes: dict[torch.dtype, nn.Module] = {}

    def shape(self, dtype: torch.dtype) -> nn.Module:
        """On the meta device; not to be changed. Raises ModelError: there is no such model for the task."""
        if dtype not in self._shapes:
            self._shapes[dtype] = shape_of_base(self.name, self.config, self.task.auto_class, dtype, self.remote)
        return self._shapes[dtype]

    def add_tokens(self, tokens: Sequence[str], tokenizer: Any, size: int) -> list[int]:
        """A vocabulary of ``size`` tokens, if it has fewer, and with ``tokens``; returns their ids.

        Without a tokenizer they are taken to come behind all there is.
        """
        text = text_config(self.config)
        known = getattr(text, "vocab_size", None)
        if known is None:
            return []
        ids = list(range(known, known + len(tokens)))
        if tokens and tokenizer is not None:
            ids = extend(tokenizer, tokens)
        text.vocab_size = max(known, size, *(number + 1 for number in ids))
        return ids

    def refuse_misfit(self, adapter: str, dtype: torch.dtype) -> None:
        """Raise ModelError where next tokens are to be predicted by a base that sees them.

        Training finds that out by computing; here what the base's attention says of itself must do.
        """
        shape = self.shape(dtype)
        if self.task.next_token and auto_class_of(self.config) != self.task.auto_class and _both_ways(shape):
            raise sees_ahead(adapter, type(shape).__name__)

    def adapter_in(self, folder: Path, dtype: torch.dtype) -> AdapterConfig:
        """The configuration of the adapter in ``folder``. Raises AdapterFileError: it does not fit this base."""
        shape = self.shape(dtype)
        config = config_on(LoRA(copy.deepcopy(shape), name=None), read_folder(folder))
        # By the names of its layers alone, where these say the same: then a few layers stand for all.
        short = config.model_copy(update={"targets": sorted({path.rpartition(".")[2] for path in config.targets})})
        named = {target.path for target in find_targets(shape, short).adapted}
        return short if named == set(config.targets) else config


def _both_ways(base: torch.nn.Module) -> bool:
    """Whether all attention of ``base`` that says so goes both ways."""
    said = [module.is_causal for module in base.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    return bool(said) and not any(said)
