"""How a low-rank update acts on each kind of layer: shapes, the two small products, the weight they amount to.

The update of every kind is ΔW = scaling · B·A (Hu et al. 2021, arXiv:2106.09685, eq. 3); the kinds differ only in
layout. A variant is written against this interface and so works on every kind it names.

Shapes: b row, t token, i in, o out, r rank, v vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Geometry(ABC):
    """One kind of layer. Stateless: everything is read from the frozen layer at the call."""

    kind: ClassVar[str]
    peft_names: ClassVar[tuple[str, str]] = ("lora_A.weight", "lora_B.weight")

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer

    @abstractmethod
    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B."""

    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(out, in) of the weight as a matrix: the rank cannot usefully exceed the smaller."""

    @abstractmethod
    def low_rank(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """B·(A·x) for this kind, unscaled: the shape of the layer's output."""

    @abstractmethod
    def delta(self, A: Tensor, B: Tensor) -> Tensor:
        """B·A in the layout of the layer's own weight, unscaled."""

    @abstractmethod
    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's own formula with another weight, without bias."""

    def weight(self) -> Tensor:
        """The frozen weight, in the layer's own layout."""
        return self.layer.weight

    def bias(self) -> Tensor | None:
        """The frozen bias, broadcastable over the output, or None."""
        return getattr(self.layer, "bias", None)

    def magnitude(self, weight: Tensor) -> Tensor:
        """Norm of ``weight`` per output feature, (o,) — DoRA's m and ‖·‖_c."""
        return torch.linalg.vector_norm(weight.flatten(1), dim=1)

    def per_output(self, vector: Tensor, like: Tensor) -> Tensor:
        """``vector`` (o,) shaped to multiply an output like ``like``."""
        return vector

    def scale_rows(self, weight: Tensor, vector: Tensor) -> Tensor:
        """``weight`` with each output feature multiplied by its entry of ``vector`` (o,)."""
        return weight * vector.view(-1, *([1] * (weight.dim() - 1)))

    def init(self, A: Tensor, B: Tensor, generator: torch.Generator) -> None:
        """PEFT's start: A kaiming-uniform with a = √5, B zero, so that the update starts at zero."""
        fan_in = A[0].numel()
        bound = math.sqrt(6 / ((1 + 5) * fan_in))
        A.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=generator))
        B.zero_()


class LinearGeometry(Geometry):
    """``nn.Linear``: weight (o, i), input (..., i)."""

    kind = "linear"

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        out, into = self.size()
        return (rank, into), (out, rank)

    def size(self) -> tuple[int, int]:
        return self.layer.weight.shape[0], self.layer.weight.shape[1]

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return F.linear(F.linear(x, A), B)

    def delta(self, A: Tensor, B: Tensor) -> Tensor:
        return B @ A

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)


class Conv1DGeometry(LinearGeometry):
    """transformers' ``Conv1D`` (GPT-2): a linear layer with its weight transposed, (i, o)."""

    kind = "conv1d_hf"

    def size(self) -> tuple[int, int]:
        return self.layer.weight.shape[1], self.layer.weight.shape[0]

    def delta(self, A: Tensor, B: Tensor) -> Tensor:
        return (B @ A).T

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight.T)

    def magnitude(self, weight: Tensor) -> Tensor:
        return torch.linalg.vector_norm(weight, dim=0)

    def scale_rows(self, weight: Tensor, vector: Tensor) -> Tensor:
        return weight * vector


class EmbeddingGeometry(Geometry):
    """``nn.Embedding``: weight (v, o), input token ids (...); A is (r, v), B (o, r), ΔW = (B·A)ᵀ."""

    kind = "embedding"
    peft_names = ("lora_embedding_A", "lora_embedding_B")

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        vocabulary, dim = self.layer.weight.shape
        return (rank, vocabulary), (dim, rank)

    def size(self) -> tuple[int, int]:
        return self.layer.weight.shape[1], self.layer.weight.shape[0]

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        layer = self.layer
        # Options that renormalise in place would write to A; only the gradient-neutral ones are passed on.
        rows = F.embedding(x, A.T, padding_idx=layer.padding_idx, scale_grad_by_freq=layer.scale_grad_by_freq)
        return self.scaled(rows @ B.T)

    def scaled(self, out: Tensor) -> Tensor:
        """Rows of a weight as the layer gives them: some models scale inside (Gemma's ScaledWordEmbedding)."""
        scale = getattr(self.layer, "embed_scale", None)
        return out if scale is None else out * _as_tensor(scale, out)

    def delta(self, A: Tensor, B: Tensor) -> Tensor:
        return (B @ A).T

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.scaled(F.embedding(x, weight, padding_idx=self.layer.padding_idx))

    def bias(self) -> Tensor | None:
        return None

    def magnitude(self, weight: Tensor) -> Tensor:
        return torch.linalg.vector_norm(weight, dim=0)

    def scale_rows(self, weight: Tensor, vector: Tensor) -> Tensor:
        return weight * vector

    def init(self, A: Tensor, B: Tensor, generator: torch.Generator) -> None:
        A.zero_()
        B.copy_(torch.empty(B.shape).normal_(generator=generator))


PART = 8  # rows that a low-rank convolution takes at a time


class Conv2dGeometry(Geometry):
    """``nn.Conv2d``: weight (o, i/groups, kh, kw); A is a convolution to r channels, B a 1×1 one to o."""

    kind = "conv2d"

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        out, into, height, width = self.layer.weight.shape
        return (rank, into, height, width), (out, rank, 1, 1)

    def size(self) -> tuple[int, int]:
        return self.layer.weight.shape[0], self.layer.weight[0].numel()

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        # The 1×1 convolution as a matrix product: those give a row the same bits whatever the number of rows.
        return F.linear(self._by_parts(x, A).movedim(1, -1), B.flatten(1)).movedim(-1, 1)

    def _by_parts(self, x: Tensor, A: Tensor) -> Tensor:
        """`forward` of as many rows at a time as do not change: on the CPU the kernel, and with it a row's last bits,
        depends on their number."""
        if x.device.type != "cpu" or x.dim() != 4:
            return self.forward(x, A)
        rows = x.shape[0]
        if rows % PART:
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, PART - rows % PART))
        return torch.cat([self.forward(part, A) for part in x.split(PART)])[:rows]

    def delta(self, A: Tensor, B: Tensor) -> Tensor:
        return (B.flatten(1) @ A.flatten(1)).view(self.layer.weight.shape)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        layer: Any = self.layer
        if layer.padding_mode != "zeros":
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
            return F.conv2d(x, weight, None, layer.stride, 0, layer.dilation)
        return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)

    def bias(self) -> Tensor | None:
        bias = self.layer.bias
        return None if bias is None else bias.view(-1, 1, 1)

    def per_output(self, vector: Tensor, like: Tensor) -> Tensor:
        return vector.view(-1, 1, 1)


def _as_tensor(scale: Any, like: Tensor) -> Tensor:
    return scale.to(like) if isinstance(scale, Tensor) else torch.as_tensor(scale, dtype=like.dtype, device=like.device)


def geometry_of(module: nn.Module) -> Geometry | None:
    """The geometry of ``module``, or None for a kind that cannot be adapted."""
    if isinstance(module, nn.Linear):
        # Routers of experts (Llama 4) are subclasses that give more than one tensor; the forward of others (Falcon's, a
        # quantised layer's) is another way to compute the same.
        routes = type(module).forward is not nn.Linear.forward and "router" in type(module).__name__.lower()
        return None if routes else LinearGeometry(module)
    if isinstance(module, nn.Embedding):
        return EmbeddingGeometry(module)
    if isinstance(module, nn.Conv2d):
        # Grouped convolutions would need a B per group; PEFT has its own layout for them.
        return Conv2dGeometry(module) if module.groups == 1 else None
    if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
        return Conv1DGeometry(module)
    return None
