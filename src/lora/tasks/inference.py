"""One pass over data with any number of adapters, each batch once through all of them (`lora.tasks.mixture`)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora.config import EVAL_BATCH_SIZE
from lora.core.configs import is_encoder_decoder, text_config
from lora.core.routing import BASE
from lora.data.batches import in_order
from lora.model.heads import output_heads
from lora.tasks.base import Encoded, Task
from lora.tasks.mixture import LOGITS, Mixture, vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora.model.lora import LoRA


AT_ONCE = 1024  # rows whose batches are made together: memory stays bounded, batches still find rows of like length


@dataclass
class Outcome:
    """What one adapter gave on a data set, rows in the data's order.

    ``loss_sum`` and ``count`` stay apart until the last division; both are 0 where the rows have no labels. ``losses``
    and ``counts`` are what each row adds to them, and empty then.
    """

    predictions: list[Any] = field(default_factory=list)
    loss_sum: float = 0.0
    count: int = 0
    losses: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


@torch.no_grad()
def infer(
    model: LoRA,
    task: Task,
    encoded: Encoded,
    adapters: Sequence[str],
    *,
    pad_token_id: int,
    batch_size: int = EVAL_BATCH_SIZE,
    padding_side: str = "right",
    supervised: bool = True,
) -> dict[str, Outcome]:
    """Run every adapter in ``adapters`` (``"base"`` among them, if wanted) over ``encoded`` in one pass.

    The rows of a batch go through the adapters in mixed batches, so far as that gives each the bits it has alone on a
    CPU; how many others there are changes neither which rows make up a batch nor their padding.

    Args:
        batch_size: rows of an adapter in one forward pass; several adapters share one while it is small.
        supervised: whether the rows carry labels, so that losses can be taken.

    Returns:
        an `Outcome` per adapter.
    """
    beside = task.reference and supervised  # the base's outputs of a batch are kept for every adapter
    copies = (1 + beside) * task.rows
    names = list(dict.fromkeys(adapters))
    out = {name: Outcome(predictions=[None] * len(encoded)) for name in names}
    for outcome in out.values() if supervised else ():
        outcome.losses, outcome.counts = [0.0] * len(encoded), [0] * len(encoded)
    # The reference comes first: the others are compared with it.
    runs = [BASE, *(name for name in names if name != BASE)] if beside else names
    run = Mixture.of(model, task)
    with evaluating(model), without_cache(model):
        for indices in in_batches(model, task, encoded, max(1, batch_size // copies), copies):
            batch = collated(model, task, [encoded.examples[i] for i in indices], pad_token_id, padding_side)
            batch = to_device(batch, model)
            more: dict[str, Any] = {}
            for name, outputs in run(batch, runs, keep=beside):
                if beside and not more:
                    more = {"reference": outputs}
                if name in out:
                    _take(out[name], task, outputs, batch, indices, supervised, more)
                del outputs
    return out


def _take(
    outcome: Outcome, task: Any, outputs: Any, batch: dict[str, Tensor], indices: list[int], supervised: bool,
    more: dict[str, Any],
) -> None:  # fmt: skip
    """Add what an adapter gave for the rows ``indices``. ``more``: the reference, where ``task`` asks for one."""
    for index, prediction in zip(indices, task.predictions(outputs, batch, **more), strict=True):
        outcome.predictions[index] = prediction
    if not supervised:
        return
    sums, counts = task.row_losses(outputs, batch, **more)
    outcome.loss_sum += float(sums.cpu().double().sum())
    outcome.count += int(counts.sum())
    for index, loss, count in zip(indices, sums.tolist(), counts.tolist(), strict=True):
        outcome.losses[index], outcome.counts[index] = loss, int(count)


def in_batches(model: LoRA, task: Task, encoded: Encoded, rows: int, copies: int) -> Iterator[list[int]]:
    """Batches of at most ``rows`` rows, fewer where each token has logits.

    Labels and numbers are asked `AT_ONCE` rows at a time: predicting reads no more of a file at once, and rows that
    share a batch here share it there, so that the last bits of both are the same.
    """
    if task.generates:
        yield from token_batches(model, encoded.lengths, rows, copies)
        return
    for start in range(0, len(encoded), AT_ONCE):
        for indices in in_order(encoded.lengths[start : start + AT_ONCE], rows):
            yield [start + index for index in indices]


def token_batches(model: LoRA, lengths: Sequence[int], rows: int, copies: int) -> Iterator[list[int]]:
    """Batches of at most ``rows`` rows of these ``lengths``, fewer where the vocabulary is large: each token of each of
    the ``copies`` of a row has logits over it."""
    width = vocabulary(model)
    for indices in in_order(lengths, rows):
        most = len(indices) if width is None else max(1, LOGITS // (lengths[indices[0]] * width * copies))
        yield from (indices[start : start + most] for start in range(0, len(indices), most))


def collated(
    model: LoRA, task: Task, examples: list[dict[str, Any]], pad_token_id: int, padding_side: str = "right"
) -> dict[str, Tensor]:
    """``examples`` as one batch with everything that this model takes. Raises ModelError as `Task.for_base`."""
    return task.for_base(task.collate(examples, pad_token_id, padding_side), model.base)


def misfit(model: LoRA, task: Task, outputs: Any) -> str | None:
    """Why ``outputs`` of one row are not what ``task`` reads; None if they are."""
    logits = getattr(outputs, "logits", None)
    wanted = task.model_options().get("num_labels")
    of_tokens = task.generates or task.per_token
    if not of_tokens and wanted is None:
        return None  # a task of one's own, of which no more is known
    # Logits of a language model are of each token too, but over its vocabulary.
    vocabulary = task.per_token and bool(output_heads(model.base))
    if logits is None or logits.dim() != (3 if of_tokens else 2) or vocabulary:
        found = type(model.base).__name__
        return f"the task {task.name} needs a model loaded with {task.auto_class}, and this one is a {found}"
    if wanted is None or logits.shape[-1] == wanted or logits.shape[-1] > wanted > 1:  # more are not read
        return None
    return (
        f"its head has {logits.shape[-1]} outputs and the task {task.name} needs {wanted}; load the base with "
        f"num_labels={wanted}"
    )


def to_device(batch: dict[str, Tensor], model: LoRA) -> dict[str, Tensor]:
    """``batch`` on the device of the model's first parameter."""
    device = next(model.parameters()).device
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


@contextmanager
def evaluating(model: LoRA) -> Iterator[None]:
    """Evaluation mode for the block, then the mode there was before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def without_cache(model: LoRA) -> Iterator[None]:
    """For the block the model keeps no keys and values for tokens to come, which nobody asks for."""
    base: Any = model.base
    config = getattr(base, "config", None)
    configs = [text_config(config)]
    if is_encoder_decoder(config) and hasattr(base, "get_decoder"):
        configs.append(getattr(base.get_decoder(), "config", None))  # T5's has one of its own
    caching = [its for its in configs if getattr(its, "use_cache", None)]
    before = [its.use_cache for its in caching]
    for its in caching:
        its.use_cache = False
    try:
        yield
    finally:
        for its, value in zip(caching, before, strict=True):
            its.use_cache = value
