"""Whole modules that each adapter owns a copy of: task heads, and whatever the checkpoint did not contain."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora.core.layer import ByAdapter, check_rows, one_for_all
from lora.core.routing import Router, Routing
from lora.errors import RoutingError


class CastAround(nn.Module):
    """A module trained in fp32 inside a half-precision base: inputs are cast up, the output to ``dtype``.

    ``dtype`` is the base's where more of the base follows. What comes out of a head is the result, and stays fp32: in
    bf16 a regression would have 256 values between one power of two and the next.
    """

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.dtype_out = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        def up(value: Any) -> Any:
            return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

        out = self.inner(*[up(value) for value in args], **{key: up(value) for key, value in kwargs.items()})
        return out.to(self.dtype_out) if isinstance(out, Tensor) else out


def _fitting(value: Any, module: nn.Module) -> Any:
    """Rows of the base's own in the type of its module: beside rows that come in fp32 from an adapter's own head they
    were made wider, without changing."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating and dtype is not None else value


class OwnedModule(nn.Module):
    """A module that each adapter owns a full copy of: a task head, or whatever was newly initialised.

    Rows of ``base`` go through the original. Heads of different width may share a batch: the narrower ones' outputs
    are padded with -inf on the last axis, which no softmax sees; a task reads its own columns.
    """

    def __init__(self, original: nn.Module, router: Router, path: str) -> None:
        super().__init__()
        self.original = original
        self.copies = ByAdapter()
        self.path = path
        self.__dict__["router"] = router
        self.train(original.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's signature; tensors whose first axis is the batch are split by row."""
        routing = self.router.resolve()
        if routing.single is not None:
            return self.module(routing.single)(*args, **kwargs)
        if not any(group.name in self.copies for group in routing.groups):
            return self.original(*args, **kwargs)
        check_rows(self.path, self.original)
        parts, draws = [], routing.draws
        pieces = [self._pieces(routing, value) for value in args]
        named = {key: self._pieces(routing, value) for key, value in kwargs.items()}
        for index, group in enumerate(routing.groups):
            # Modules inside see these rows alone, and draw for them what they would draw alone.
            inside = Routing.uniform(group.name, None if routing.seeds is None else routing.seeds.get(group.name))
            inside.draws = routing.draws
            with self.router.activate(inside):
                module = self.module(group.name)
                fit = _fitting if module is self.original else (lambda value, _: value)
                parts.append(
                    module(
                        *[fit(p[index], module) for p in pieces],
                        **{key: fit(p[index], module) for key, p in named.items()},
                    )
                )
            draws = max(draws, inside.draws)
        routing.draws = draws
        if not all(isinstance(part, Tensor) for part in parts):
            raise RoutingError(
                f"{self.path}: a {type(self.original).__name__} that gives more than one tensor, which are not "
                "put together again by row; run this model with one adapter per batch (`with model.using(name): ...`)"
            )
        width = max(part.shape[-1] for part in parts)
        padded = [F.pad(part, (0, width - part.shape[-1]), value=-torch.inf) for part in parts]
        like = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() > 0)
        return routing.fitting(sum(part.shape[0] for part in parts)).join(padded, like)

    def _pieces(self, routing: Routing, value: Any) -> list[Any]:
        """``value`` for each group: its rows of a tensor, anything else as it is."""
        if not isinstance(value, Tensor) or value.dim() == 0:
            return [value] * len(routing.groups)
        routing = routing.fitting(value.shape[0])
        return routing.split(one_for_all(routing, value, self.path), self.path, ids=not value.is_floating_point())

    def module(self, name: str) -> nn.Module:
        """The copy that belongs to adapter ``name``; the original for ``base`` and adapters without one."""
        return self.copies[name] if name in self.copies else self.original  # noqa: SIM401

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("original"), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnedModule:
        clone = type(self)(copy.deepcopy(self.original, memo), copy.deepcopy(self.router, memo), self.path)
        memo[id(self)] = clone
        clone.copies = copy.deepcopy(self.copies, memo)
        return clone.train(self.training)
