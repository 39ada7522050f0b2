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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora.core import grouped
from lora.core.products import contained, lost
from lora.core.segments import FrozenLinear, Segment, draws, kept_scaling, mask_of


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
    assert not weight.requires_grad, "the weight is frozen: it would get no gradient"
    assert bias is None or not bias.requires_grad, "so is the bias"
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    layer = FrozenLinear(weight, bias, segments, transposed)
    factors = [factor for segment in segments for factor in (segment.A, segment.B)]
    # Reshaped here and not inside: autograd allows no operation in place on a view that a function returns.
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _AdaptedLinear.apply(rows, layer, torch.is_grad_enabled(), *factors)
    return out.view(*x.shape[:-1], out.shape[-1])


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast wants for a matrix product of ``x``; None where it is off, or leaves it alone."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


# From so many rows on a row's bits in a product with a frozen weight do not depend on how many there are (on the CPU).
FEWEST_ROWS = 16

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


def add_update(rows: Tensor, low: Tensor, up: Tensor) -> None:
    """rows += low·Bᵀ, with ``rows`` (m, o) a view of a larger tensor, ``low`` (m, r) and ``up`` a segment's B."""
    if up.is_floating_point():
        add_product(rows, low, up.T)
    else:
        rows.index_add_(1, up, low)


def through_update(drows: Tensor, up: Tensor) -> Tensor:
    """∂y·B (m, r), with ``drows`` (m, o) and ``up`` a segment's B."""
    return drows @ up if up.is_floating_point() else drows.index_select(1, up)


def in_type(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A or B of a segment in the type of what it multiplies; integers stay what they are."""
    return factor.to(dtype) if factor.is_floating_point() else factor


class _AdaptedLinear(torch.autograd.Function):
    """y = x·Wᵀ + b, and per segment, with m its dropout mask and s its scaling,

        h = s · (m∘x)·Aᵀ        y += h·Bᵀ
        ∂h = s · ∂y·B       ∂x = ∂y·W + m∘(∂h·A)       ∂A = ∂hᵀ·(m∘x)       ∂B = ∂yᵀ·h.

    Gradients of A and B are rounded to the type of the activations, as autocast rounds them, and returned in their own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear, graph: bool, *factors: Tensor) -> Tensor:
        needs = [graph and need for need in ctx.needs_input_grad[3:]]
        out, kept = forward_rows(x, layer, factors, needs)
        if graph:
            # Beside what is saved: nothing writes to the weight, and hooks that move saved tensors leave it alone.
            ctx.layer = layer
            ctx.save_for_backward(x if any(needs[::2]) else None, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, *kept = ctx.saved_tensors
        needs_x, _, _, *needs = ctx.needs_input_grad
        # Gradients of a sum come expanded, those of a transposed product transposed: products want neither.
        dx, grads = backward_rows(gradients[0].contiguous(), ctx.layer, x, kept, needs_x, needs)
        return dx, None, None, *grads


def forward_rows(
    x: Tensor, layer: FrozenLinear, factors: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The forward of `adapted_linear` outside autograd, on x (n, i).

    Args:
        factors: A and B of each segment.
        needs: which of them want a gradient. Where any A does, `backward_rows` will read ``x``.

    Returns the output (n, o), and what `backward_rows` takes as ``kept``: of each segment h (m, r), A and B in the type
    of ``x``.
    """
    out = _frozen(x, layer)
    if grouped.fits(x, layer):
        return out, grouped.add_updates(out, x, layer, factors, needs)
    kept: list[Tensor | None] = []
    for number, segment in enumerate(layer.segments):
        inputs = aligned(x[segment.start : segment.stop])
        down, up = (in_type(factor, x.dtype) for factor in factors[2 * number : 2 * number + 2])
        low = F.linear(inputs if not draws(segment) else inputs * mask_of(segment, inputs), down)
        scale = kept_scaling(segment)
        if scale != 1:
            low.mul_(scale)
        add_update(out[segment.start : segment.stop], low, up)
        kept += [low if needs[2 * number + 1] else None, down, up]
    return out, kept


def backward_rows(
    dy: Tensor, layer: FrozenLinear, x: Tensor | None, kept: Sequence[Any], needs_x: bool, needs: Sequence[bool]
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of x (n, i) and of each factor, for a contiguous ``dy`` (n, o)."""
    dx = _frozen_gradient(dy, layer) if needs_x else None
    if grouped.fits(dy, layer):
        return dx, grouped.add_gradients(dx, dy, layer, x, kept, needs)
    grads: list[Tensor | None] = []
    for number, segment in enumerate(layer.segments):
        low, down, up = kept[3 * number : 3 * number + 3]
        needs_a, needs_b = needs[2 * number : 2 * number + 2]
        its_dy = aligned(dy[segment.start : segment.stop])
        grads += [None, (its_dy.T @ low).to(segment.B.dtype) if needs_b else None]
        if dx is None and not needs_a:
            continue
        dlow = through_update(its_dy, up)
        scale = kept_scaling(segment)
        if scale != 1:
            dlow.mul_(scale)
        mask = mask_of(segment, down) if draws(segment) else None
        if needs_a:
            assert x is not None, "kept where an A needs its gradient"
            inputs = aligned(x[segment.start : segment.stop])
            grads[-2] = (dlow.T @ (inputs if mask is None else inputs * mask)).to(segment.A.dtype)
        if dx is not None and mask is None:
            add_product(dx[segment.start : segment.stop], dlow, down)
        elif dx is not None:
            dx[segment.start : segment.stop].add_((dlow @ down).mul_(mask))
    return dx, grads


def _frozen(rows: Tensor, layer: FrozenLinear) -> Tensor:
    """(n, o) of ``rows`` (n, i), by the very operators that ``nn.Linear`` and ``Conv1D`` use: the same bits."""
    rows, bad = contained(rows)
    if not layer.transposed:
        out = F.linear(rows, layer.weight, layer.bias)
    else:
        out = rows @ layer.weight if layer.bias is None else torch.addmm(layer.bias, rows, layer.weight)
    return lost(out, bad)


def _frozen_gradient(dy: Tensor, layer: FrozenLinear) -> Tensor:
    """∂y·W (n, i)."""
    given, bad = contained(dy)
    return lost(given @ (layer.weight.T if layer.transposed else layer.weight), bad)
