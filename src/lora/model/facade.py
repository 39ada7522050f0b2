"""What tools around a model look at: its class, its forward's signature, what its state dict holds, how it saves."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lora.config import AdapterConfig
from lora.core.routing import BASE
from lora.errors import ConfigError
from lora.model.heads import input_embedding, output_heads
from lora.model.inject import route_checkpoints, switch_layers_alone

if TYPE_CHECKING:
    from lora.model.lora import LoRA


class Facade(nn.Module):
    """The side of `LoRA` that transformers, accelerate and PEFT's users know: their names, the base's attributes."""

    base: nn.Module
    adapters: dict[str, AdapterConfig]

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What ``isinstance`` is told beside the real type: a ``PeftModel`` too, while one adapter is in force.

        ``transformers.Trainer`` saves adapter folders, and loads them on resuming and for ``load_best_model_at_end``,
        for nothing but instances of ``PeftModel`` (``_save``, ``_load_from_checkpoint``, ``_load_best_model``); there
        is no hook. What it asks of such a model is here: ``save_pretrained``, ``load_adapter``, ``active_adapters``,
        ``get_base_model``, ``base_model``. Inheriting would bring PEFT's other methods, made for insides that this
        has not. Python asks ``__class__`` of objects that stand for another (as ``unittest.mock``'s do).

        PEFT's protocol knows one active adapter. With several and none in force this is no PeftModel, and Trainer
        keeps the state dict, which holds them all. PEFT is not imported: where nobody has, nobody can ask.
        """
        kind = getattr(sys.modules.get("peft"), "PeftModel", None)
        own: Any = type(self)
        return own if kind is None or self.adapter_in_force() is None else _both(own, kind)

    @__class__.setter
    def __class__(self, value: type) -> None:
        # FSDP2's fully_shard makes a subclass of what it reads here and sets it.
        object.__dict__["__class__"].__set__(self, value)

    def adapter_in_force(self) -> str | None:
        """The adapter of calls that name none: the one put in force by `using`, else the only one there is."""
        adapters, router = self.__dict__.get("adapters", {}), self.__dict__.get("router")
        if router is not None and router.current is not None:
            return router.current.single if router.current.single != BASE else None
        return next(iter(adapters)) if len(adapters) == 1 else None

    @property
    def active_adapters(self) -> list[str]:
        """PEFT's word for the adapter in force; empty where none is."""
        name = self.adapter_in_force()
        return [] if name is None else [name]

    def get_base_model(self) -> nn.Module:
        """The base model that carries the adapters."""
        return self.base

    @property
    def base_model(self) -> Carrier:
        """As in PEFT: ``model.base_model.model`` is the base model."""
        return Carrier(self.base)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **_: Any,
    ) -> None:
        """Write the adapter in force to the folder; several of which none is in force to folders of their names in it.

        Args:
            is_main_process: others write nothing.
            state_dict: values to write instead of the model's own, where those are spread over processes.
        """
        if push_to_hub:
            raise ConfigError("push_to_hub: nothing is uploaded from here; save, then `hf upload` the folder")
        if not is_main_process:
            return
        one = self.adapter_in_force()
        with _holding(self, state_dict) if state_dict else nullcontext():
            for name in [one] if one else self.adapters:
                # In place: other processes of a Trainer may be writing to the same folder.
                self.save_adapter(name, Path(save_directory) / ("" if one else name), in_place=True)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As the base model's. A block recomputed in the backward sees the routing of its own forward."""
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            # The reentrant form drops gradients where no input of a block requires one: frozen embeddings never do.
            raise ConfigError("gradient checkpointing of a frozen base needs use_reentrant=False")
        if hasattr(self.base, "activation_checkpointing_enable"):
            self.base.activation_checkpointing_enable(activation_checkpointing_kwargs=options, **kwargs)  # type: ignore[operator]
        else:  # transformers before 5.20
            self.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options, **kwargs)  # type: ignore[operator]
        switch_layers_alone(self.base)
        route_checkpoints(self.base, self.router)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The base model's; refused where an adapter sits on an embedding, which would be thrown away with it."""
        places = {input_embedding(self.base), *output_heads(self.base)}
        for name in self.adapters:
            if hit := places & {*self.slots(name, tied=True), *self.owned(name)}:
                raise ConfigError(f"adapter {name!r} sits on {hit.pop()}: resize the vocabulary before adding it")
        return self.base.resize_token_embeddings(*args, **kwargs)  # type: ignore[operator,no-any-return]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":
                raise
            return getattr(self.base, name)

    def _get_name(self) -> str:
        # Trainer's label smoothing shifts the labels of models whose name it knows as causal.
        return type(self.base).__name__

    def __repr__(self) -> str:
        return f"LoRA[{', '.join(self.adapters)}] on {super().__repr__()}"


class Carrier:
    """What PEFT calls ``base_model``: it holds the base as ``model`` and has the base's attributes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@functools.cache
def _both(own: type, kind: type) -> type:
    """A class that is never made into an object: a subclass of both, called as ``own`` is."""
    return type(own.__name__, (own, kind), {"__module__": own.__module__})


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


def _frozen(key: str) -> bool:
    """Whether ``key`` of a state dict is the base's."""
    return ".slots.@" not in key and ".copies.@" not in key


def keep_state_to_adapters(model: Facade) -> None:
    """Make ``state_dict`` hold the adapters alone, and ``load_state_dict`` ask for no more.

    The base is frozen and never written to. accelerate, Lightning, and Trainer with several adapters save what
    ``state_dict`` gives: so checkpoints are small and hold no tensor twice.
    """

    def saved(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for key in [key for key in state if key.startswith(prefix) and _frozen(key)]:
            del state[key]

    def loaded(module: nn.Module, keys: Any) -> None:
        keys.missing_keys[:] = [key for key in keys.missing_keys if not _frozen(key)]

    model._register_state_dict_hook(saved)
    model.register_load_state_dict_post_hook(loaded)


@contextmanager
def _holding(model: nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """Let the adapters have the values of ``state``, a state dict of ``model``, for the block."""
    places = [
        (store, key, f"{path}.{key}")
        for path, module in model.named_modules()
        for store in (module._parameters, module._buffers)
        for key in store
        if store[key] is not None and not _frozen(f"{path}.{key}")
    ]
    missing = [name for store, key, name in places if name not in state and isinstance(store[key], nn.Parameter)]
    if missing:
        raise ConfigError(f"state_dict: {missing[0]} is not in it ({len(missing)} such); give model.state_dict()")
    before = [(store, key, store[key]) for store, key, name in places if name in state]
    try:
        for store, key, name in places:
            store[key] = state.get(name, store[key])  # type: ignore[assignment]
        yield
    finally:
        for store, key, tensor in before:
            store[key] = tensor  # type: ignore[assignment]
