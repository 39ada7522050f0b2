"""Attention per document in a packed row: documents lie one after another in (1, n), and none sees another.

transformers lets an attention function be registered by name; a model whose config names it calls it in every layer,
and makes no mask, since it has none to offer for that name. Here each document is attended to by itself: no padding, no
mask of n × n, and a document's result does not depend on what else is in the row.

Shapes: n token of the packed row, t token of one document, h head, d head dimension.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lora.core.randomness import seed_of

NAME = "lora_documents"
SHORT = 512  # tokens: longer documents go to torch's kernel, whose memory does not grow with the square of the length


class Document(NamedTuple):
    """One document of a packed row."""

    length: int
    seed: int | None = None  # of what is drawn for it
    owner: str = ""  # its adapter


# One per thread: a block recomputed in the backward may run on another thread than its forward.
_IN_FORCE = threading.local()


@contextmanager
def documents(row: Sequence[Document] | None) -> Iterator[None]:
    """For the block, the packed row consists of these documents."""
    previous = getattr(_IN_FORCE, "row", None)
    _IN_FORCE.row = row
    try:
        yield
    finally:
        _IN_FORCE.row = previous


def documents_in_force() -> Sequence[Document] | None:
    """The documents of the packed row in hand."""
    return getattr(_IN_FORCE, "row", None)


def _runs(row: Sequence[Document]) -> list[tuple[int, int, int, int | None]]:
    """(start, number of documents, their length, their seed) of each run of documents that can be attended to at once:
    equally long, of one adapter (so that its runs are the same whoever is beside it), and nothing to be drawn."""
    out: list[tuple[int, int, int, int | None]] = []
    start, owner = 0, None
    for length, seed, its_owner in row:
        if out and out[-1][2] == length and seed is None and owner == its_owner:
            first, count, *_ = out[-1]
            out[-1] = (first, count + 1, length, None)
        else:
            out.append((start, 1, length, seed))
        start, owner = start + length, its_owner
    return out


def per_document(model: nn.Module) -> AbstractContextManager[None]:
    """Make a transformers model attend per document for the block."""
    return attending_by(model, NAME, document_attention)


@contextmanager
def attending_by(model: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Make a transformers model attend by ``function`` for the block, in every part that has a configuration."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [(c, c._attn_implementation) for c in configs.values() if hasattr(c, "_attn_implementation")]
    try:
        for config, _ in before:
            config._attn_implementation = name
        yield
    finally:
        for config, own in before:
            config._attn_implementation = own


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
    row = documents_in_force() or [Document(query.shape[2])]
    parts = []
    for start, count, length, seed in _runs(row if dropout else [d._replace(seed=None) for d in row]):
        q, k, v = (_documents(tensor, start, count, length) for tensor in (query, key, value))
        by_hand = q.device.type == "cpu" and q.dtype == torch.bfloat16 and length <= SHORT and causal
        if by_hand and not dropout and softcap is None and (sliding_window is None or sliding_window >= length):
            out = _short(q, k, v, scaling if scaling is not None else q.shape[-1] ** -0.5)
            parts.append(out.transpose(1, 2).reshape(count * length, out.shape[1], out.shape[3]))
            continue
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        with _drawing(seed, module, query.device) if dropout else nullcontext():
            out = _attend(q, k, v, causal, scaling, window, softcap, dropout)
        parts.append(out.transpose(1, 2).reshape(count * length, out.shape[1], out.shape[3]))
    return torch.cat(parts).unsqueeze(0), None


def _short(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """Causal attention of short documents by plain matrix products: (b, h, t, d) of q (b, h, t, d), k, v (b, h', t, d).

    On the CPU torch's fused kernel is slow in bfloat16 where documents are short: measured with 9 heads of 64, it takes
    three to five times as long up to 200 tokens, half as long again at 512, and less from about 1000 on. Scores are
    rounded to bfloat16, as in transformers' eager attention. Query heads that share keys and values go as more rows.
    """
    b, h, t, d = q.shape
    shared = k.shape[1]
    rows = q.reshape(b * shared, h // shared * t, d)
    later = torch.full((t, t), -math.inf, dtype=q.dtype, device=q.device).triu_(1).repeat(h // shared, 1)
    out: Tensor = _Attention.apply(rows, k.reshape(b * shared, t, d), v.reshape(b * shared, t, d), later, scaling)
    return out.view(b, h, t, d)


class _Attention(torch.autograd.Function):
    """o = p·v with p = softmax(scaling · q·kᵀ + mask) (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), and

        ∂v = pᵀ·∂o       ∂s = scaling · p∘(∂p - Σ p∘∂p), ∂p = ∂o·vᵀ       ∂q = ∂s·k       ∂k = ∂sᵀ·q.

    Shapes: q (n, g·t, d), k and v (n, t, d), mask (g·t, t), with g the query heads that share a key.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float) -> Tensor:
        p = _weights(q, k, mask, scaling)
        # Of a long document they are most of what its layer would keep, and are made again.
        ctx.again = p.numel() > q.numel() + k.numel() + v.numel()
        ctx.save_for_backward(q, k, v, mask if ctx.again else p)
        ctx.scaling = scaling
        return p @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        q, k, v, p = ctx.saved_tensors
        p = _weights(q, k, p, ctx.scaling) if ctx.again else p
        (do,) = gradients
        ds = torch._softmax_backward_data(do @ v.transpose(1, 2), p, -1, p.dtype).mul_(ctx.scaling)
        return ds @ k, ds.transpose(1, 2) @ q, p.transpose(1, 2) @ do, None, None


def _weights(q: Tensor, k: Tensor, mask: Tensor, scaling: float) -> Tensor:
    return torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scaling), -1)


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
