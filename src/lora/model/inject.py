"""Wrap modules of the base model where adapters sit, and put them back."""

from __future__ import annotations

from torch import nn

from lora.core.layer import AdaptedLayer, OwnedModule
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
                _leave_fast_path(parent)


def _leave_fast_path(parent: nn.Module) -> None:
    """torch's TransformerEncoderLayer reads its weights directly in inference and would pass adapters by.

    0 is its own mark for an activation that the fast path does not know.
    """
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0
