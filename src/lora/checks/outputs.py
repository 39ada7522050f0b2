"""What a model says of one training example, held against what it says with an adapter read again or merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora.tasks.inference import collated, evaluating, to_device
from lora.tasks.mixture import forward

if TYPE_CHECKING:
    from lora.model.lora import LoRA
    from lora.training.prepare import Prepared

AGAIN = "check: read again"  # the name of an adapter for the while
LAST = 64  # tokens of a row whose outputs are compared


def inputs_of(model: LoRA, prepared: Prepared, row: int) -> dict[str, Tensor]:
    """Training example ``row`` as a batch on the model's device."""
    examples = [prepared.train.examples[row]]
    batch = collated(model, prepared.task, examples, prepared.pad_token_id, prepared.padding_side)
    return to_device(batch, model)


@torch.no_grad()
def logits_of(model: LoRA, name: str, prepared: Prepared, row: int) -> Tensor:
    """(rows, ...) in fp32, with adapter ``name``, or the base's own, as `compared` has them."""
    with evaluating(model):
        return compared(forward(model, inputs_of(model, prepared, row), name).logits)


def compared(logits: Tensor) -> Tensor:
    """A copy in fp32; of outputs for each token (rows, tokens, ...) those of the last `LAST`, which come of all before.

    Three of a long row over a large vocabulary would take more than training does.
    """
    return (logits[:, -LAST:] if logits.dim() > 2 else logits).to(torch.float32, copy=True)


def apart(own: Tensor, other: Tensor) -> float:
    """The largest difference, of the largest output; infinite where shapes differ."""
    if own.shape != other.shape:
        return float("inf")
    return float((own - other).abs().max() / own.abs().max().clamp(min=1e-9))
