"""What is trained in full beside an adapter: the task head, and whatever the checkpoint did not contain."""

from __future__ import annotations

from torch import nn

from lora.errors import TargetError
from lora.model.targets import matches, output_heads, summary, unwrapped_modules


def newly_initialised(model: nn.Module) -> list[str]:
    """Parameters that ``from_pretrained`` did not find in the checkpoint and made up.

    transformers 5 marks each parameter it has loaded; an unmarked one in a marked model is new. A model built from a
    config alone carries no mark at all: nothing is known then, and the list is empty.
    """
    new, loaded = [], 0
    for path, module in unwrapped_modules(model).items():
        for name, parameter in module.named_parameters(recurse=False):
            if getattr(parameter, "_is_hf_initialized", False):
                loaded += 1
            else:
                new.append(f"{path}.{name}")
    return new if loaded else []


def task_heads(model: nn.Module) -> list[str]:
    """Top-level modules with parameters outside a transformers model's body: classifier, score, qa_outputs.

    The output embedding (``lm_head``), and any head that contains it, is part of the pretrained model.
    """
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not hasattr(model, prefix):
        return []
    embeddings = output_heads(model)
    heads = []
    for name, module in model.named_children():
        holds_embedding = any(path == name or path.startswith(name + ".") for path in embeddings)
        if name != prefix and not holds_embedding and any(True for _ in module.parameters()):
            heads.append(name)
    return heads


def modules_to_own(model: nn.Module, requested: list[str] | None) -> list[str]:
    """Paths of the modules an adapter gets its own full copy of.

    ``requested`` names modules as targets do; None means the task heads and the modules of newly initialised
    parameters; an empty list means none. Raises TargetError for a name that matches nothing.
    """
    modules = unwrapped_modules(model)
    if requested is not None:
        found: list[str] = []
        for name in requested:
            hits = [path for path in modules if matches(path, [name])]
            if not hits:
                raise TargetError(f"modules_to_save: {name!r} matches no module; there are: {summary(modules)}")
            found += [path for path in hits if any(True for _ in modules[path].parameters())]
        return outermost(found)
    new = [path.rpartition(".")[0] for path in newly_initialised(model)]
    return outermost([*task_heads(model), *(path for path in new if path)])


def outermost(paths: list[str]) -> list[str]:
    """``paths`` without duplicates and without those that lie inside another."""
    unique = list(dict.fromkeys(paths))
    return [path for path in unique if not any(path.startswith(other + ".") for other in unique)]
