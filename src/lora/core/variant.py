"""The contract of a variant, and the registry.

A variant is the formula by which an adapter changes a layer. It is one file in `lora.variants` and one line in
`lora.registry`; no other code knows it by name, and the contract tests pick it up from the registry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from lora.core.geometry import Geometry
from lora.errors import ConfigError
from lora.registry import VARIANTS

Parameters = dict[str, Tensor]
Dropout = Callable[[Tensor], Tensor] | None


class Variant(ABC):
    """A formula W' = f(W, A, B, ...). Stateless: parameters are passed in.

    Class attributes:
        name: the registered name.
        kinds: geometries it works on.
        peft_keys: entries of PEFT's ``adapter_config.json`` that say this variant; empty for the plain one.
        peft_suffixes: its parameters beside A and B -> the suffix of their tensor in PEFT's file.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[str]]
    peft_keys: ClassVar[dict[str, object]] = {}
    peft_suffixes: ClassVar[dict[str, str]] = {}
    # Whether the update is scaling · B·A·x beside the frozen output and nothing else: linear layers then compute it by
    # a function derived by hand in place of `apply`. To be said by the very class that defines `apply`.
    low_rank_update: ClassVar[bool] = False

    def create(self, geometry: Geometry, rank: int, generator: torch.Generator) -> Parameters:
        """Initial parameters in fp32; the adapted layer must start out equal to the frozen one."""
        shape_a, shape_b = geometry.shapes(rank)
        A, B = torch.empty(shape_a), torch.empty(shape_b)
        geometry.init(A, B, generator)
        return {"A": A, "B": B}

    @abstractmethod
    def apply(
        self, geometry: Geometry, parameters: Parameters, x: Tensor, base_out: Tensor, scaling: float, dropout: Dropout
    ) -> Tensor:
        """Output of the adapted layer.

        Args:
            geometry: the frozen layer's kind, giving access to its weight.
            parameters: what `create` made, possibly trained.
            x: input rows (b, ..., i); token ids for an embedding.
            base_out: the frozen layer's output for ``x`` (b, ..., o).
            scaling: alpha/rank or alpha/√rank.
            dropout: applied to the adapter's input while training, or None.
        """

    @abstractmethod
    def merged(self, geometry: Geometry, parameters: Parameters, scaling: float) -> Tensor:
        """The weight that replaces the frozen one, in its layout, computed in fp32."""

    def peft_shape(self, geometry: Geometry, tensor: Tensor) -> Tensor:
        """``tensor`` of one of ``peft_suffixes`` in the shape PEFT stores."""
        return tensor


_REGISTRY: dict[str, Variant] = {}


def register(variant: Variant) -> None:
    """Make ``variant`` known under its name, here and to the settings."""
    _REGISTRY[variant.name] = variant
    VARIANTS.setdefault(variant.name, None)


def get_variant(name: str) -> Variant:
    """The variant called ``name``; raises ConfigError listing the known ones."""
    import lora.variants  # noqa: F401  (fills the registry)

    try:
        return _REGISTRY[name]
    except KeyError:
        raise ConfigError(f"variant {name!r} is unknown; known: {', '.join(sorted(_REGISTRY))}") from None


def variants() -> dict[str, Variant]:
    """All registered variants by name."""
    import lora.variants  # noqa: F401

    return dict(_REGISTRY)
