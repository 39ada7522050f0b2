"""Whole modules that each adapter owns a copy of: task heads, and whatever the checkpoint did not contain."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora.core.geometry import geometry_of
from lora.core.layer import AdaptedLayer, ByAdapter, check_rows, is_one_for_all, one_for_all, summed_here
from lora.core.routing import BASE, Router, Routing
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


def _summed(value: Any) -> Any:
    return summed_here(value) if isinstance(value, Tensor) else value


def _used_once(module: nn.Module) -> bool:
    """Whether ``module`` reads its input in one place, as far as its gradient is concerned; False: not known."""
    return isinstance(module, (AdaptedLayer, nn.LayerNorm)) or geometry_of(module) is not None


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
            if routing.single in self.copies:
                # In a mixed batch its rows are cut out, and what uses them inside is added up before what does outside.
                args = tuple(_summed(value) for value in args)
                kwargs = {key: _summed(value) for key, value in kwargs.items()}
            return self.module(routing.single)(*args, **kwargs)
        if not any(group.name in self.copies for group in routing.groups):
            return self.original(*args, **kwargs)
        check_rows(self.path, self.original)
        before, draws = routing.draws, [routing.draws]
        theirs = self._as_without_copies(routing, *args, **kwargs)
        draws.append(routing.draws)
        one_row = self._one_row(routing, (*args, *kwargs.values()))
        pieces = [self._pieces(routing, value, one_row) for value in args]
        named = {key: self._pieces(routing, value, one_row) for key, value in kwargs.items()}
        parts = []
        for index, group in enumerate(routing.groups):
            if theirs is not None and group.name != BASE and group.name not in self.copies:
                parts.append(theirs[index])
                continue
            # Modules inside see these rows alone, and draw for them what they would draw alone.
            inside = Routing.uniform(group.name, None if routing.seeds is None else routing.seeds.get(group.name))
            inside.draws = before
            with self.router.activate(inside):
                module = self.module(group.name)
                fit = _fitting if module is self.original else (lambda value, _: value)
                part = module(
                    *[fit(p[index], module) for p in pieces],
                    **{key: fit(p[index], module) for key, p in named.items()},
                )
            if not isinstance(part, Tensor):
                raise self._several_tensors()
            parts.append(part.expand(group.stop - group.start, *part.shape[1:]) if one_row else part)
            draws.append(inside.draws)
        routing.draws = max(draws)
        width = max(part.shape[-1] for part in parts)
        padded = [F.pad(part, (0, width - part.shape[-1]), value=-torch.inf) for part in parts]
        like = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() > 0)
        return routing.fitting(sum(part.shape[0] for part in parts)).join(padded, like)

    def _as_without_copies(self, routing: Routing, *args: Any, **kwargs: Any) -> list[Tensor] | None:
        """The original's output for each group, of all rows at once, where adapters without a copy need that.

        Alone such an adapter has no `OwnedModule` here. Where the original reads its input in several places and
        others read it too (a residual), gradients are added in the order of all these uses; were its rows cut out for
        the original, those inside would be added first. None: nobody needs it, or no order can differ.
        """
        others = any(group.name != BASE and group.name not in self.copies for group in routing.groups)
        if not others or _used_once(self.original):
            return None
        args = tuple(_fitting(value, self.original) for value in args)
        out = self.original(*args, **{key: _fitting(value, self.original) for key, value in kwargs.items()})
        if not isinstance(out, Tensor):
            raise self._several_tensors()
        routing = routing.fitting(out.shape[0])
        return routing.split(one_for_all(routing, out, self.path), self.path)

    def _several_tensors(self) -> RoutingError:
        return RoutingError(
            f"{self.path}: a {type(self.original).__name__} that gives more than one tensor, which are not "
            "put together again by row; run this model with one adapter per batch (`with model.using(name): ...`)"
        )

    def _one_row(self, routing: Routing, values: Sequence[Any]) -> bool:
        """Whether all that the module is given is one row for the whole batch (position ids).

        Each adapter's copy then computes that row once, as it does alone: its gradient is summed over the adapter's
        rows before it enters the module, in the type of the base.
        """
        tensors = [value for value in values if isinstance(value, Tensor) and value.dim() > 0]
        if not tensors or not all(is_one_for_all(routing, value) for value in tensors):
            return False
        routing.one_row_for_all = self.path
        return True

    def _pieces(self, routing: Routing, value: Any, whole: bool) -> list[Any]:
        """``value`` for each group: its rows of a tensor, anything else (and if ``whole`` all) as it is."""
        if whole or not isinstance(value, Tensor) or value.dim() == 0:
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
