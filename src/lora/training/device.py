"""The machine: which floating-point type its processor is good at, and how much memory is in use."""

from __future__ import annotations

import functools
import platform

import torch

from lora.errors import ConfigError


@functools.cache
def bf16_is_fast() -> bool:
    """Whether bfloat16 matrix products run in hardware here.

    On a CPU without such instructions torch falls back to a scalar path that is hundreds of times slower than fp32, so
    this is read from the processor's flags, never assumed.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability()[0] >= 8
    if torch.backends.mps.is_available():
        return True
    if platform.machine().lower() in ("arm64", "aarch64"):
        return bool(torch.cpu.get_capabilities().get("bf16", False))
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))


def choose_dtype(setting: str = "auto") -> torch.dtype:
    """The base model's type: ``auto`` takes bfloat16 where the processor is good at it, float32 elsewhere.

    Raises:
        ConfigError: float16 on a CPU, which overflows in training.
    """
    if setting == "auto":
        return torch.bfloat16 if bf16_is_fast() else torch.float32
    if setting == "float16" and not torch.cuda.is_available():
        raise ConfigError("training.dtype: float16 needs a GPU; use bfloat16 or float32 here")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[setting]


def memory_in_use() -> int:
    """Bytes this process holds: on the GPU where there is one, else resident in main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import psutil

    return psutil.Process().memory_info().rss
