"""Parts of a decoder's layer as one function each, which keeps less for the backward and makes cheap things again.

Whether `gated_mlp` can be used depends on the adapters in the batch; so it computes bit by bit what its layers would by
themselves, and an adapter's result does not depend on its neighbours. `rms_norm` depends on no adapter.

Shapes: n row, i in, m intermediate, o out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora.core.functions import backward_rows, forward_rows
from lora.core.segments import FrozenLinear


class Activation:
    """act(g)∘u for an element-wise function: its value, and the gradients of g and u.

    Args:
        forward: act.
        backward: its gradient, of the incoming gradient and the input.

    ``exact``: it has the bits of the operators that a model's own code would call.
    """

    exact = True

    def __init__(self, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.forward, self.backward = forward, backward

    def product(self, g: Tensor, u: Tensor) -> Tensor:
        """act(g)∘u; all shapes (n, m)."""
        return self.forward(g).mul_(u)

    def again(self, g: Tensor, u: Tensor, wanted: bool) -> tuple[Tensor | None, Tensor | None]:
        """`product` once more if ``wanted``, and what `gradients` takes as ``s``."""
        s = self.forward(g)
        return s * u if wanted else None, s

    def gradients(self, da: Tensor, g: Tensor, u: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor]:
        """∂g and ∂u; ``da`` (the product's) and ``s`` are overwritten, and others may write to ``g`` and ``u``."""
        assert s is not None, "`again` gave it"
        du = s.mul_(da)
        return self.backward(da.mul_(u), g), du


# act and its gradient.
ELEMENTWISE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, torch.ops.aten.silu_backward),
    "gelu": (F.gelu, torch.ops.aten.gelu_backward),
    "gelu_tanh": (
        lambda x: F.gelu(x, approximate="tanh"), lambda dy, x: torch.ops.aten.gelu_backward(dy, x, approximate="tanh")
    ),
}  # fmt: skip
ACTIVATIONS = {name: Activation(*functions) for name, functions in ELEMENTWISE.items()}


def gated_mlp(x: Tensor, gate: FrozenLinear, up: FrozenLinear, down: FrozenLinear, activation: Activation) -> Tensor:
    """down(act(gate(x)) ∘ up(x)) (Shazeer 2020, arXiv:2002.05202, eq. 6), each layer with its updates.

    Kept are x and what gate and up give (n, m); autograd would keep the activation and the product too.

    Args:
        x: (..., i); segments count rows of it flattened to (n, i).

    Returns (..., o). Gradients go to ``x``, A and B; there is no second derivative.
    """
    layers = (gate, up, down)
    factors = [factor for layer in layers for segment in layer.segments for factor in (segment.A, segment.B)]
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _GatedMLP.apply(rows, layers, activation, torch.is_grad_enabled(), *factors)
    return out.view(*x.shape[:-1], out.shape[-1])


class _GatedMLP(torch.autograd.Function):
    """With g, u the outputs of gate and up, s = act(g), a = s∘u and y = down(a),

    ∂a = down'(∂y)       ∂u = ∂a∘s       ∂g = act'(g)∘(∂a∘u)       ∂x = gate'(∂g) + up'(∂u).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layers: tuple[FrozenLinear, ...], activation: Activation, graph: bool, *factors: Tensor
    ) -> Tensor:
        counts = [2 * len(layer.segments) for layer in layers]
        of_gate, of_up, of_down = _cut(factors, counts)
        for_gate, for_up, for_down = _cut([graph and need for need in ctx.needs_input_grad[4:]], counts)
        g, kept_gate = forward_rows(x, layers[0], of_gate, for_gate)
        u, kept_up = forward_rows(x, layers[1], of_up, for_up)
        a = activation.product(g, u)
        y, kept_down = forward_rows(a, layers[2], of_down, for_down)
        if graph:
            ctx.layers, ctx.activation, ctx.counts = layers, activation, counts
            reads_x = any((*for_gate[::2], *for_up[::2]))
            ctx.save_for_backward(x if reads_x else None, g, u, *kept_gate, *kept_up, *kept_down)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, g, u, *kept = ctx.saved_tensors
        # Of each segment three tensors are kept, and two are its factors.
        kept_gate, kept_up, kept_down = _cut(kept, [count // 2 * 3 for count in ctx.counts])
        for_gate, for_up, for_down = _cut(ctx.needs_input_grad[4:], ctx.counts)
        gate, up, down = ctx.layers
        needs_x = ctx.needs_input_grad[0]
        a, s = ctx.activation.again(g, u, any(for_down[::2]))
        da, d_down = backward_rows(gradients[0].contiguous(), down, a, kept_down, True, for_down)
        del a
        assert da is not None
        dg, du = ctx.activation.gradients(da, g, u, s)
        del da, s
        dx, d_up = backward_rows(du, up, x, kept_up, needs_x, for_up)
        dx_gate, d_gate = backward_rows(dg, gate, x, kept_gate, needs_x, for_gate)
        if dx is not None and dx_gate is not None:
            dx += dx_gate
        return dx, None, None, None, *d_gate, *d_up, *d_down


def _cut(values: Any, lengths: list[int]) -> list[Any]:
    """``values`` in consecutive pieces of these lengths."""
    out, start = [], 0
    for length in lengths:
        out.append(values[start : start + length])
        start += length
    return out


def gated_product(g: Tensor, u: Tensor, activation: Activation) -> Tensor:
    """act(g)∘u (..., m) by an ``activation`` that is not exact, for a gated MLP computed layer by layer: what it gives
    must not depend on which way is taken."""
    out: Tensor = _GatedProduct.apply(g, u, activation)
    return out


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, u: Tensor, activation: Activation) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(g, u)
        return activation.product(*(t.reshape(-1, t.shape[-1]) for t in (g, u))).view(g.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        shape = gradients[0].shape
        da, g, u = (t.reshape(-1, shape[-1]).contiguous() for t in (*gradients, *ctx.saved_tensors))
        dg, du = ctx.activation.gradients(da, g, u, None)
        return dg.view(shape), du.view(shape), None


class Norm:
    """RMSNorm of rows and the gradient of its input; see `rms_norm`. Shapes: x (..., i), weight (i,), r (..., 1)."""

    def forward(self, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The output, and r."""
        wide = x.float()
        r = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return weight * (wide * r).to(x.dtype), r

    def backward(self, dy: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> Tensor:
        """∂x."""
        n = x.float() * r
        dn = (dy * weight).float()
        dn -= n.mul_((n * dn).mean(-1, keepdim=True))
        return dn.mul_(r).to(x.dtype)


NORM = Norm()


def rms_norm(x: Tensor, weight: Tensor, eps: float, norm: Norm = NORM) -> Tensor:
    """weight ∘ x / √(mean x² + eps) over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4).

    Computed in fp32 and rounded before the weight, as transformers' Llama does; ``weight`` is frozen. Kept are x in its
    own type and one number per row; autograd would keep x in fp32.
    """
    out: Tensor = _RMSNorm.apply(x, weight, eps, norm)
    return out


class _RMSNorm(torch.autograd.Function):
    """With r = 1/√(mean x² + eps), n = r·x and ∂n = weight∘∂y: ∂x = r·(∂n - n·mean(n∘∂n))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, norm: Norm) -> Tensor:
        out, r = norm.forward(x, weight, eps)
        ctx.norm = norm
        ctx.save_for_backward(x, weight, r)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.norm.backward(gradients[0], *ctx.saved_tensors), None, None, None


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34) with the halves of a head for its pairs.

    q (b, h, t, d), k (b, h', t, d), cos and sin (b or 1, t, d), which get no gradient. Half the passes over memory that
    transformers' operators make, and a rounding less.
    """
    out: tuple[Tensor, Tensor] = _Rotary.apply(q, k, cos.unsqueeze(1), sin.unsqueeze(1))
    return out


class _Rotary(torch.autograd.Function):
    """y = x∘cos + turned(x)∘sin with turned(x₁, x₂) = (-x₂, x₁): ∂x = ∂y∘cos + turned⁻¹(∂y∘sin)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        one, two = sin.chunk(2, -1)
        return _turned(q, cos, -one, two), _turned(k, cos, -one, two)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        one, two = sin.chunk(2, -1)
        dq, dk = (_turned(gradient, cos, two, -one) for gradient in gradients)
        return dq, dk, None, None


def _turned(x: Tensor, cos: Tensor, for_first: Tensor, for_second: Tensor) -> Tensor:
    """x∘cos, and to each half of a head the other half by a factor of its own."""
    out, (first, second) = x * cos, x.chunk(2, -1)
    into_first, into_second = out.chunk(2, -1)
    into_first.addcmul_(second, for_first)
    into_second.addcmul_(first, for_second)
    return out
