"""The element-wise parts of a decoder's layer by torch's compiler: fewer passes over memory than one per operator.

The law of isolation: each kernel is made for the width, type and device of its rows and for nothing else. It is
compiled with rows made up for the purpose, never with those of a batch, whose number the compiler would go by when it
chooses loops; and it computes each row by itself. Beside torch's operators it rounds to a half type once, at the end.

Shapes: n row, i in, m intermediate, h head, d head dimension.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora.core.fused import ELEMENTWISE, NORM, Activation, Norm

ROWS = 1009  # made up to compile with: many, and no model's width, which the compiler would take for the same number


class Kernel:
    """A function of rows, compiled for each kind of argument when it first comes.

    Args:
        function: of tensors whose first axis is the rows, or which have one axis and are the same for all rows; of
            keyword arguments that are constants.

    Thread-safe. Gives what ``function`` gives, without a graph.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        assert isinstance(function, FunctionType), "its code is copied"
        self.function = function
        self._ready: dict[Any, Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def __call__(self, *tensors: Tensor, **constants: Any) -> Any:
        device = tensors[0].device
        # Without the mode that seeds the base's dropout, and apart from whatever else the caller has switched on.
        with torch._C.DisableTorchFunction(), torch.no_grad(), torch.autocast(device.type, enabled=False):
            lone = len(tensors[0]) == 1
            rows = [_rows(tensor, lone) for tensor in tensors]
            kinds = [(t.dtype, t.shape[1:] if t.dim() > 1 else t.shape) for t in rows]
            key = (device, torch.get_num_threads(), *constants.items(), *kinds)
            found = self._ready.get(key)
            if found is None:
                with self._lock:
                    found = self._ready.get(key) or self._compile(rows, constants)
                    self._ready[key] = found
            out = found(*rows)
        if not lone:
            return out
        return out[:1] if isinstance(out, Tensor) else tuple(one[:1] for one in out)

    def _compile(self, like: Sequence[Tensor], constants: dict[str, Any]) -> Callable[..., Any]:
        # Compiled code is kept with a function's code, and few kinds of it for each: each kind has a copy of its own.
        f = self.function
        own = FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)
        own.__kwdefaults__ = constants
        compiled = torch.compile(own, dynamic=False, fullgraph=True, options={"guard_filter_fn": _of_rows})
        compiled(*[_rows(t.new_zeros(ROWS, *t.shape[1:]) if t.dim() > 1 else t, False) for t in like])
        return compiled


def _rows(tensor: Tensor, lone: bool) -> Tensor:
    """``tensor`` as the compiler is to see it; a lone row twice, as for one row alone it would make other code."""
    tensor = tensor.detach()
    if tensor.dim() == 1:
        return tensor
    tensor = (tensor.expand(2, *tensor.shape[1:]) if lone else tensor).contiguous()
    torch._dynamo.mark_dynamic(tensor, 0)
    return tensor


def _of_rows(guards: Sequence[Any]) -> list[bool]:
    """Which conditions make a kernel fit: those on tensors, not on what else is in force in the calling thread."""
    return [guard.guard_type in ("TENSOR_MATCH", "SHAPE_ENV") for guard in guards]


def _norm_forward(x: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    return NORM.forward(x, weight, eps)


def _norm_backward(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> Tensor:
    return NORM.backward(dy, x, weight, r)


class CompiledNorm(Norm):
    def __init__(self) -> None:
        self._forward, self._backward = Kernel(_norm_forward), Kernel(_norm_backward)

    def forward(self, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        out, r = self._forward(x.reshape(-1, x.shape[-1]), weight, eps=eps)
        return out.view(x.shape), r

    def backward(self, dy: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> Tensor:
        dx: Tensor = self._backward(*(t.reshape(-1, x.shape[-1]) for t in (dy, x)), weight, r)
        return dx.view(x.shape)


class CompiledActivation(Activation):
    exact = False

    def __init__(self, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(forward, backward)

        def product(g: Tensor, u: Tensor) -> Tensor:
            return forward(g) * u

        def gradients(da: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            return backward(da * u, g), forward(g) * da

        self._product, self._gradients = Kernel(product), Kernel(gradients)

    def product(self, g: Tensor, u: Tensor) -> Tensor:
        out: Tensor = self._product(g, u)
        return out

    def again(self, g: Tensor, u: Tensor, wanted: bool) -> tuple[Tensor | None, Tensor | None]:
        return self.product(g, u) if wanted else None, None

    def gradients(self, da: Tensor, g: Tensor, u: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = self._gradients(da, g, u)
        return out


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(n, h·d) of ``x`` (n, h·d), ``cos`` and ``sin`` (n, d)."""
    heads = x.view(x.shape[0], -1, cos.shape[-1])
    one, two = heads.chunk(2, -1)
    return (heads * cos.unsqueeze(1) + torch.cat((-two, one), -1) * sin.unsqueeze(1)).view(x.shape)


def _turn_back(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    heads = dy.view(dy.shape[0], -1, cos.shape[-1])
    one, two = (heads * sin.unsqueeze(1)).chunk(2, -1)
    return (heads * cos.unsqueeze(1) + torch.cat((two, -one), -1)).view(dy.shape)


def _forth(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return _turn(q, cos, sin), _turn(k, cos, sin)


def _back(dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return _turn_back(dq, cos, sin), _turn_back(dk, cos, sin)


_FORTH, _BACK = Kernel(_forth), Kernel(_back)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `lora.core.fused.rotary`."""
    out: tuple[Tensor, Tensor] = _Rotary.apply(q, k, cos, sin)
    return out


class _Rotary(torch.autograd.Function):
    """y = x∘cos + turned(x)∘sin with turned(x₁, x₂) = (-x₂, x₁): ∂x = ∂y∘cos + turned⁻¹(∂y∘sin)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = (t.expand(len(q), -1, -1).reshape(-1, t.shape[-1]) for t in (cos, sin))
        ctx.save_for_backward(cos, sin)
        return _of_heads(_FORTH, q, k, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return *_of_heads(_BACK, *gradients, *ctx.saved_tensors), None, None


def _of_heads(kernel: Kernel, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """``kernel`` of q and k (b, h, t, d) with their heads side by side in a row."""
    flat = [t.transpose(1, 2).reshape(len(cos), -1) for t in (q, k)]
    q_out, k_out = (
        out.view(len(t), t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2)
        for out, t in zip(kernel(*flat, cos, sin), (q, k), strict=True)
    )
    return q_out, k_out


COMPILED_NORM = CompiledNorm()
COMPILED_ACTIVATIONS: dict[str, Activation] = {name: CompiledActivation(*f) for name, f in ELEMENTWISE.items()}
