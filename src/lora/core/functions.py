"""A frozen linear layer with low-rank updates on runs of its rows: forward and backward derived by hand.

The update is y += scaling · x·Aᵀ·Bᵀ (Hu et al. 2021, arXiv:2106.09685, eq. 3). Written as operators on tensors, it
casts the activations to fp32, keeps that copy, and makes the update and its gradients as tensors of their own. Here
only x itself and x·Aᵀ are kept, sums are taken in place, and the activations stay in their own type: A and B, which are
small, are cast instead. Matrix products of half types accumulate in fp32 and round once.

The law of isolation: a segment's products are of its own rows alone, so they have the same shape whatever stands beside
them; only the frozen products run over all rows, and there a row's bits do not depend on how many there are (on the
CPU from 16 rows on, for layers 12 wide or more; the tests hold it).

Shapes: n row (tokens of all rows of the batch, in one axis), i in, o out, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora.core.randomness import keep_mask, kept_share


class Segment(NamedTuple):
    """One adapter's update of a run of rows. The segments of a layer do not overlap."""

    start: int
    stop: int
    A: Tensor  # (r, i)
    B: Tensor  # (o, r)
    scaling: float = 1.0
    dropout: float = 0.0
    seed: int | None = None  # of the dropout; None: none is drawn


class FrozenLinear(NamedTuple):
    """A frozen layer and the updates on it. Rows in no segment go through the frozen layer alone."""

    weight: Tensor  # (o, i), or (i, o) if transposed (transformers' Conv1D); gets no gradient
    bias: Tensor | None = None  # (o,); gets no gradient
    segments: Sequence[Segment] = ()
    transposed: bool = False


def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, segments: Sequence[Segment], transposed: bool = False
) -> Tensor:
    """x·Wᵀ + b, and on the rows of each segment scaling · drop(x)·Aᵀ·Bᵀ beside it.

    Args:
        x: (..., i); segments count rows of it flattened to (n, i).
        weight: (o, i), or (i, o) if ``transposed``; frozen.
        bias: (o,) or None; frozen.

    Returns (..., o) in the type of ``x``. Gradients go to ``x``, A and B; there is no second derivative.
    """
    return adapted_linears(x, [FrozenLinear(weight, bias, segments, transposed)])[0]


def adapted_linears(x: Tensor, layers: Sequence[FrozenLinear]) -> tuple[Tensor, ...]:
    """`adapted_linear` of several layers over the same ``x`` (..., i), as one function.

    Segments of the same rows and the same dropout share one product with x, whatever their ranks, and the gradient of x
    is summed in one buffer. Results may differ from separate calls in the last bits.
    """
    assert not any(layer.weight.requires_grad for layer in layers), "the weight is frozen: it would get no gradient"
    assert not any(layer.bias is not None and layer.bias.requires_grad for layer in layers), "so is the bias"
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
        layers = [
            layer._replace(weight=layer.weight.to(dtype), bias=None if layer.bias is None else layer.bias.to(dtype))
            for layer in layers
        ]
    factors = [factor for layer in layers for segment in layer.segments for factor in (segment.A, segment.B)]
    # Reshaped here and not inside: autograd allows no operation in place on a view that a function returns.
    rows = x.reshape(-1, x.shape[-1])
    outs: tuple[Tensor, ...] = _AdaptedLinears.apply(rows, tuple(layers), torch.is_grad_enabled(), *factors)
    return tuple(out.view(*x.shape[:-1], out.shape[-1]) for out in outs)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast wants for a matrix product of ``x``; None where it is off, or leaves it alone."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def kept_scaling(segment: Segment) -> float:
    """The scaling of an update, and with it the division of inverted dropout: x is multiplied by 0 or 1 alone."""
    if not draws(segment):
        return segment.scaling
    return segment.scaling / kept_share(segment.dropout)


def draws(segment: Segment) -> bool:
    """Whether the segment drops any of its input."""
    return segment.dropout > 0 and segment.seed is not None


def scaled_up(B: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """scaling·Bᵀ (r, o) of B (o, r), rounded once to ``dtype`` and contiguous: products with it are faster so."""
    return (B.T * scaling).to(dtype, memory_format=torch.contiguous_format)


# Where a run of rows starts off a 16-byte boundary (layers of odd width), MKL's fp32 kernels add in another order: the
# bits would depend on how many rows stand before.
_BOUNDARY = 16


def aligned(rows: Tensor) -> Tensor:
    """``rows``, or a copy of them where they start off the boundary."""
    return rows if rows.data_ptr() % _BOUNDARY == 0 else rows.clone()


def add_product(rows: Tensor, left: Tensor, right: Tensor) -> None:
    """rows += left·right, with ``rows`` (m, o) a view of a larger tensor."""
    if rows.data_ptr() % _BOUNDARY == 0:
        rows.addmm_(left, right)
    else:
        rows.copy_(torch.addmm(rows, left, right))


class _Piece(NamedTuple):
    """One layer's part of a block."""

    layer: int
    factor: int  # where its A stands among the factors; B follows
    columns: slice  # its ranks among those of the block
    scaling: float


class _Block(NamedTuple):
    """Segments of several layers that read the same rows through the same dropout."""

    start: int
    stop: int
    dropout: float
    seed: int | None
    pieces: list[_Piece]

    @property
    def places(self) -> list[int]:
        """Where the A of its pieces stand among the factors."""
        return [piece.factor for piece in self.pieces]

    def mask(self, down: Tensor) -> Tensor | None:
        """What multiplies the block's rows of x (m, i): drawn in the forward, and drawn again in the backward."""
        if self.seed is None:
            return None
        return keep_mask((self.stop - self.start, down.shape[1]), self.dropout, self.seed, down)


def _blocks(layers: Sequence[FrozenLinear]) -> list[_Block]:
    blocks: dict[tuple[Any, ...], _Block] = {}
    factor = 0
    for number, layer in enumerate(layers):
        for segment in layer.segments:
            drawn = (segment.dropout, segment.seed) if draws(segment) else (0.0, None)
            key = (segment.start, segment.stop, *drawn)
            pieces = blocks.setdefault(key, _Block(*key, [])).pieces
            first = pieces[-1].columns.stop if pieces else 0
            columns = slice(first, first + segment.A.shape[0])
            pieces.append(_Piece(number, factor, columns, kept_scaling(segment)))
            factor += 2
    return list(blocks.values())


class _AdaptedLinears(torch.autograd.Function):
    """Per layer y = x·Wᵀ + b, and per segment, with m its dropout mask and s its scaling,

        h = (m∘x)·Aᵀ        y += s · h·Bᵀ
        ∂h = s · ∂y·B       ∂x = ∂y·W + m∘(∂h·A)       ∂A = ∂hᵀ·(m∘x)       ∂B = s · ∂yᵀ·h.

    Gradients of A and B are rounded to the type of the activations, as autocast rounds them, and returned in their own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: tuple[FrozenLinear, ...], graph: bool, *factors: Tensor) -> Any:
        needs = [graph and need for need in ctx.needs_input_grad[3:]]
        outs, kept, reads_x = forward_rows(x, layers, factors, needs)
        if graph:
            # Beside what is saved: nothing writes to the weights, and hooks that move saved tensors leave them alone.
            ctx.layers, ctx.types = layers, [factor.dtype for factor in factors]
            ctx.save_for_backward(x if reads_x else None, *kept)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *douts: Tensor) -> Any:
        rows, *kept = ctx.saved_tensors
        # Gradients of a sum come expanded, those of a transposed product transposed: products want neither.
        dys = [dout.contiguous() for dout in douts]
        dx, grads = backward_rows(dys, ctx.layers, rows, kept, ctx.needs_input_grad[0], ctx.needs_input_grad[3:])
        typed = [None if g is None else g.to(kind) for g, kind in zip(grads, ctx.types, strict=True)]
        return dx, None, None, *typed


def forward_rows(
    x: Tensor, layers: Sequence[FrozenLinear], factors: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[list[Tensor], list[Tensor | None], bool]:
    """The forward of `adapted_linears` outside autograd, on x (n, i).

    Args:
        factors: A and B of each segment, in the order of the layers.
        needs: which of them want a gradient.

    Returns the outputs (n, o), what `backward_rows` takes as ``kept``, and whether it will read ``x``.
    """
    outs = [_frozen(x, layer) for layer in layers]
    kept: list[Tensor | None] = []
    blocks = _blocks(layers)
    for block in blocks:
        inputs = aligned(x[block.start : block.stop])
        down = _joined([factors[place] for place in block.places]).to(x.dtype)
        mask = block.mask(down)
        low = F.linear(inputs if mask is None else inputs * mask, down)
        ups = []
        for piece in block.pieces:
            up = scaled_up(factors[piece.factor + 1], piece.scaling, x.dtype)
            add_product(outs[piece.layer][block.start : block.stop], low[:, piece.columns], up)
            ups.append(up)
        kept += [low if any(needs[place + 1] for place in block.places) else None, down, *ups]
    return outs, kept, any(needs[place] for block in blocks for place in block.places)


def backward_rows(
    dys: list[Tensor], layers: Sequence[FrozenLinear], x: Tensor | None, kept: Sequence[Any], needs_x: bool,
    needs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
    """Gradients of ``x`` and of each factor, for contiguous ``dys`` (n, o) of the layers."""
    dx = _frozen_gradient(dys, layers) if needs_x else None
    grads: list[Tensor | None] = [None] * len(needs)
    done = 0
    for block in _blocks(layers):
        low, down, *ups = kept[done : done + 2 + len(block.pieces)]
        done += 2 + len(block.pieces)
        for place, gradient in _block_gradient(block, x, low, down, ups, dys, dx, needs).items():
            grads[place] = gradient
    return dx, grads


def _frozen(rows: Tensor, layer: FrozenLinear) -> Tensor:
    """(n, o) of ``rows`` (n, i), by the very operators that ``nn.Linear`` and ``Conv1D`` use: the same bits."""
    if not layer.transposed:
        return F.linear(rows, layer.weight, layer.bias)
    return rows @ layer.weight if layer.bias is None else torch.addmm(layer.bias, rows, layer.weight)


def _frozen_gradient(dys: list[Tensor], layers: Sequence[FrozenLinear]) -> Tensor:
    """Σ ∂y·W (n, i) over the layers; ``dys`` are (n, o)."""
    dx: Tensor | None = None
    for dy, layer in zip(dys, layers, strict=True):
        weight = layer.weight.T if layer.transposed else layer.weight
        dx = dy @ weight if dx is None else dx.addmm_(dy, weight)
    assert dx is not None, "there is at least one layer"
    return dx


def _block_gradient(
    block: _Block, rows: Tensor | None, low: Tensor | None, down: Tensor, ups: list[Tensor], dys: list[Tensor],
    dx: Tensor | None, needs: Sequence[bool],
) -> dict[int, Tensor]:  # fmt: skip
    """Add a block's part to ``dx`` (n, i); the gradients of those of its factors that need one, by their places.

    ``rows`` is x (n, i); ``low`` h (m, R), with R the ranks of all pieces; ``down`` their A one beneath the other
    (R, i); ``ups`` s·Bᵀ (r, o) of each; ``dys`` ∂y (n, o) of each layer.
    """
    cut = slice(block.start, block.stop)
    found: dict[int, Tensor] = {}
    dlows = []
    for piece, up in zip(block.pieces, ups, strict=True):
        dy = aligned(dys[piece.layer][cut])
        dlows.append(dy @ up.T)
        if needs[piece.factor + 1]:
            assert low is not None, "kept where a B needs its gradient"
            # hᵀ·∂y and not ∂yᵀ·h, which takes about twice as long; scaled in fp32.
            gradient = (low[:, piece.columns].T @ dy).T.contiguous()
            found[piece.factor + 1] = _wide(gradient).mul_(piece.scaling)
    needed = [piece for piece in block.pieces if needs[piece.factor]]
    if dx is None and not needed:
        return found
    dlow, mask = _joined(dlows, dim=1), block.mask(down)
    if needed:
        assert rows is not None, "kept where an A needs its gradient"
        inputs = aligned(rows[cut])
        gradient = dlow.T @ (inputs if mask is None else inputs * mask)
        for piece in needed:
            found[piece.factor] = gradient[piece.columns]
    if dx is not None:
        if mask is None:
            add_product(dx[cut], dlow, down)
        else:
            dx[cut].add_((dlow @ down).mul_(mask))
    return found


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
