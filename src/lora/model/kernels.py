"""By what the element-wise parts of a layer are computed while training: torch's operators, its compiler, or Liger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lora.core.fused import ACTIVATIONS, Activation, rms_norm, rotary
from lora.errors import ConfigError

Rotary = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Kernels(NamedTuple):
    """The parts that `lora.model.fused` puts in place of a model's own.

    Attributes:
        norm: RMSNorm of x (..., i), a frozen weight (i,) and eps.
        activations: of gated MLPs, by the names of `lora.core.fused.ACTIVATIONS`.
        rotary: of q (b, h, t, d), k (b, h', t, d), cos and sin (b or 1, t, d).
    """

    norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm
    activations: Mapping[str, Activation] = ACTIVATIONS
    rotary: Rotary = rotary


def choose(device: torch.device, compile: bool = False, liger: bool = False) -> Kernels:
    """The kernels for a run on ``device``; see `lora.fit` for the options.

    Raises:
        ConfigError: what was asked for cannot run here.
    """
    kernels = _compiled(device) if compile else Kernels()
    if not liger:
        return kernels
    from lora.model.liger import with_liger

    return with_liger(kernels, device)


def _compiled(device: torch.device) -> Kernels:
    """Raises ConfigError where torch's compiler does not work: found out with one kernel, before anything trains."""
    import functools

    from lora.core import compiled
    from lora.core.compiled import COMPILED_ACTIVATIONS, COMPILED_NORM

    try:
        COMPILED_NORM.forward(torch.ones(2, 8, device=device), torch.ones(8, device=device), 1e-6)
    except Exception as error:  # the compiler's many kinds, and those of the tools that it calls
        reason = str(error).strip().splitlines() or ["no reason given"]
        raise ConfigError(
            f"compile: torch's compiler does not work here ({type(error).__name__}: {reason[0][:200]}). On the CPU it "
            "needs a C++ compiler (g++, or one that the environment variable CXX names) and Python's headers, on CUDA "
            "the package triton; install these, or leave compile out"
        ) from error
    return Kernels(functools.partial(rms_norm, norm=COMPILED_NORM), COMPILED_ACTIVATIONS, compiled.rotary)
