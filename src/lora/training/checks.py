"""What the loop looks at while it runs: modules that no gradient reaches, and where a value stopped being finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora.core.layer import AdaptedLayer
from lora.errors import LoraError, ModelError, TrainingError, is_out_of_memory
from lora.model.base import short
from lora.tasks.inference import collated, evaluating, misfit, to_device
from lora.tasks.mixture import forward

if TYPE_CHECKING:
    from lora.model.lora import LoRA
    from lora.training.prepare import Prepared
    from lora.training.trainee import Trainee


@torch.no_grad()
def refuse_misfit(model: LoRA, name: str, prepared: Prepared) -> None:
    """Try one row of the data.

    Raises:
        ModelError: the base does not take it, gives what the task does not read, or sees the tokens it is to predict.
    """
    task, data = prepared.task, prepared.train
    index = min(range(len(data)), key=lambda i: (data.lengths[i] < 3, data.lengths[i]))  # short, but not too short
    batch = to_device(
        collated(model, task, [data.examples[index]], prepared.pad_token_id, prepared.padding_side), model
    )
    kind = type(model.base).__name__
    with evaluating(model):
        try:
            outputs = forward(model, batch, name)
        except LoraError:
            raise
        except Exception as error:  # whatever a model of another kind objects to
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"{name}: {kind} does not take the rows of the task {task.name}, which needs a model loaded with "
                f"{task.auto_class} ({short(error)})"
            ) from error
        if problem := misfit(model, task, outputs):
            raise ModelError(f"{name}: {problem}")
        if task.next_token and batch["input_ids"].shape[1] > 2:
            ids = batch["input_ids"].clone()
            last = int(ids[0, -1])
            ids[:, -1] = next((i for i in ids[0].tolist() if i != last), last - 1 if last else 1)
            changed = forward(model, batch | {"input_ids": ids}, name)
            # By position. In place: logits over a large vocabulary are most of what a short row takes.
            difference = changed.logits.float().sub_(outputs.logits).abs_().amax(dim=(0, 2))
            # Of a decoder nothing changes but, with other shapes in an expert or a quantised layer, the last bits.
            exact = next(model.base.parameters()).dtype in (torch.float32, torch.float64)
            if difference[:-1].max() > (1e-4 if exact else 5e-2) * difference[-1]:
                raise sees_ahead(name, kind)


def sees_ahead(name: str, kind: str) -> ModelError:
    """What to raise where a base of class ``kind`` sees the tokens that it is to predict."""
    return ModelError(
        f"{name}: {kind} sees the tokens that it is to predict (its attention goes both ways), so there is "
        "nothing to learn; next-token prediction needs a decoder, such as Llama, Qwen or GPT-2. If the "
        "data are texts with labels, name the label's column with data.label_column"
    )


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
            batch = collated(model, trainee.task, examples, prepared.pad_token_id, prepared.padding_side)
            forward(model, to_device(batch, model), trainee.name)
            if first:
                return f" (first in {first[0]}, batch {number + 1} of the step, training rows {indices[:5]}...)"
    finally:
        for handle in handles:
            handle.remove()
    return ""
