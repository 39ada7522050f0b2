"""Attention per document in a packed row: documents lie one after another in (1, n), and none sees another.

transformers lets an attention function be registered by name; a model whose config names it calls it in every layer,
and makes no mask, since it has none to offer for that name. Here each document is attended to by itself: no padding, no
mask of n × n, and a document's result does not depend on what else is in the row.

Shapes: n token of the packed row, t token of one document, h head, d head dimension.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora.core.causal_attention import Layout, Span, causal_attention, layout_of
from lora.core.randomness import seed_of

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None  # type: ignore[assignment]
if varlen_attn is not None and "num_splits" not in inspect.signature(varlen_attn).parameters:
    varlen_attn = None  # type: ignore[assignment]  # of an older torch: bits depend on the neighbours there

HALF = (torch.bfloat16, torch.float16)

NAME = "lora_documents"


class Document(NamedTuple):
    """One document of a packed row."""

    length: int
    seed: int | None = None  # of what is drawn for it
    owner: str = ""  # its adapter
    prefix: tuple[int, int] = (0, 0)  # (start, length) of the tokens of the row that it begins with, its owner's too
    drops: bool = True  # whether attention weights are dropped while training


class Row:
    """The documents of a packed row, with what its attention works out once for all layers."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = tuple(documents)
        self.longest = max(document.length for document in documents)
        self.longest_seen = max(document.prefix[1] + document.length for document in documents)
        self._made: dict[Any, Any] = {}

    def layout(self, query: Tensor, key: Tensor, window: int | None = None) -> Layout:
        """For `causal_attention` of query (1, h, n, d) and key (1, h', n, d)."""
        what = (query.shape[1], key.shape[1], window, query.dtype, query.device)
        if what not in self._made:
            self._made[what] = layout_of([Span(d.owner, d.length, d.prefix) for d in self.documents], *what)
        return self._made[what]

    def borders(self, device: torch.device, seen: bool = False) -> Tensor:
        """Where documents begin and end, as kernels for lengths that vary take them: (documents + 1,) int32.

        ``seen``: counting what they begin with, as `seen` lays it out.
        """
        if (device, seen) not in self._made:
            lengths = [0, *(document.length + (document.prefix[1] if seen else 0) for document in self.documents)]
            self._made[device, seen] = torch.tensor(lengths, device=device).cumsum(0).int()
        return self._made[device, seen]

    def seen(self, device: torch.device) -> Tensor | None:
        """The tokens that each document sees, one document after another; None: those of the row as they lie."""
        if not any(document.prefix[1] for document in self.documents):
            return None
        if "seen" not in self._made:
            places, start = [], 0
            for document in self.documents:
                first, length = document.prefix
                places += [*range(first, first + length), *range(start, start + document.length)]
                start += document.length
            self._made["seen"] = torch.tensor(places, device=device)
        return self._made["seen"]

    def runs(self, drawing: bool) -> list[Run]:
        """Runs of documents that can be attended to at once: equally long, of one adapter (so that its runs are the
        same whoever is beside it), beginning with nothing of another, nothing to be drawn."""
        out: list[Run] = []
        start, owner = 0, None
        for length, seed, its_owner, prefix, drops in self.documents:
            seed = seed if drawing else None
            alike = out and out[-1].length == length and not out[-1].prefix[1] and not prefix[1]
            if alike and seed is None and owner == its_owner:
                out[-1] = out[-1]._replace(number=out[-1].number + 1, seed=None)
            else:
                out.append(Run(start, 1, length, seed, prefix, drops))
            start, owner = start + length, its_owner
        return out


class Run(NamedTuple):
    """Documents that are attended to at once."""

    start: int  # of their first token in the row
    number: int
    length: int  # of each
    seed: int | None
    prefix: tuple[int, int]  # what a single one begins with
    drops: bool


# One per thread: a block recomputed in the backward may run on another thread than its forward.
_IN_FORCE = threading.local()


@contextmanager
def documents(row: Row | None) -> Iterator[None]:
    """For the block, this is the packed row in hand."""
    previous = getattr(_IN_FORCE, "row", None)
    _IN_FORCE.row = row
    try:
        yield
    finally:
        _IN_FORCE.row = previous


def documents_in_force() -> Row | None:
    """The packed row in hand."""
    return getattr(_IN_FORCE, "row", None)


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
    row = documents_in_force() or Row([Document(query.shape[2])])
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    plain = causal and not dropout and softcap is None and query.shape[-1] == value.shape[-1]
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (n, h, d)
    # By nothing that another adapter's documents could change.
    if plain and _has_kernel(q, k, v):
        out = _by_kernel(q, k, v, row, scale, sliding_window)
    elif plain and query.device.type == "cpu":
        out = causal_attention(q, k, v, row.layout(query, key, sliding_window), scale)
    else:
        out = _by_runs(module, q, k, v, row, causal, scale, sliding_window, softcap, dropout)
    return out.unsqueeze(0), None


def _has_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether torch's kernel for documents of different lengths takes q, k and v (n, h, d)."""
    return (
        varlen_attn is not None
        and q.device.type == "cuda"
        and q.dtype in HALF
        and q.dtype == k.dtype == v.dtype
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 256
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def _by_kernel(q: Tensor, k: Tensor, v: Tensor, row: Row, scaling: float, window: int | None) -> Tensor:
    """Causal attention by torch's kernel for documents of different lengths on CUDA: (n, h, d)."""
    assert varlen_attn is not None, "the caller has looked"
    seen = row.seen(q.device)
    if seen is not None:
        k, v = k.index_select(0, seen), v.index_select(0, seen)
    # Queries are the last of what their document sees, and the kernel lines them up so. With splits a document's bits
    # would depend on the longest beside it.
    out: Any = varlen_attn(
        q, k, v, row.borders(q.device), row.borders(q.device, seen=True), row.longest, row.longest_seen,
        scale=scaling, num_splits=1, window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return out


def _by_runs(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, row: Row, causal: bool, scaling: float, window: int | None,
    softcap: float | None, dropout: float,
) -> Tensor:  # fmt: skip
    """Attention of whatever kind, documents of one length at a time: (n, h, d)."""
    groups, parts = q.shape[1] // k.shape[1], []
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    for start, count, length, seed, (first, before), drops in row.runs(drawing=dropout > 0):
        cut = slice(start, start + count * length)
        # (count, h, t, d)
        its_q, its_k, its_v = (x[cut].reshape(count, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        if before:
            its_k, its_v = (
                torch.cat([x[first : first + before].transpose(0, 1)[None], own], dim=2)
                for x, own in ((k, its_k), (v, its_v))
            )
        rate = dropout if drops else 0.0
        with _drawing(seed, module, q.device) if rate else nullcontext():
            out = _attend(its_q, its_k, its_v, causal, scaling, window, softcap, rate)
        parts.append(out.transpose(1, 2).reshape(count * length, out.shape[1], out.shape[3]))
    return torch.cat(parts)


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


def _attend(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scaling: float, window: int | None, softcap: float | None,
    dropout: float,
) -> Tensor:  # fmt: skip
    """softmax(q·kᵀ·scaling)·v within each document (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), (b, h, t, d).

    Queries are the last of the keys.
    """
    length, keys = q.shape[2], k.shape[2]
    window = window if window is not None and window < keys else None
    if softcap is None and window is None and length == keys:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=causal and length > 1, scale=scaling
        )
    place = torch.arange(keys, device=q.device)
    distance = place[keys - length :, None] - place[None, :]
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        seen = seen & (distance.abs() < window)
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scaling)
    # Gemma 2: tanh(logits/c)·c before the mask, in the order of transformers' eager_attention_forward.
    scores = q @ k.transpose(2, 3) * scaling
    scores = (torch.tanh(scores / softcap) * softcap).masked_fill(~seen, torch.finfo(q.dtype).min)
    return F.dropout(scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype), dropout) @ v
