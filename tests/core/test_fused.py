"""Functions that stand for several modules: the same as these by themselves, and less kept for the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from lora import LoRA
from lora.core.fused import rms_norm, rotary
from lora.core.routing import Routing
from lora.model.fused import Fused
from tiny_models import batch, randomise, tiny

DECODERS = ("llama", "qwen3", "mistral", "gemma2", "gemma3")


def mixed(arch: str, dtype: torch.dtype = torch.float32, **settings: Any) -> LoRA:
    """Two adapters with dropout, of which the second leaves parts of the MLP alone."""
    model = LoRA(tiny(arch).to(dtype), name="a", rank=3, dropout=0.2, seed=1, **settings)
    model.add_adapter("b", rank=5, targets=["down_proj", "q_proj"], seed=2)
    for number, name in enumerate("ab"):
        randomise(model.adapter_parameters(name).values(), seed=number)
    return model.train()


def gradients(model: LoRA, arch: str, names: list[str], fused: bool) -> dict[str, Tensor]:
    """Logits and every adapter's gradient, with or without the functions in force."""
    inputs = batch(arch, rows=len(names))
    routing = Routing(names, inputs["input_ids"].shape[1], {"a": 11, "b": 12})
    model.base.zero_grad(set_to_none=True)
    known = Fused(model.base)
    assert known._forwards
    with known.in_force() if fused else Fused(nn.Identity()).in_force(), model.router.activate(routing):
        logits = model.base(**inputs).logits
        (logits.float() ** 2).mean().backward()
    found = {"logits": logits.detach()}
    for name in "ab":
        found |= {f"{name}.{key}": p.grad for key, p in model.adapter_parameters(name).items() if p.grad is not None}
    return found


def mlp_alone(model: LoRA) -> None:
    """Norms and attentions are left to themselves: by hand their gradients, and rotary embedding, round otherwise."""
    for module in model.base.modules():
        if "Norm" in type(module).__name__ or "Attention" in type(module).__name__:
            module.__dict__["forward"] = type(module).forward.__get__(module)


@pytest.mark.parametrize("names", [["a"] * 4, ["a", "a", "b", "base"], ["b"] * 2 + ["a"] * 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("arch", DECODERS)
def test_the_gated_mlp_has_the_bits_of_its_layers(arch: str, dtype: torch.dtype, names: list[str]) -> None:
    """Otherwise an adapter's result would depend on whether its neighbours' kinds allow the function."""
    model = mixed(arch, dtype)
    mlp_alone(model)
    one, other = gradients(model, arch, names, True), gradients(model, arch, names, False)
    assert one.keys() == other.keys() and len(one) > 10
    for key, gradient in other.items():
        assert torch.equal(one[key], gradient), key


def test_rows_in_disorder_and_other_variants_go_by_the_layers() -> None:
    model = mixed("llama", variant="dora")
    mlp_alone(model)
    names = ["a", "b", "a", "base"]
    one, other = gradients(model, "llama", names, True), gradients(model, "llama", names, False)
    assert all(torch.equal(one[key], gradient) for key, gradient in other.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_norm_beside_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(64, eps=1e-5)
    norm.weight.data.normal_()
    norm = norm.to(dtype).requires_grad_(False)
    x, dy = (torch.randn(3, 7, 64).to(dtype) for _ in range(2))

    def run(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_(True)
        out = function(leaf)
        out.backward(dy)
        assert leaf.grad is not None
        return out.detach(), leaf.grad

    (mine, my_gradient), (theirs, their_gradient) = run(lambda t: rms_norm(t, norm.weight, 1e-5)), run(norm)
    assert torch.equal(mine, theirs)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(my_gradient, their_gradient, atol=tolerance, rtol=tolerance)


def test_a_norm_that_trains_keeps_its_own_gradient() -> None:
    model = tiny("llama")
    with Fused(model).in_force():
        model.model.norm.weight.requires_grad_(True)
        model(**batch("llama")).logits.sum().backward()
    assert model.model.norm.weight.grad is not None


def test_classes_that_do_anything_else_are_left_alone() -> None:
    class Own(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) * 2

    known = {type(module).__name__ for module, _ in Fused(tiny("gemma2"))._forwards}
    assert known == {"Gemma2MLP", "Gemma2Attention"}, "its norms multiply by 1 + weight in fp32"
    assert not Fused(Own(8))._forwards and not Fused(tiny("bert"))._forwards
    model = tiny("llama")
    before = {id(module): dict(vars(module)) for module in model.modules()}
    with Fused(model).in_force():
        pass
    assert all(vars(module).keys() == before[id(module)].keys() for module in model.modules())


def test_less_is_kept_for_the_backward() -> None:
    model, inputs = tiny("llama"), batch("llama")

    def kept(fused: bool) -> int:
        seen: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        lora = LoRA(model, rank=2)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), lora.using("default"):
            with Fused(lora.base).in_force() if fused else Fused(nn.Identity()).in_force():
                lora(**inputs).logits.sum()
        lora.unload()
        return sum(seen.values())

    assert kept(True) < 0.9 * kept(False)


@pytest.mark.parametrize("places", [1, 2])
def test_rotary_embedding_beside_transformers(places: int) -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(2, heads, 7, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2))
    cos, sin = torch.randn(places, 7, 8, dtype=torch.float64), torch.randn(places, 7, 8, dtype=torch.float64)
    mine, theirs = rotary(q, k, cos, sin), apply_rotary_pos_emb(q, k, cos, sin)
    incoming = [torch.randn_like(x) for x in mine]
    for one, other in zip(
        (*mine, *torch.autograd.grad(mine, (q, k), incoming)),
        (*theirs, *torch.autograd.grad(theirs, (q, k), incoming)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [6, 8, 64, 80])
def test_rotary_embedding_of_a_token_whatever_is_beside_it(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(1)
    q, k = (torch.randn(1, 200, heads, width).to(dtype).transpose(1, 2).requires_grad_() for heads in (3, 1))
    cos, sin = (torch.randn(1, 200, width).to(dtype) for _ in range(2))
    incoming = [torch.randn(1, 200, heads, width).to(dtype).transpose(1, 2) for heads in (3, 1)]

    def both_ways(rows: slice) -> list[torch.Tensor]:
        inputs = [x.detach()[:, :, rows].requires_grad_() for x in (q, k)]
        outs = rotary(*inputs, cos[:, rows], sin[:, rows])
        return [*outs, *torch.autograd.grad(outs, inputs, [x[:, :, rows] for x in incoming])]

    for rows in (slice(0, 1), slice(3, 40), slice(150, 200)):
        for whole, part in zip(both_ways(slice(0, 200)), both_ways(rows), strict=True):
            assert torch.equal(whole[:, :, rows], part)
