"""A deep model told from two shallow ones: how many layers, of how many kinds, and what follows for all of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from lora.core.configs import text_config

LONGEST_PERIOD = 8  # of kinds of layers that take turns


def _lists(base: nn.Module) -> list[nn.ModuleList]:
    """The lists of repeated layers: the longest, and those as long as it (an encoder's and a decoder's)."""
    lists = [module for module in base.modules() if isinstance(module, nn.ModuleList)]
    most = max((len(module) for module in lists), default=0)
    return [module for module in lists if len(module) == most]


def layers_of(base: nn.Module) -> list[Any]:
    """What each layer is: shapes of its parameters, and of what kind the configuration says it is."""
    kinds = getattr(text_config(getattr(base, "config", None)), "layer_types", None) or []
    out = []
    for number, group in enumerate(zip(*_lists(base), strict=True)):
        shapes = [(name, tuple(p.shape)) for layer in group for name, p in layer.named_parameters()]
        out.append((kinds[number] if number < len(kinds) else None, shapes))
    return out


def period_of(layers: Sequence[Any]) -> int | None:
    """After how many layers their kinds repeat; None: they do not."""
    for period in range(1, LONGEST_PERIOD + 1):
        if all(one == other for one, other in zip(layers, layers[period:], strict=False)):
            return period
    return None


def cut(base: nn.Module, depth: int) -> nn.Module:
    """A copy of ``base``, its configuration included, with the first layers alone."""
    lists = _lists(base)
    memo = {id(layer): None for layers in lists for layer in layers[depth:]}  # a copy of them would be thrown away
    short = copy.deepcopy(base, memo)
    text, whole = text_config(getattr(short, "config", None)), len(lists[0])
    for key in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
        if getattr(text, key, None) == whole:
            setattr(text, key, depth)
    for module in short.modules():
        if isinstance(module, nn.ModuleList) and len(module) == whole:
            del module[depth:]
    return short


def extended(low: Any, high: Any, times: float) -> Any:
    """``low`` and ``times`` the difference to ``high``, in all numbers."""
    if isinstance(low, dict):
        return {key: extended(low[key], high[key], times) for key in low}
    if isinstance(low, tuple):
        return tuple(extended(one, other, times) for one, other in zip(low, high, strict=True))
    if is_dataclass(low) and not isinstance(low, type):
        return type(low)(**{f.name: extended(getattr(low, f.name), getattr(high, f.name), times) for f in fields(low)})
    if isinstance(low, (int, float)) and not isinstance(low, bool):
        return type(low)(low + times * (high - low))
    return low
