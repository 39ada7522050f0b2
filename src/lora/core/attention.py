"""Attention per document in a packed row: documents lie one after another in (1, n), and none sees another.

transformers lets an attention function be registered by name; a model whose config names it calls it in every layer,
and makes no mask, since it has none to offer for that name. Here each document is attended to by itself: no padding, no
mask of n × n, and a document's result does not depend on what else is in the row.

Shapes: n token of the packed row, t token of one document, h head, d head dimension.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora.core.randomness import seed_of

NAME = "lora_documents"

# One per thread: a block recomputed in the backward may run on another thread than its forward.
_IN_FORCE = threading.local()


@contextmanager
def documents(row: Sequence[tuple[int, int | None]] | None) -> Iterator[None]:
    """For the block, the packed row consists of these documents: (length, seed of what is drawn for it) each."""
    previous = getattr(_IN_FORCE, "row", None)
    _IN_FORCE.row = row
    try:
        yield
    finally:
        _IN_FORCE.row = previous


def _runs(row: Sequence[tuple[int, int | None]]) -> list[tuple[int, int, int, int | None]]:
    """(start, number of documents, their length, their seed) of each run of documents that can be attended to at once:
    equally long, and nothing to be drawn."""
    out: list[tuple[int, int, int, int | None]] = []
    start = 0
    for length, seed in row:
        if out and out[-1][2] == length and seed is None:
            first, count, *_ = out[-1]
            out[-1] = (first, count + 1, length, None)
        else:
            out.append((start, 1, length, seed))
        start += length
    return out


@contextmanager
def per_document(model: nn.Module) -> Iterator[None]:
    """Make a transformers model attend per document for the block, in every part that has a configuration."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, document_attention)
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [(c, c._attn_implementation) for c in configs.values() if hasattr(c, "_attn_implementation")]
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def document_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
    dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None,
    sliding_window: int | None = None, softcap: float | None = None, **unknown: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls in place of its own attention: query (1, h, n, d), key and value (1, h', n, d).

    Returns (1, n, h, d), and no weights.

    Raises:
        NotImplementedError: the model asks for something that is not known here (attention sinks, a position bias, a
            cache); the caller then trains it without packing.
    """
    strange = [name for name in ("s_aux", "position_bias", "cache", "block_table") if unknown.get(name) is not None]
    if strange or attention_mask is not None:
        raise NotImplementedError(f"attention per document with {', '.join(strange) or 'a mask'}")
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    groups = query.shape[1] // key.shape[1]
    row = getattr(_IN_FORCE, "row", None) or [(query.shape[2], None)]
    parts = []
    for start, count, length, seed in _runs(row if dropout else [(length, None) for length, _ in row]):
        q, k, v = (_documents(tensor, start, count, length) for tensor in (query, key, value))
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        with _drawing(seed, module, query.device) if dropout else nullcontext():
            out = _attend(q, k, v, causal, scaling, window, softcap, dropout)
        parts.append(out.transpose(1, 2).reshape(count * length, out.shape[1], out.shape[3]))
    return torch.cat(parts).unsqueeze(0), None


@contextmanager
def _drawing(seed: int | None, module: nn.Module, device: torch.device) -> Iterator[None]:
    """The attention kernels draw from the global generator: seeded for the document and layer, then put back."""
    if seed is None:
        yield
        return
    devices = [device] if device.type != "cpu" else []
    # Without the mode that seeds the base's dropout: it would look for rows.
    with (
        torch._C.DisableTorchFunction(),
        torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"),
    ):
        torch.manual_seed(seed_of(seed, getattr(module, "layer_idx", None) or 0))
        yield


def _documents(tensor: Tensor, start: int, count: int, length: int) -> Tensor:
    """``count`` documents of the packed (1, h, n, d) as (count, h, t, d)."""
    tokens = tensor[0, :, start : start + count * length].transpose(0, 1)  # (count·t, h, d)
    return tokens.reshape(count, length, *tokens.shape[1:]).transpose(1, 2)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scaling: float | None, window: int | None, softcap: float | None,
    dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """softmax(q·kᵀ·scaling)·v within each document (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), (b, h, t, d)."""
    length = q.shape[2]
    if softcap is None and window is None:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=causal and length > 1, scale=scaling
        )
    place = torch.arange(length, device=q.device)
    distance = place[:, None] - place[None, :]
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        seen = seen & (distance.abs() < window)
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scaling)
    # Gemma 2: tanh(logits/c)·c before the mask, in the order of transformers' eager_attention_forward.
    scores = q @ k.transpose(2, 3) * (scaling if scaling is not None else 1 / math.sqrt(q.shape[-1]))
    scores = (torch.tanh(scores / softcap) * softcap).masked_fill(~seen, torch.finfo(q.dtype).min)
    return F.dropout(scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype), dropout) @ v
