"""The machine: which floating-point type its processor is good at, and how much memory is in use."""

from __future__ import annotations

import functools
import platform

import torch


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
    """The base model's type: ``auto`` takes bfloat16 where the processor is good at it, float32 elsewhere."""
    if setting == "auto":
        return torch.bfloat16 if bf16_is_fast() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[setting]


def best_device() -> torch.device:
    """The accelerator that torch can use, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")  # type: ignore[return-value]


def memory_in_use() -> int:
    """Bytes this process holds: the most so far on the GPU where there is one, else what is resident in main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import psutil

    return psutil.Process().memory_info().rss
