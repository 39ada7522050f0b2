"""Compiled kernels: the formulas of the others, and a row's bits whatever stands beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from compiler import needs_compiler
from lora.core.compiled import COMPILED_ACTIVATIONS, COMPILED_NORM, Kernel, rotary
from lora.core.fused import ACTIVATIONS, gated_product, rms_norm

pytestmark = needs_compiler


def of_rows(name: str) -> tuple[Any, list[Tensor]]:
    """A kernel's function of rows, and 40 rows for it: of 21, so that few numbers of rows fill vectors."""
    torch.manual_seed(0)
    one, two, three, (weight, *_) = (torch.randn(40, 21).bfloat16() for _ in range(4))
    if name == "norm":
        return (lambda x: COMPILED_NORM.forward(x, weight, 1e-5)), [one]
    if name == "norm's gradient":
        return (lambda dy, x, r: (COMPILED_NORM.backward(dy, x, weight, r),)), [one, two, torch.rand(40, 1) + 0.5]
    silu = COMPILED_ACTIVATIONS["silu"]
    if name == "product":
        return (lambda g, u: (silu.product(g, u),)), [one, two]
    return (lambda da, g, u: silu.gradients(da, g, u, None)), [one, two, three]


@pytest.mark.parametrize("name", ["norm", "norm's gradient", "product", "product's gradients"])
def test_a_row_has_the_same_bits_whatever_is_beside_it(name: str) -> None:
    function, rows = of_rows(name)
    whole = function(*rows)
    for start, stop in ((0, 1), (39, 40), (3, 5), (1, 18), (0, 16), (7, 40)):
        for part, of_all in zip(function(*(t[start:stop] for t in rows)), whole, strict=True):
            assert torch.equal(part, of_all[start:stop]), (start, stop)


def test_what_is_first_compiled_does_not_decide() -> None:
    """Alone an adapter may come with few rows first, together with many: the kernel must be the same."""

    def softly(x: Tensor) -> Tensor:
        return (x.softmax(-1) * x).sum(-1, keepdim=True)

    x = torch.randn(300, 50)
    few, many = Kernel(softly), Kernel(softly)
    few(x[:2]), many(x)
    assert torch.equal(few(x), many(x)) and torch.equal(few(x[4:6]), many(x)[4:6])


def gradients(function: Any, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [t.clone().requires_grad_(True) for t in inputs]
    outs = function(*leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    torch.manual_seed(1)
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    return [*(out.detach() for out in outs), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def test_activations_beside_torch() -> None:
    assert COMPILED_ACTIVATIONS.keys() == ACTIVATIONS.keys()
    g, u = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    mine = gradients(lambda g, u: gated_product(g, u, COMPILED_ACTIVATIONS["gelu_tanh"]), [g, u])
    theirs = gradients(lambda g, u: ACTIVATIONS["gelu_tanh"].forward(g) * u, [g, u])
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_norm_beside_torch() -> None:
    x, weight = torch.randn(3, 7, 64), torch.randn(64)
    mine = gradients(lambda x: rms_norm(x, weight, 1e-5, COMPILED_NORM), [x])
    torch.testing.assert_close(mine, gradients(lambda x: rms_norm(x, weight, 1e-5), [x]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("places", [1, 2], ids=["one row of places", "places of each row"])
def test_rotary_beside_transformers(places: int) -> None:
    q, k = torch.randn(2, 5, 4, 8).transpose(1, 2), torch.randn(2, 5, 1, 8).transpose(1, 2)
    cos, sin = torch.randn(places, 5, 8), torch.randn(places, 5, 8)
    mine = gradients(lambda q, k: rotary(q, k, cos, sin), [q, k])
    theirs = gradients(lambda q, k: apply_rotary_pos_emb(q, k, cos, sin), [q, k])
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_what_else_is_in_force_makes_no_new_kernel() -> None:
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    x, weight = torch.randn(20, 64), torch.randn(64)
    first = COMPILED_NORM.forward(x, weight, 1e-5)[0]
    with torch._dynamo.config.patch(error_on_recompile=True):
        with Mode(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            with torch.autocast("cpu", torch.bfloat16):
                again = COMPILED_NORM.forward(x.requires_grad_(True)[:9], weight.requires_grad_(True), 1e-5)[0]
    assert torch.equal(first[:9], again) and not again.requires_grad
