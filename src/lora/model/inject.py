"""Wrap modules of the base model where adapters sit, and put them back."""

from __future__ import annotations

import functools

from torch import nn

from lora.core.layer import AdaptedLayer
from lora.core.owned import OwnedModule
from lora.core.routing import Router
from lora.model.tree import inner


def wrap_layer(model: nn.Module, path: str, router: Router) -> AdaptedLayer:
    """The `AdaptedLayer` at ``path``, made if it is not there yet."""
    module = _at(model, path)
    # A module may be owned by one adapter and adapted by another: ownership lies outside.
    core = module.original if isinstance(module, OwnedModule) else module
    if isinstance(core, AdaptedLayer):
        return core
    wrapped = AdaptedLayer(core, router, path)
    _replace(model, core, wrapped)
    return wrapped


def wrap_owned(model: nn.Module, path: str, router: Router) -> OwnedModule:
    """The `OwnedModule` at ``path``, made if it is not there yet."""
    module = _at(model, path)
    if isinstance(module, OwnedModule):
        return module
    wrapped = OwnedModule(module, router, path)
    _replace(model, module, wrapped)
    return wrapped


def unwrap(model: nn.Module, wrapper: AdaptedLayer | OwnedModule) -> None:
    """Put back what ``wrapper`` wraps."""
    _replace(model, wrapper, wrapper.base_layer if isinstance(wrapper, AdaptedLayer) else wrapper.original)


def _at(model: nn.Module, path: str) -> nn.Module:
    """The module at the base model's own ``path``: its wrapper where it is wrapped."""
    module = model
    for part in path.split("."):
        module = getattr(inner(module), part)
    return module


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` stands: a module that serves in two places keeps one set of adapters."""
    for parent in list(model.modules()):
        if parent is new:
            continue
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new


# Modules of torch that in inference read the weights of those inside them directly and would pass adapters by: the
# attribute that allows it, and torch's own value for "not here".
_SHORTCUTS: tuple[tuple[type[nn.Module], str, object], ...] = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
    (nn.TransformerEncoder, "use_nested_tensor", False),
)


def leave_shortcuts(model: nn.Module) -> None:
    """Make torch call the layers inside its transformer modules wherever adapters sit among them."""
    for module in model.modules():
        for kind, attribute, off in _SHORTCUTS:
            if isinstance(module, kind) and any(isinstance(m, (AdaptedLayer, OwnedModule)) for m in module.modules()):
                module.__dict__.setdefault("_lora_shortcut", getattr(module, attribute))
                setattr(module, attribute, off)


def forget_adapters(model: nn.Module) -> None:
    """Undo `leave_shortcuts` and `route_checkpoints` on a model without adapters."""
    for module in model.modules():
        for kind, attribute, _ in _SHORTCUTS:
            if isinstance(module, kind) and "_lora_shortcut" in module.__dict__:
                setattr(module, attribute, module.__dict__.pop("_lora_shortcut"))
        checkpoint = vars(module).get("_gradient_checkpointing_func")
        if isinstance(checkpoint, functools.partial) and "context_fn" in checkpoint.keywords:
            options = {key: value for key, value in checkpoint.keywords.items() if key != "context_fn"}
            module.__dict__["_gradient_checkpointing_func"] = functools.partial(checkpoint.func, **options)


def route_checkpoints(model: nn.Module, router: Router) -> None:
    """Make transformers' checkpointed blocks recompute under the routing of their forward, whoever enabled them."""
    for module in model.modules():
        checkpoint = vars(module).get("_gradient_checkpointing_func")
        if checkpoint is not None:
            options = {"use_reentrant": False, "context_fn": router.checkpoint_contexts}
            module.__dict__["_gradient_checkpointing_func"] = functools.partial(checkpoint, **options)


def switch_layers_alone(model: nn.Module) -> None:
    """Of checkpointed blocks leave the switch on themselves and take it off their parts.

    For the reentrant form T5's attention makes a mask that requires a gradient where its switch is on. Such a mask
    takes another kernel, and so gives other last bits than without checkpointing.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            for part in block.modules():
                if part is not block and getattr(part, "gradient_checkpointing", False):
                    part.gradient_checkpointing = False  # type: ignore[assignment]
