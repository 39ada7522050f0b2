"""How much memory is free."""

from __future__ import annotations

import math
from pathlib import Path

import torch

CONTROL_GROUPS = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> float:
    """Bytes that are free on ``device``, what torch holds in reserve included."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    import psutil

    return min(psutil.virtual_memory().available, left_in_container())


def left_in_container() -> float:
    """Bytes that this process's control group may still take (Linux, version 2 and 1); infinite: no limit is set."""
    for folder, limit, used, cache in (
        (CONTROL_GROUPS, "memory.max", "memory.current", "inactive_file"),
        (CONTROL_GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return max(0, most - now + int(parts.get(cache, 0)))  # files that were read make room when it is needed
        except (OSError, ValueError):  # not there, or "max"
            continue
    return math.inf


def gib(size: float) -> str:
    """``size`` bytes for a person to read."""
    for unit, one in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= one / 10:
            return f"{size / one:.1f} {unit}"
    return f"{size / 2**10:.1f} KiB"
