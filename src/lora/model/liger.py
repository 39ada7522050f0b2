"""Liger's Triton kernels (Hsu et al. 2024, arXiv:2410.10989) for RMSNorm, gated activations and rotary embedding.

They are called as they are, on the modules that `lora.model.fused` knows; Liger's own patches of transformers, which
change its classes for everybody, are not used. Written against liger-kernel 0.8.5.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from lora.core.fused import Activation
from lora.errors import ConfigError
from lora.model.kernels import Kernels


def with_liger(kernels: Kernels, device: torch.device) -> Kernels:
    """``kernels`` with Liger's in place of those that it has.

    Raises:
        ConfigError: they cannot run here.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"liger: its kernels run on CUDA and this model is on {device.type}; leave the setting out, or train where "
            "there is an NVIDIA or AMD GPU"
        )
    try:
        rms_norm, rope, swiglu, geglu = (
            importlib.import_module(f"liger_kernel.ops.{name}") for name in ("rms_norm", "rope", "swiglu", "geglu")
        )
        norm, turn = rms_norm.LigerRMSNormFunction.apply, rope.LigerRopeFunction.apply
        silu = _LigerActivation(swiglu.swiglu_forward, swiglu.swiglu_backward)
        gelu_tanh = _LigerActivation(geglu.geglu_forward, geglu.geglu_backward)
    except Exception as error:  # it or triton is missing, of another version, or finds no driver
        raise ConfigError(
            f"liger: liger-kernel cannot be loaded ({type(error).__name__}: {error}); install it "
            "(pip install 'lora-many[liger]'), or leave the setting out"
        ) from error

    def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # Not in place: the incoming gradient belongs to the residual stream too.
        out: Tensor = norm(x, weight, eps, 0.0, "llama", False)
        return out

    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q_out, k_out, *_ = turn(q, k, cos, sin)  # some versions give cos and sin back too
        return q_out, k_out

    activations = {**kernels.activations, "silu": silu, "gelu_tanh": gelu_tanh}  # of the exact gelu Liger has none
    return Kernels(rms, activations, rotary)


class _LigerActivation(Activation):
    """By a pair of Liger's functions: (g, u) -> (g, u, product), and (g, u, ∂product) -> (∂g, ∂u), which overwrites g
    and u."""

    exact = False

    def product(self, g: Tensor, u: Tensor) -> Tensor:
        forward: Any = self.forward
        out: Tensor = forward(g.contiguous(), u.contiguous())[2]
        return out

    def again(self, g: Tensor, u: Tensor, wanted: bool) -> tuple[Tensor | None, Tensor | None]:
        return self.product(g, u) if wanted else None, None

    def gradients(self, da: Tensor, g: Tensor, u: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor]:
        backward: Any = self.backward
        dg, du = backward(g, u, da)
        return dg, du
