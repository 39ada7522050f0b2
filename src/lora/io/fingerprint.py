"""Telling base models apart: a short hash over the architecture and a sample of every frozen weight."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from lora.model.heads import newly_initialised, task_heads
from lora.model.tree import unwrapped_modules

SAMPLE = 64  # values per tensor: tells two checkpoints of one architecture apart at a cost independent of their size


@torch.no_grad()
def fingerprint(base: nn.Module, without: Collection[str] = (), rows: Mapping[str, Sequence[int]] | None = None) -> str:
    """Hash of ``base``'s frozen weights, the same in fp32 and bf16 and with or without adapters on it.

    Task heads and newly initialised parameters are left out: they differ from load to load. So are the modules
    ``without``: embeddings that an adapter's folder brings along, new rows and all; and the single ``rows`` that it
    brings, by the path of their module.
    """
    skip = {*task_heads(base), *newly_initialised(base), *without}
    digest = hashlib.sha256()
    for path, module in sorted(unwrapped_modules(base).items()):
        for name, parameter in sorted(module.named_parameters(recurse=False)):
            full = f"{path}.{name}"
            if any(full == part or full.startswith(part + ".") for part in skip):
                continue
            flat = parameter.detach().reshape(-1)
            step = max(1, flat.numel() // SAMPLE)
            # A checkpoint rounded to bf16 is the same model. (One rounded to fp16 first may round differently.)
            values = flat[::step][:SAMPLE]
            if rows and path in rows and name == "weight":
                mine = torch.isin(torch.arange(len(values)) * step // parameter.shape[1], torch.tensor(rows[path]))
                values = values.masked_fill(mine.to(values.device), 0)
            if values.is_floating_point():
                values = values.to("cpu", torch.bfloat16).view(torch.int16)
            digest.update(f"{full}{tuple(parameter.shape)}".encode())
            digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
