"""Whether a model can be trained on packed rows (`lora.training.packing`).

That is not looked up in a list: a probe compares losses with those of the model's own forward, and what does not agree
is trained with padded rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora.core.attention import per_document
from lora.errors import is_out_of_memory
from lora.tasks.inference import collated, evaluating, to_device
from lora.tasks.mixture import forward
from lora.training.packing import Packing, Text

if TYPE_CHECKING:
    from lora.model.lora import LoRA
    from lora.training.prepare import Prepared
    from lora.training.trainee import Trainee

# Of the loss of a probe: rounding differs with the order of additions, a wrong mask or scale differs by far more.
AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-6}
ROUGH = 2e-2  # the same in half precision


@torch.no_grad()
def find_packing(model: LoRA, trainee: Trainee, prepared: Prepared) -> Packing | str:
    """`Packing` where the model computes the same losses so as by its own forward; else why not, in a sentence."""
    if not trainee.task.next_token:
        return f"the task {trainee.task.name} is not next-token prediction"
    base: Any = model.base
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if head is None or not hasattr(getattr(base, "config", None), "_attn_implementation"):
        return f"{type(base).__name__} has no output head, or no attention that can be told where documents end"
    packing, examples = Packing(model), _some(trainee)
    with evaluating(model):
        try:
            losses = _of_each(packing, trainee.name, examples)
            leaks = _leaks(packing, trainee.name, examples, losses)
            # A row at a time: the full logits of long ones are what packing is there to avoid.
            expected = torch.stack([_own_loss(model, trainee, prepared, example) for example in examples])
        except Exception as error:  # whatever a model of unknown make objects to
            if is_out_of_memory(error):
                raise  # it says nothing of the model, and padded rows would need more
            return f"{type(base).__name__} does not run on packed rows ({type(error).__name__}: {str(error)[:100]})"
    if leaks:
        return f"documents of a packed row see each other in {type(base).__name__}"
    found = torch.stack([of_one.sum() for of_one in losses])
    difference = float(((found - expected).abs() / expected.abs().clamp(min=1e-6)).max())
    if not difference <= AGREEMENT.get(next(base.parameters()).dtype, ROUGH):
        return f"{type(base).__name__} computes other losses on packed rows (they differ by {difference:.1e})"
    return packing


def _of_each(packing: Packing, name: str, examples: list[dict[str, Any]]) -> list[Tensor]:
    """Losses of the supervised positions of each example, all of them in one row."""
    with per_document(packing.model.base):
        losses = packing.losses([examples], [name], None, [0.0])[0]
    return list(losses.split([len(Text(example).labels) for example in examples]))


def _leaks(packing: Packing, name: str, examples: list[dict[str, Any]], losses: list[Tensor]) -> bool:
    """Whether a document's losses change with the words of its neighbours.

    With their words and nothing else: shapes, and so kernels and their rounding, stay as they are, on every device.
    """
    for other in {0, len(examples) - 1}:
        changed = list(examples)
        changed[other] = {**examples[other], "input_ids": examples[other]["input_ids"][::-1]}
        again = _of_each(packing, name, changed)
        if any(not torch.equal(again[i], losses[i]) for i in range(len(examples)) if i != other):
            return True
    return False


def _own_loss(model: LoRA, trainee: Trainee, prepared: Prepared, example: dict[str, Any]) -> Tensor:
    """The loss sum of one example's tokens by the model's own forward."""
    batch = to_device(collated(model, trainee.task, [example], prepared.pad_token_id, prepared.padding_side), model)
    sums, _ = trainee.task.token_losses(forward(model, batch, trainee.name), batch)
    return sums.sum()


def _some(trainee: Trainee) -> list[dict[str, Any]]:
    """Up to four examples of different lengths, the longest first: what a leak between documents shows in."""
    lengths = trainee.data.lengths
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    picked = order[:: max(1, len(order) // 4)][:4]
    return [trainee.data.examples[i] for i in picked]
