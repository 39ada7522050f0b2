"""Adapter to plain weights: W' in place of W, in a copy of the base model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora.core.configs import text_config
from lora.core.layer import AdaptedLayer, TiedSlot
from lora.core.owned import OwnedModule
from lora.errors import ModelError
from lora.model.heads import fit_width
from lora.model.inject import forget_adapters

if TYPE_CHECKING:
    from lora.model.lora import LoRA


@torch.no_grad()
def merge(model: LoRA, name: str) -> nn.Module:
    """A plain model of the base's own class that computes what adapter ``name`` does.

    The sum is taken in fp32 and rounded once to the base's type. Where input and output embeddings are one tensor and
    only one of them is adapted, they are untied in the copy (its config says so); a shared update keeps them tied.

    Args:
        model: unchanged.
        name: one of its adapters.

    Raises:
        ModelError: an adapted layer's weights are quantised.
    """
    _refuse_quantised(model, name)
    slots = model.slots(name, tied=True)
    memo: dict[int, Any] = {}
    plain = plain_copy(model.base, memo)
    shared = {id(slot.source) for slot in slots.values() if isinstance(slot, TiedSlot)}
    for wrapper in model.base.modules():
        if isinstance(wrapper, AdaptedLayer) and name in wrapper.slots:
            slot, layer = slots[wrapper.path], memo[id(wrapper.base_layer)]
            if isinstance(slot, TiedSlot):
                continue  # its weight is the source's
            weight = slot.merged(wrapper.geometry).to(layer.weight.dtype)
            if id(slot) in shared:
                layer.weight.data.copy_(weight)
            else:
                _untie(plain, layer)
                layer.weight.data.copy_(weight)
        elif isinstance(wrapper, OwnedModule) and name in wrapper.copies:
            target = memo[id(wrapper.original)]
            _untie(plain, target)
            state = model.owned(name)[wrapper.path].state_dict()
            widths = {layer: layer.out_features for layer in target.modules() if isinstance(layer, nn.Linear)}
            fit_width(target, state)
            target.load_state_dict(state)
            for layer, width in widths.items():
                if layer.out_features != width:
                    _say_labels(plain, layer.out_features)
    return plain.requires_grad_(True)


def _refuse_quantised(model: LoRA, name: str) -> None:
    """Raise ModelError where the update would be rounded to a handful of values, and so be lost."""
    for wrapper in model.base.modules():
        if isinstance(wrapper, AdaptedLayer) and wrapper.slot(name) is not None:
            weight: Any = wrapper.base_layer.weight
            if not weight.is_floating_point() or weight.dtype.itemsize < 2 or hasattr(weight, "quant_state"):
                raise ModelError(
                    f"{wrapper.path}: its weights are quantised ({type(wrapper.base_layer).__name__}), and merging "
                    "would round the update away; load the base without quantisation and merge into that, or serve the "
                    "adapter unmerged"
                )


def plain_copy(base: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Deep copy of ``base`` with each wrapper replaced by the plain module inside it; tied tensors stay tied."""
    memo = {} if memo is None else memo
    # Innermost first, so that a copied module finds the copies of the wrappers inside it.
    for module in reversed(list(base.modules())):
        if isinstance(module, (AdaptedLayer, OwnedModule)):
            core = module.base_layer if isinstance(module, AdaptedLayer) else module.original
            memo[id(module)] = copy.deepcopy(core, memo)
    plain = copy.deepcopy(base, memo)
    forget_adapters(plain)
    return plain


def _untie(model: nn.Module, module: nn.Module) -> None:
    """Give ``module`` tensors of its own where it shares them with other modules of ``model``."""
    inside = {id(m) for m in module.modules()}
    elsewhere = {id(p) for m in model.modules() if id(m) not in inside for p in m._parameters.values() if p is not None}
    for child in module.modules():
        for key, parameter in child._parameters.items():
            if parameter is not None and id(parameter) in elsewhere:
                child._parameters[key] = nn.Parameter(parameter.detach().clone())
                _say_untied(model)


def _say_untied(model: nn.Module) -> None:
    """Without this ``from_pretrained`` would tie the two again and lose one of them."""
    config = getattr(model, "config", None)
    if config is not None:
        for each in (config, text_config(config)):
            each.tie_word_embeddings = False


def _say_labels(model: nn.Module, count: int) -> None:
    """A head of another width than the base's: ``from_pretrained`` builds what the config says."""
    if getattr(model, "config", None) is not None:
        model.config.num_labels = count  # type: ignore[union-attr]
    if hasattr(model, "num_labels"):
        model.num_labels = count  # type: ignore[assignment]
