"""What tools around a model look at: its class name, the signature of its forward, what its state dict holds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from lora.model.lora import LoRA


@functools.cache
def class_for(cls: type[LoRA], base_class: type[nn.Module]) -> type[LoRA]:
    """A subclass of LoRA with the base model's class name and a forward of its signature plus ``adapters``."""
    if cls.__dict__.get("_made_for"):
        return cls

    def forward(self: LoRA, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)

    forward.__doc__ = cls._forward.__doc__
    forward.__signature__ = _signature(base_class.forward)  # type: ignore[attr-defined]
    return type(
        base_class.__name__, (cls,), {"forward": forward, "__module__": cls.__module__, "_made_for": base_class}
    )


def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    extra = inspect.Parameter("adapters", inspect.Parameter.KEYWORD_ONLY, default=None)
    at = len(parameters) - (bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    if not any(p.name == "adapters" for p in parameters):
        parameters.insert(at, extra)
    return inspect.Signature(parameters)


def keep_state_to_adapters(model: LoRA) -> None:
    """Make ``state_dict`` hold the adapters alone, and ``load_state_dict`` ask for no more.

    The base is frozen and never written to. ``transformers.Trainer``, accelerate and Lightning save what
    ``state_dict`` gives: so checkpoints are small and hold no tensor twice.
    """

    def frozen(key: str) -> bool:
        return ".slots.@" not in key and ".copies.@" not in key

    def saved(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for key in [key for key in state if key.startswith(prefix) and frozen(key)]:
            del state[key]

    def loaded(module: nn.Module, keys: Any) -> None:
        keys.missing_keys[:] = [key for key in keys.missing_keys if not frozen(key)]

    model._register_state_dict_hook(saved)
    model.register_load_state_dict_post_hook(loaded)
