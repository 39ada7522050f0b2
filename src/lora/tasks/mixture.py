"""One batch through several adapters: its rows once for each, in one pass where that gives each the bits it has alone.

How many adapters share a pass is a matter of speed and memory alone: the rows of an adapter in a pass are always those
of the batch, and so is their padding. What was measured (torch 2 on an x86 CPU with AVX-512 and AMX; BERT, Llama, T5):

- In fp32 a row's bits in a product with a frozen weight do not depend on how many rows there are, from 16 rows on. With
  8 they do, where the weight is 256 wide or more, or has 2 or 3 outputs; with a single output they do unless the rows
  are a multiple of 4.
- In bf16 they do, at any number of rows, where the weight is 512 wide or more.
- Of some element-wise functions the last bits depend on the tensor's size: `lora.core.by_adapter`.
- Convolutions choose another kernel for another number of rows; experts see the tokens that were sent to them.

So on a CPU what has other bits goes one adapter after another. Other devices are held to no bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora.core.by_adapter import ByAdapter
from lora.core.configs import text_config
from lora.core.functions import FEWEST_ROWS, autocast_dtype
from lora.core.owned import OwnedModule
from lora.errors import RoutingError
from lora.model.tree import inside
from lora.tasks.base import Task

if TYPE_CHECKING:
    from lora.model.lora import LoRA

LOGITS = 1 << 28  # of a pass; in fp32, in which losses are taken, they are 1 GiB
# Of a pass that adapters share, padding included. Base and four adapters on a small BERT and a small Llama, one core of
# a CPU: with some 300 tokens in an adapter's batch a fifth to an eighth less time than one after another; passes of up
# to 4,096 tokens took as long, those of up to 8,192 up to a quarter more.
TOKENS = 1 << 12


def vocabulary(model: LoRA) -> int | None:
    """The number of logits of a token, where the base says so."""
    size: int | None = getattr(text_config(getattr(model.base, "config", None)), "vocab_size", None)
    return size


def forward(model: LoRA, batch: Mapping[str, Tensor], adapters: Sequence[str] | str) -> Any:
    """The model's outputs for ``batch``; labels stay with the task, which computes the loss itself.

    ``adapters``: one name for each row, or one for all.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    rows = len(next(iter(inputs.values())))
    return model(**inputs, adapters=[adapters] * rows if isinstance(adapters, str) else list(adapters))


class Mixture:
    """Runs batches through adapters.

    Args:
        of_tokens: whether the logits are of each token: then no layer sees fewer rows than the batch has tokens.
        generates: whether they are over the vocabulary, so that memory goes by them.

    Attributes:
        apart: whether adapters take turns in every batch, as rows of this base cannot be told apart, or its outputs
            cannot be taken apart.
    """

    def __init__(self, model: LoRA, *, of_tokens: bool, generates: bool) -> None:
        self.model, self.of_tokens = model, of_tokens or generates
        self.vocabulary = vocabulary(model) if generates else None
        self.apart = False
        self._exact: dict[tuple[str, ...], bool] = {}

    @classmethod
    def of(cls, model: LoRA, task: Task) -> Mixture:
        """For batches of ``task``."""
        return cls(model, of_tokens=task.per_token, generates=task.generates)

    def __call__(self, batch: dict[str, Tensor], names: Sequence[str], keep: bool = False) -> Iterator[tuple[str, Any]]:
        """Each of ``names`` with its outputs for ``batch``, as if it were run alone.

        ``keep``: those of the first are kept by the caller until the last has come.
        """
        groups = self._groups(batch, names, keep)
        while groups:
            group = groups.pop(0)
            try:
                parts = self._run(batch, group)
            except RoutingError:
                if len(group) == 1:
                    raise
                parts = None  # a base whose rows cannot be told apart
            if parts is None:
                self.apart = True
                groups = [[name] for again in (group, *groups) for name in again]
                continue
            yield from zip(group, parts, strict=True)

    def _groups(self, batch: dict[str, Tensor], names: Sequence[str], keep: bool) -> list[list[str]]:
        """Those of ``names`` that share a pass."""
        rows, width = _size(batch)
        most = max(TOKENS // (rows * width), 1)
        if self.vocabulary is not None:
            # Kept logits of the first are in memory beside those of another pass.
            most = min(most, max(LOGITS // (rows * width * self.vocabulary), 1))
        if most == 1 or self.apart or len(names) == 1 or not self._same_bits(batch, names):
            return [[name] for name in names]
        if most >= len(names):
            return [list(names)]
        first, rest, most = ([[names[0]]], names[1:], max(1, most - 1)) if keep else ([], names, most)
        return first + [list(rest[start : start + most]) for start in range(0, len(rest), most)]

    def _run(self, batch: dict[str, Tensor], names: list[str]) -> list[Any] | None:
        """The outputs of each of ``names``; None where those of a shared pass cannot be taken apart."""
        if len(names) == 1:
            return [forward(self.model, batch, names[0])]
        rows, _ = _size(batch)
        repeated = {key: torch.cat([its] * len(names)) if len(its) == rows else its for key, its in batch.items()}
        on_cpu = next(iter(batch.values())).device.type == "cpu"
        with ByAdapter(self.model.router) if on_cpu else nullcontext():
            found = forward(self.model, repeated, [name for name in names for _ in range(rows)])
        return _taken_apart(found, len(names), rows)

    def _same_bits(self, batch: dict[str, Tensor], names: Sequence[str]) -> bool:
        """Whether an adapter's rows have the same bits beside others as alone, or nobody promises that."""
        first = next(iter(batch.values()))
        if first.device.type != "cpu":
            return True
        rows, _ = _size(batch)
        narrowest = min((its.shape[1] for its in batch.values() if its.dim() == 2), default=1)
        if rows * (narrowest if self.of_tokens else 1) < FEWEST_ROWS:
            return False
        key = tuple(names)
        if key not in self._exact:
            self._exact[key] = _exact(self.model, names)
        return self._exact[key] and autocast_dtype(first) is None


def _size(batch: Mapping[str, Tensor]) -> tuple[int, int]:
    """Rows of a batch, and the tokens of one (1: it has none)."""
    first = batch.get("input_ids", next(iter(batch.values())))
    return len(first), max((its.shape[1] for its in batch.values() if its.dim() == 2), default=1) or 1


def _exact(model: LoRA, names: Sequence[str]) -> bool:
    """Whether nothing in the base is known to compute other bits with other numbers of rows on a CPU."""
    if any(parameter.dtype != torch.float32 for parameter in model.base.parameters()):
        return False  # half types, and quantised layers
    # An own module sees one adapter's rows; with a copy for any of them, that is so for all.
    owned = [
        path for path, its in model.base.named_modules()
        if isinstance(its, OwnedModule) and any(name in its.copies for name in names)
    ]  # fmt: skip
    for path, module in model.base.named_modules():
        if inside(path, owned):
            continue
        one_output = isinstance(module, nn.Linear) and module.out_features == 1
        if one_output or isinstance(module, (nn.modules.conv._ConvNd, nn.RNNBase)) or "expert" in path.lower():
            return False
    return True


def _taken_apart(outputs: Any, count: int, rows: int) -> list[Any] | None:
    """``outputs`` of ``count`` times ``rows`` rows, by adapter; None where that is not clear."""
    if not isinstance(outputs, Mapping):
        return None
    split = {key: _chunks(its, count, rows) for key, its in outputs.items()}
    if any(its is None for its in split.values()):
        return None
    return [type(outputs)(**{key: its[place] for key, its in split.items()}) for place in range(count)]  # type: ignore[index]


def _chunks(value: Any, count: int, rows: int) -> list[Any] | None:
    if isinstance(value, Tensor):
        return list(value.split(rows)) if value.dim() and len(value) == count * rows else None
    if isinstance(value, (tuple, list)):
        parts = [_chunks(its, count, rows) for its in value]
        if any(its is None for its in parts):
            return None
        return [tuple(its[place] for its in parts) for place in range(count)]  # type: ignore[index]
    return None if value is not None else [None] * count
