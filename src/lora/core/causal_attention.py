"""Causal attention of the documents of a packed row on the CPU, by plain matrix products.

torch's fused kernel is slow there where documents are short, and in bfloat16 (see benchmarks/attention.py). Scores are
rounded to the type of the activations, as in transformers' eager attention; later keys are left out, not masked only.

Documents of one adapter that are nearly as long as each other are attended to at once, in a block: the shorter ones are
filled up at their end, where under a causal mask no token of theirs looks. Blocks depend on an adapter's own documents
alone, and so do the bits of its results.

A document may begin with tokens of another (two answers to one prompt): these are keys for both, and queries of one.

Shapes: m token of the documents, h query head, s key head, d head dimension; of a block b document, t token.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# What a block costs by itself, in scores: a document joins one where that fills up fewer.
_CALL = 4096

# Blocks are filled up to a multiple of this: torch's softmax in bfloat16 is slow on rows of another length.
_LANES = 32

# Queries that are computed together: later keys than theirs are left out.
_QUERIES = 64

# Scores of a piece: they are written and read several times over and should stay in the cache.
_SCORES = 1 << 19


class Piece(NamedTuple):
    """A part of a block: n of its b·s rows of keys and values, and the same queries of each."""

    rows: int  # n
    queries: slice  # of the places of queries: (n, h/s·t')
    keys: slice  # of the places of keys: (n, t)
    seen: int  # keys up to the last that a query here sees
    mask: Tensor  # (h/s·t', m) of the last m keys seen here: 0 where a query sees the key, -inf where it does not


class Span(NamedTuple):
    """A document as attention sees it."""

    owner: str  # its adapter
    length: int  # of its own tokens
    prefix: tuple[int, int] = (0, 0)  # (start, length) of the tokens of the row that it begins with


class Layout(NamedTuple):
    """How the tokens of documents are laid out for attention.

    Attributes:
        pieces: of a block's queries those that see most come first.
        queries, keys: for each place there, the (token, head) among the m·h or m·s that is put there.
        padding: the places among ``queries`` that only fill up.
        queries_back, keys_back: for each (token, head), its place.
        shared: places among ``keys`` of tokens that a further document begins with, and the (token, head) of each.
    """

    pieces: list[Piece]
    queries: Tensor
    keys: Tensor
    padding: Tensor
    queries_back: Tensor
    keys_back: Tensor
    shared: tuple[Tensor, Tensor] | None


def layout_of(
    documents: Sequence[Span],
    heads: int,
    shared: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Layout:
    """The layout for documents whose own tokens lie one after another.

    Args:
        heads, shared: of queries; of keys and values.
        window: how many tokens a query sees, itself included; None: all before it.
        dtype: of the masks, and of whatever is attended to.
    """
    groups, pieces = heads // shared, list[Piece]()
    queries, keys = _Places(), _Places()
    starts = torch.tensor([0, *(document.length for document in documents)]).cumsum(0)
    for block in _groups(documents):
        before = torch.tensor([documents[i].prefix for i in block])
        first, lengths = before[:, 1:], torch.tensor([[_seen(documents[i])] for i in block])  # (b, 1)
        t = _filled(int(lengths.max()))
        along = torch.arange(t)
        # The rest is filled up with the document's own last token: what is not finite stays with it.
        own = starts[block][:, None] + along.minimum(lengths - 1) - first
        tokens = torch.where(along < first, before[:, :1] + along, own)[:, None, None]  # (b, 1, 1, t)
        real = ((along < lengths) & (along >= first))[:, None, None]
        again = (along < first)[:, None, None]
        head = torch.arange(heads).view(1, shared, groups, 1)
        of_queries = _cut(tokens * heads + head, real)  # (b·s, h/s, t)
        of_keys = _cut(tokens * shared + head[:, :, :1] // groups, real, again)
        for begin in range(0, len(block) * shared, most := max(1, _SCORES // (groups * min(t, _QUERIES) * t))):
            rows = slice(begin, begin + most)
            its_keys = keys.add(*(x[rows] for x in of_keys))
            for start in reversed(range(0, t, _QUERIES)):
                stop = min(start + _QUERIES, t)
                taken, wanted = (x[rows, :, start:stop] for x in of_queries)
                if stop < t and not wanted.any():
                    continue  # of the shared beginning, whose queries are another document's
                its_queries = queries.add(taken, wanted)
                mask = _mask(start, stop, groups, window, dtype, device)
                pieces.append(Piece(len(of_keys[0][rows]), its_queries, its_keys, stop, mask))
    padding = (~torch.cat(queries.real)).nonzero()[:, 0]
    tensors = (torch.cat(queries.taken), torch.cat(keys.taken), padding, queries.back(), keys.back())
    all_queries, all_keys, padding, queries_back, keys_back = (tensor.to(device) for tensor in tensors)
    return Layout(pieces, all_queries, all_keys, padding, queries_back, keys_back, keys.twice(device))


def _seen(document: Span) -> int:
    """Tokens that its last one sees."""
    return document.prefix[1] + document.length


def _groups(documents: Sequence[Span]) -> list[list[int]]:
    """Which documents make a block: of one adapter, and of lengths that leave little to fill up."""
    out: list[list[int]] = []
    for owner in dict.fromkeys(document.owner for document in documents):
        mine = [i for i, document in enumerate(documents) if document.owner == owner]
        filled = 0
        for i in sorted(mine, key=lambda i: -_seen(documents[i])):
            length = _seen(documents[i])
            if filled and (filled == _filled(length) or filled**2 - length**2 <= _CALL):
                out[-1].append(i)
            else:
                out.append([i])
                filled = _filled(length)
    return out


def _filled(length: int) -> int:
    return -(-length // _LANES) * _LANES


def _mask(start: int, stop: int, groups: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the scores of the queries from ``start`` to ``stop``, of each group: (groups·(stop - start), m)
    for the last m keys up to ``stop``. All of them where a window ends among them, else those from ``start`` on."""
    if window is not None and window < stop:
        return _distances(stop - start, stop, groups, window, dtype, device)
    return _distances(stop - start, stop - start, groups, None, dtype, device)


@functools.lru_cache(maxsize=16)
def _distances(
    queries: int, keys: int, groups: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    ahead = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    hidden = ahead < 0 if window is None else (ahead < 0) | (ahead >= window)
    return torch.zeros(ahead.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf).repeat(groups, 1)


class _Places:
    """Places of queries or of keys, as they are given out: what is put there, whether it is more than filling, and
    whether it stands at another place already."""

    def __init__(self) -> None:
        self.taken: list[Tensor] = []
        self.real: list[Tensor] = []
        self.again: list[Tensor] = []
        self.count = 0

    def add(self, taken: Tensor, real: Tensor, again: Tensor | None = None) -> slice:
        self.taken.append(taken.flatten())
        self.real.append(real.flatten())
        if again is not None:
            self.again.append(again.flatten())
        self.count += taken.numel()
        return slice(self.count - taken.numel(), self.count)

    def back(self) -> Tensor:
        """Where each has come to lie."""
        taken, real = torch.cat(self.taken), torch.cat(self.real)
        out = torch.empty(int(real.sum()), dtype=torch.long)
        out[taken[real]] = real.nonzero()[:, 0]
        return out

    def twice(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Places of what stands at another place already, and what that is; None: there are none."""
        again = torch.cat(self.again)
        if not again.any():
            return None
        return again.nonzero()[:, 0].to(device), torch.cat(self.taken)[again].to(device)


def _cut(first: Tensor, *others: Tensor) -> list[Tensor]:
    """(b, s, g, t) of all, to whose shape they are expanded, as (b·s, g, t)."""
    return [x.flatten(0, 1) for x in torch.broadcast_tensors(first, *others)]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scaling: float) -> Tensor:
    """softmax(scaling · q·kᵀ)·v within each document, causal: (m, h, d) of q (m, h, d), k and v (m, s, d).

    There is no second derivative.
    """
    out: Tensor = _CausalAttention.apply(q, k, v, layout, scaling)
    return out


class _CausalAttention(torch.autograd.Function):
    """o = p·v with p = softmax(scaling · q·kᵀ + mask) (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), and

        ∂v = pᵀ·∂o       ∂s = scaling · p∘(∂p - Σ p∘∂p), ∂p = ∂o·vᵀ       ∂q = ∂s·k       ∂k = ∂sᵀ·q.

    Query heads that share a key go as more rows of it.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scaling: float) -> Tensor:
        ctx.layout, ctx.scaling, ctx.heads, ctx.shared = layout, scaling, q.shape[1], k.shape[1]
        queries = _rows(q).index_select(0, layout.queries)
        keys, values = (_rows(x).index_select(0, layout.keys) for x in (k, v))
        out, kept = torch.empty_like(queries), list[Tensor | None]()
        for piece in layout.pieces:
            its_q, its_out = _of(piece.queries, piece, queries, out)
            its_k, its_v = (x[:, : piece.seen] for x in _of(piece.keys, piece, keys, values))
            p = _weights(its_q, its_k, piece.mask, scaling)
            torch.bmm(p, its_v, out=its_out)
            # Of longer documents they are most of what the layer would keep, and are made again.
            kept.append(p if p.numel() <= its_q.numel() else None)
        ctx.save_for_backward(queries, keys, values, *kept)
        return out.index_select(0, layout.queries_back).view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        queries, keys, values, *kept = ctx.saved_tensors
        layout: Layout = ctx.layout
        do = _rows(gradients[0]).index_select(0, layout.queries).index_fill_(0, layout.padding, 0)
        dq, dk, dv = torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)
        for piece, p in zip(layout.pieces, kept, strict=True):
            its_q, its_do, its_dq = _of(piece.queries, piece, queries, do, dq)
            of_keys = _of(piece.keys, piece, keys, values, dk, dv)
            whole = piece.seen == of_keys[0].shape[1]
            its_k, its_v, its_dk, its_dv = of_keys if whole else [x[:, : piece.seen] for x in of_keys]
            if p is None:
                p = _weights(its_q, its_k, piece.mask, ctx.scaling)
            dp = its_do @ its_v.transpose(1, 2)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(ctx.scaling)
            torch.bmm(ds, its_k, out=its_dq)
            if whole:  # of a block's queries these come first
                torch.bmm(ds.transpose(1, 2), its_q, out=its_dk)
                torch.bmm(p.transpose(1, 2), its_do, out=its_dv)
            else:
                its_dk.add_(ds.transpose(1, 2) @ its_q)
                its_dv.add_(p.transpose(1, 2) @ its_do)
        dq = dq.index_select(0, layout.queries_back).view(-1, ctx.heads, dq.shape[1])
        dk, dv = (_summed(x, layout).view(-1, ctx.shared, x.shape[1]) for x in (dk, dv))
        return dq, dk, dv, None, None


def _summed(x: Tensor, layout: Layout) -> Tensor:
    """(m·s, d): of each key the gradients ``x`` (places, d) of all its places."""
    out = x.index_select(0, layout.keys_back)
    if layout.shared is not None:
        places, tokens = layout.shared
        out.index_add_(0, tokens, x.index_select(0, places))
    return out


def _rows(x: Tensor) -> Tensor:
    """(m, h, d) as (m·h, d)."""
    return x.reshape(-1, x.shape[-1])


def _of(places: slice, piece: Piece, *tensors: Tensor) -> list[Tensor]:
    """The piece's (n, ..., d) of each."""
    return [x[places].view(piece.rows, -1, x.shape[1]) for x in tensors]


def _weights(q: Tensor, k: Tensor, mask: Tensor, scaling: float) -> Tensor:
    scores = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0, alpha=scaling)
    scores[..., -mask.shape[1] :] += mask
    return torch.softmax(scores, -1)
