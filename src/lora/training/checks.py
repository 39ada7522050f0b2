"""What the loop looks at while it runs: modules that no gradient reaches, and where a value stopped being finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora.core.layer import AdaptedLayer
from lora.errors import TrainingError
from lora.tasks.inference import forward, to_device

if TYPE_CHECKING:
    from lora.model.lora import LoRA
    from lora.training.prepare import Prepared
    from lora.training.trainee import Trainee


def untouched_modules(trainee: Trainee) -> list[str]:
    """A note about parameters that the first backward gave no gradient: adapted modules the model never called.

    Raises:
        TrainingError: none received one, so that nothing would be learned.
    """
    without = [key for key, parameter in trainee.parameters.items() if parameter.grad is None]
    if len(without) == len(trainee.parameters):
        raise TrainingError(
            f"no gradient reaches adapter {trainee.name!r}: none of its modules took part in the forward pass; "
            "choose other targets"
        )
    modules = sorted({key.rpartition(".")[0] for key in without})
    if not modules:
        return []
    return [
        f"{len(modules)} adapted modules take no part in this task and stay as they began: {', '.join(modules[:3])}"
        + (", ..." if len(modules) > 3 else "")
    ]


@torch.no_grad()
def locate_non_finite(model: LoRA, trainee: Trainee, prepared: Prepared) -> str:
    """`` (first in module X, rows ...)``: the first module whose output is not finite on this step's batches, or ''."""
    first: list[str] = []

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in [output] if isinstance(output, Tensor) else []:
                if tensor.is_floating_point() and not first and not torch.isfinite(tensor).all():
                    first.append(path)

        return hook

    # Additive masks hold -inf on purpose; only adapted modules and those with weights of their own are watched.
    leaves = [
        (getattr(module, "path", path), module)
        for path, module in model.base.named_modules()
        if isinstance(module, AdaptedLayer) or any(True for _ in module.parameters(recurse=False))
    ]
    handles = [module.register_forward_hook(watch(path)) for path, module in leaves]
    try:
        for number, indices in enumerate(trainee.batches(trainee.step)):
            examples = [trainee.data.examples[i] for i in indices]
            batch = to_device(trainee.task.collate(examples, prepared.pad_token_id, prepared.padding_side), model)
            forward(model, batch, [trainee.name] * len(indices))
            if first:
                return f" (first in {first[0]}, batch {number + 1} of the step, training rows {indices[:5]}...)"
    finally:
        for handle in handles:
            handle.remove()
    return ""
