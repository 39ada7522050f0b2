"""A frozen layer and the adapters on it. Knows no variant by name."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora.core.functions import adapted_linear
from lora.core.geometry import Geometry, geometry_of
from lora.core.randomness import dropout as seeded_dropout
from lora.core.randomness import seed_of
from lora.core.routing import BASE, Router, Routing
from lora.core.segments import FrozenLinear, Segment
from lora.core.variant import Dropout, Parameters, Variant, get_variant
from lora.errors import RoutingError


class Slot(nn.Module):
    """One adapter's parameters on one layer, with what is needed to apply them."""

    def __init__(self, variant: Variant, parameters: Parameters, rank: int, scaling: float, dropout: float) -> None:
        super().__init__()
        self.variant_name = variant.name
        self.rank = rank
        self.scaling = scaling
        self.dropout = dropout
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor))

    @property
    def variant(self) -> Variant:
        return get_variant(self.variant_name)

    @property
    def low_rank_update(self) -> bool:
        """Whether `Variant.low_rank_update` holds; not for a subclass that changes the formula without saying so."""
        variant = type(self.variant)
        return variant.low_rank_update and "low_rank_update" in vars(_definer(variant, "apply"))

    def tensors(self) -> Parameters:
        """The parameters by the variant's names."""
        return dict(self._parameters)  # type: ignore[arg-type]

    def factors(self, geometry: Geometry) -> Parameters:
        """The parameters as a layer of this geometry reads them."""
        return self.tensors()

    def apply_to(self, geometry: Geometry, x: Tensor, base_out: Tensor, seed: int | None = None) -> Tensor:
        """Output of the adapted layer for rows that all belong to this adapter. ``seed``: of its dropout, if it trains;
        None: torch's global generator."""
        dropout: Dropout = None
        if self.dropout and self.training:
            rate = self.dropout
            dropout = (lambda t: F.dropout(t, rate)) if seed is None else (lambda t: seeded_dropout(t, rate, seed))
        x, base_out = summed_here(x), summed_here(base_out)
        out = self.variant.apply(geometry, self.factors(geometry), x, base_out, self.scaling, dropout)
        if out.requires_grad:
            # Alone a gradient may come transposed (from an attention), in a mixed batch never; and sums over it (of a
            # magnitude, say) go by the order in memory.
            out.register_hook(Tensor.contiguous)
        return out

    def merged(self, geometry: Geometry) -> Tensor:
        return self.variant.merged(geometry, self.factors(geometry), self.scaling)

    def extra_repr(self) -> str:
        return f"{self.variant_name}, rank={self.rank}, scaling={self.scaling:g}, dropout={self.dropout:g}"


class TiedSlot(Slot):
    """A place that shares its update with a tied embedding: one set of parameters, several places.

    The embedding's ΔW = (B·A)ᵀ is (v, i). Another embedding over the same tensor uses the same factors. An output head
    over it computes x·ΔWᵀ, so its factors are A' = Bᵀ (r, i) and B' = Aᵀ (v, r).
    """

    source: Slot

    def __init__(self, source: Slot) -> None:
        super().__init__(source.variant, {}, source.rank, source.scaling, source.dropout)
        # Not a submodule: its parameters belong to the source and must be counted and stepped once.
        object.__setattr__(self, "source", source)

    def factors(self, geometry: Geometry) -> Parameters:
        """A and B as this place's kind of layer reads them."""
        tensors = self.source.tensors()
        if geometry.kind == "embedding":
            return tensors
        return {"A": tensors["B"].T, "B": tensors["A"].T}

    def __deepcopy__(self, memo: dict[int, Any]) -> TiedSlot:
        clone = TiedSlot(copy.deepcopy(self.source, memo))
        memo[id(self)] = clone
        return clone.train(self.training)


# Layers whose first axis is no batch although its length may happen to fit: tables over pairs of positions (T5), and
# experts, which see whatever tokens were sent to them.
_NO_ROWS = re.compile(r"relative|(^|\.)experts?\.\d", re.IGNORECASE)


def check_rows(path: str, layer: nn.Module) -> None:
    if _NO_ROWS.search(path):
        raise RoutingError(
            f"{path}: a {type(layer).__name__} that does not see the batch row by row; run this model with one adapter "
            "per batch (`with model.using(name): ...`), or leave that module out"
        )


def _definer(cls: type, name: str) -> type:
    """The class that defines attribute ``name`` of ``cls``."""
    return next(each for each in cls.__mro__ if name in vars(each))


def is_plain(layer: nn.Module, x: Tensor, frozen: bool = True) -> bool:
    """Whether ``layer`` is a linear one in x's type that nothing intercepts, so that its formula is known, and frozen
    if that is asked for. A quantised one is another class."""
    known = type(layer) is nn.Linear or (type(layer).__name__ == "Conv1D" and geometry_of(layer) is not None)
    if not known or x.dtype != layer.weight.dtype or "forward" in vars(layer):  # accelerate puts its own forward there
        return False
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return False
    return not (frozen and any(parameter.requires_grad for parameter in layer.parameters(recurse=False)))


def formula_of(layer: nn.Module, x: Tensor) -> FrozenLinear | None:
    """For whoever computes ``layer`` by itself on x (b, ..., i): its weight, and the updates of the routing in force.

    None where more happens than that, or rows must change places first.
    """
    if isinstance(layer, AdaptedLayer):
        return layer.formula(x)
    return FrozenLinear(layer.weight, layer.bias) if type(layer) is nn.Linear and is_plain(layer, x) else None


def summed_here(x: Tensor) -> Tensor:
    """``x`` as a node of its own: the gradients of all its uses behind this point are added before they go on.

    Sums of floating-point numbers depend on their order. Without this node autograd would add the uses inside a layer
    (the frozen one's, each adapter's) and those in neighbouring layers (query, key, value) in an order that changes
    with the number of adapters in the batch.
    """
    return x.view_as(x) if x.requires_grad else x


def one_for_all(routing: Routing, value: Tensor, where: str) -> Tensor:
    """One row that serves the whole batch (position ids) as a row of each: every adapter makes its own of it."""
    if not is_one_for_all(routing, value):
        return value
    assert routing.size is not None, "a uniform routing is never split"
    routing.one_row_for_all = where
    return value.expand(routing.size, *value.shape[1:])


def is_one_for_all(routing: Routing, value: Tensor) -> bool:
    """Whether ``value`` is one row that serves the whole batch of a mixed ``routing``."""
    return value.shape[0] == 1 and not routing.packed and routing.size != 1


class ByAdapter(nn.ModuleDict):
    """Modules by adapter name. Any name goes: dots, and words that nn.ModuleDict keeps for itself (``train``)."""

    @staticmethod
    def _key(name: str) -> str:
        return "@" + name.replace("%", "%25").replace(".", "%2E")

    def __getitem__(self, name: str) -> nn.Module:
        return super().__getitem__(self._key(name))

    def __setitem__(self, name: str, module: nn.Module) -> None:
        super().__setitem__(self._key(name), module)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(self._key(name))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(self._key(str(name)))


class AdaptedLayer(nn.Module):
    """A frozen layer with any number of adapters; each row of the input goes through its own.

    Attributes:
        base_layer: the frozen layer, untouched.
        slots: adapter name -> `Slot`.
        path: the layer's name in the model, for messages.
    """

    def __init__(self, base_layer: nn.Module, router: Router, path: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.slots = ByAdapter()
        self.path = path
        self.__dict__["router"] = router
        self.train(base_layer.training)

    @property
    def geometry(self) -> Geometry:
        geometry = geometry_of(self.base_layer)
        assert geometry is not None, "only layers with a geometry are wrapped"
        return geometry

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Rows x (b, ..., i) to (b, ..., o), each by the adapter that the routing in force names for it."""
        routing = self.router.resolve()
        slots = [self.slot(group.name) for group in routing.groups]
        if not any(slots):
            return self.base_layer(x, *args, **kwargs)
        if routing.single is None:
            routing = routing.fitting(x.shape[0])
            check_rows(self.path, self.base_layer)
            if is_one_for_all(routing, x):
                return self._one_row(routing, x, *args, **kwargs)
        x = summed_here(x)
        plain = not args and not kwargs and is_plain(self.base_layer, x)
        by_hand = [slot if slot is not None and plain and slot.low_rank_update else None for slot in slots]
        if any(by_hand):
            out = self._by_hand(routing, x, by_hand)
        else:
            out = self.base_layer(x, *args, **kwargs)
        rest = [None if hand is not None else slot for hand, slot in zip(by_hand, slots, strict=True)]
        return self._by_variant(routing, x, out, rest) if any(rest) else out

    def _one_row(self, routing: Routing, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer on one row x (1, ..., i) for the whole batch, which each adapter computes once, as it does alone.

        Its gradient is summed over the adapter's rows before it enters the layer.
        """
        routing.one_row_for_all = self.path
        parts = []
        for group in routing.groups:
            seeds = None if routing.seeds is None else routing.seeds.get(group.name)
            with self.router.activate(Routing.uniform(group.name, seeds)):
                row = self.forward(x, *args, **kwargs)
            parts.append(row.expand(group.stop - group.start, *row.shape[1:]))
        return routing.join(parts, x)

    def _by_hand(self, routing: Routing, x: Tensor, slots: Sequence[Slot | None]) -> Tensor:
        """The frozen layer and the low-rank updates among ``slots`` (one of each group) by one function."""
        layer: Any = self.base_layer
        geometry, order = self.geometry, None
        if routing.single is None:
            spans, order = routing.spans(x, self.path)
        else:
            spans = [(0, x.numel() // x.shape[-1])]
        segments = self._segments(routing, spans, slots)
        x = x if order is None else x.index_select(0, order[0])
        out = adapted_linear(x, layer.weight, layer.bias, segments, geometry.kind == "conv1d_hf")
        return out if order is None else out.index_select(0, order[1])

    def _segments(
        self, routing: Routing, spans: Sequence[tuple[int, int]], slots: Sequence[Slot | None]
    ) -> list[Segment]:
        """The updates of ``slots`` (one of each group) on the rows ``spans``."""
        geometry, segments = self.geometry, []
        for group, (start, stop), slot in zip(routing.groups, spans, slots, strict=True):
            if slot is None:
                continue
            factors, seed = slot.factors(geometry), self._seed(routing, group.name)
            drops = slot.dropout if slot.training else 0.0
            if drops and seed is None:
                seed = int(torch.randint(2**62, ()))  # from torch's global generator: the caller said nothing else
            segments.append(Segment(start, stop, factors["A"], factors["B"], slot.scaling, drops, seed))
        return segments

    def formula(self, x: Tensor) -> FrozenLinear | None:
        """See `formula_of`."""
        routing = self.router.resolve()
        slots = [self.slot(group.name) for group in routing.groups]
        hooks = (self._forward_hooks, self._forward_pre_hooks, self._backward_hooks, self._backward_pre_hooks)
        more = any(slot is not None and not slot.low_rank_update for slot in slots)
        if more or any(hooks) or not is_plain(self.base_layer, x):
            return None
        layer: Any = self.base_layer
        transposed = self.geometry.kind == "conv1d_hf"
        if not any(slots):
            return FrozenLinear(layer.weight, layer.bias, (), transposed)
        spans = [(0, x.numel() // x.shape[-1])]
        if routing.single is None:
            routing = routing.fitting(x.shape[0])
            check_rows(self.path, layer)
            if not routing.packed and x.shape[0] != routing.size:
                return None
            spans, order = routing.spans(x, self.path)
            if order is not None:
                return None
        return FrozenLinear(layer.weight, layer.bias, self._segments(routing, spans, slots), transposed)

    def low_rank_segments(self, x: Tensor, name: str) -> list[Segment] | None:
        """For whoever computes this layer by itself: the update of adapter ``name`` on all rows of ``x`` (n, i), under
        the routing in force. None where it is more than a low-rank update of a plain layer."""
        slot = self.slot(name)
        if not is_plain(self.base_layer, x) or (slot is not None and not slot.low_rank_update):
            return None
        return self._segments(self.router.resolve(), [(0, x.shape[0])], [slot])

    def _by_variant(self, routing: Routing, x: Tensor, out: Tensor, slots: Sequence[Slot | None]) -> Tensor:
        """``out``, the rows of each of ``slots`` (one of each group) as its variant makes them of the frozen ones."""
        geometry = self.geometry
        if routing.single is not None:
            assert slots[0] is not None, "only groups with a slot come here"
            return slots[0].apply_to(geometry, x, out, self._seed(routing, routing.single))
        parts = [
            rows if slot is None else slot.apply_to(geometry, x_rows, rows, self._seed(routing, group.name))
            for group, x_rows, rows, slot in zip(
                routing.groups,
                routing.split(x, self.path, ids=geometry.kind == "embedding"),
                routing.split(out, self.path),
                slots,
                strict=True,
            )
        ]
        return routing.join(parts, out)

    def _seed(self, routing: Routing, name: str) -> int | None:
        """The seed of what adapter ``name`` draws here in this pass; None: torch's global generator."""
        return None if routing.seeds is None or name == BASE else seed_of(routing.seeds[name], self.path)

    def slot(self, name: str) -> Slot | None:
        """The adapter's slot here, or None for ``base`` and for adapters that leave this layer alone."""
        if name == BASE or name not in self.slots:
            return None
        return self.slots[name]  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        # Some models read attributes of a layer instead of calling it (T5: self.wo.weight.dtype).
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptedLayer:
        clone = type(self)(copy.deepcopy(self.base_layer, memo), copy.deepcopy(self.router, memo), self.path)
        memo[id(self)] = clone
        clone.slots = copy.deepcopy(self.slots, memo)
        return clone.train(self.training)
