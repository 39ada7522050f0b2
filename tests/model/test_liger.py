"""Which kernels are chosen, with a made-up ``liger_kernel`` that computes by torch: the real one needs a GPU."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lora import LoRA, fit
from lora.core.fused import ACTIVATIONS
from lora.core.routing import Routing
from lora.errors import ConfigError
from lora.model import liger
from lora.model.fused import Fused
from lora.model.kernels import Kernels, choose
from small_base import stories, tokenizer
from tiny_models import batch, randomise, tiny

CUDA = torch.device("cuda")


@pytest.fixture
def calls(monkeypatch: Any) -> list[str]:
    """The calls of a ``liger_kernel`` with the signatures of 0.8.5, its habit of writing to its inputs included."""
    seen: list[str] = []

    def noted(name: str, function: Any) -> Any:
        return lambda *args: (seen.append(name), function(*args))[1]

    def rms_norm(
        x: Tensor, w: Tensor, eps: float, offset: float = 0.0, casting_mode: str = "llama", in_place: bool = True,
        row_mode: bool | None = None,
    ) -> Tensor:  # fmt: skip
        assert not in_place and offset == 0 and casting_mode == "llama"
        return F.rms_norm(x, w.shape, w, eps)

    def forward(act: Any) -> Any:
        return lambda a, b: (a, b, act(a) * b)

    def backward(act: Any) -> Any:
        def function(a: Tensor, b: Tensor, dc: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaves = [a.detach().clone().requires_grad_(True), b.detach().clone().requires_grad_(True)]
                found = torch.autograd.grad(act(leaves[0]) * leaves[1], leaves, dc)
            return a.detach().copy_(found[0]), b.detach().copy_(found[1])

        return function

    def tanh(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    ops = {
        "rms_norm": {"LigerRMSNormFunction": SimpleNamespace(apply=noted("rms_norm", rms_norm))},
        "rope": {"LigerRopeFunction": SimpleNamespace(apply=noted("rope", apply_rotary_pos_emb))},
        "swiglu": {"swiglu_forward": noted("swiglu", forward(F.silu)), "swiglu_backward": noted("∂", backward(F.silu))},
        "geglu": {"geglu_forward": noted("geglu", forward(tanh)), "geglu_backward": noted("∂", backward(tanh))},
    }
    for name in ("liger_kernel", "liger_kernel.ops", *(f"liger_kernel.ops.{op}" for op in ops)):
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        vars(module).update(ops.get(name.rpartition(".")[2], {}))
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def test_it_is_taken_where_it_is_asked_for(calls: list[str]) -> None:
    assert choose(CUDA, liger=True) != Kernels() == choose(CUDA)


def test_what_cannot_be_is_refused(calls: list[str], monkeypatch: Any) -> None:
    model = LoRA(tiny("llama"), rank=2)
    with pytest.raises(ConfigError, match="liger: its kernels run on CUDA and this model is on cpu; leave the setting"):
        fit(model, stories(12, 0), False, tokenizer=tokenizer("llama"), liger=True)
    monkeypatch.delattr(sys.modules["liger_kernel.ops.rope"], "LigerRopeFunction")
    with pytest.raises(
        ConfigError, match=r"cannot be loaded \(AttributeError: .*lora-many\[liger\].*leave the setting out"
    ):
        choose(CUDA, liger=True)
    monkeypatch.setitem(sys.modules, "liger_kernel.ops.rope", None)
    with pytest.raises(ConfigError, match=r"cannot be loaded \(ModuleNotFoundError"):
        choose(CUDA, liger=True)


def test_of_the_exact_gelu_it_has_none(calls: list[str]) -> None:
    chosen = choose(CUDA, liger=True).activations
    assert chosen["gelu"] is ACTIVATIONS["gelu"] and not chosen["silu"].exact and not chosen["gelu_tanh"].exact


@pytest.mark.parametrize("variant", ["plain", "dora"])
@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_the_modules_are_computed_by_it(calls: list[str], arch: str, variant: str) -> None:
    """Gate, up and down are called as adapted layers in either way: by one function, and (DoRA) layer by layer."""
    model = LoRA(tiny(arch), name="a", rank=3, variant=variant)
    randomise(model.adapter_parameters("a").values(), seed=0)
    inputs = batch(arch, rows=3)

    def run(kernels: Kernels) -> dict[str, Tensor]:
        model.base.zero_grad(set_to_none=True)
        with Fused(model.base, kernels).in_force(), model.router.activate(Routing.uniform("a")):
            logits = model.base(**inputs).logits
            (logits**2).mean().backward()
        return {"logits": logits.detach()} | {k: p.grad for k, p in model.adapter_parameters("a").items()}

    mine, theirs = run(liger.with_liger(Kernels(), CUDA)), run(Kernels())
    assert set(calls) == ({"rms_norm", "rope", "swiglu", "∂"} if arch == "llama" else {"rope", "geglu", "∂"})
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert not any("forward" in vars(module) for module in model.base.modules())
