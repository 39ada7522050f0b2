"""Cross-entropy over an output head without the full logits: their rows are made, used and overwritten in chunks.

Where the head is frozen, the gradient of the hidden rows is made together with the loss, per unit of each row's loss,
and the backward only multiplies it by the incoming gradient, one number per row: the logits are computed once. That is
2·h·v operations for a row's loss and 2·h·v for its gradient. An update with a fixed B (single rows of the head) adds
what is r wide: the gradient of A too is kept per unit of a row's loss. Where anything else of the head trains (its
weight, a B), that gradient needs the incoming one beside the logits, which are computed again in the backward: 2·h·v
more.

With a `Reference` the loss of some rows is that of the base's distribution too (`lora.core.divergence`). Its logits are
made in chunks beside those of the rows: h·v operations more for each.

A row's loss and gradient do not depend on the rows beside it: products over the vocabulary take 16 rows or more (fewer
are padded with zeros), from where on a row's bits do not depend on their number, and what sums over rows is summed over
the chunks of one segment.

Shapes: n supervised position, h width, v vocabulary, r rank.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora.core.divergence import cross_sums, rows_of_block, wide
from lora.core.functions import (
    aligned,
    autocast_dtype,
)
from lora.core.head import BaseHead, Call, Head, Reference, chunk_rows, even
from lora.core.segments import Segment, draws, mask_of


def head_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    segments: Sequence[Segment] = (),
    softcap: float | None = None,
    scale: float = 1.0,
    label_smoothing: float = 0.0,
    chunk_bytes: int | None = None,
    reference: Reference | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of each supervised position, and whether its label has the highest logit.

    The logits are l = hidden·Wᵀ + b, with the updates of ``segments``, times ``scale``, then c·tanh(l/c) with c the
    ``softcap`` (Gemma 2, arXiv:2408.00118, section 2). The loss is (1-ε)·(lse l - l_label) + ε·(lse l - mean l), with ε
    the ``label_smoothing``.

    Args:
        hidden: (n, h), of supervised positions alone.
        weight: (v, h), the head's own or the embedding's. Trained in full it gets its gradient, summed in fp32.
        labels: (n,), each in [0, v).
        bias: (v,) or None; alike.
        segments: updates of an adapted head, on runs of the n rows.
        scale: of the logits: 1 / logits_scaling (Granite), logit_scale (Cohere).
        chunk_bytes: of the logits of a chunk, in the type of ``hidden``; None: chosen by device.
        reference: rows to whose loss kl·KL(base ‖ adapter) is added; None: none.

    Returns losses (n,) in fp32 (fp64 for fp64) and hits (n,) bool. Of equal logits the first is the highest, as for
    argmax. Gradients go to ``hidden``, A and B, ``weight`` and ``bias``; there is no second derivative.
    """
    dtype = autocast_dtype(hidden) or torch.promote_types(hidden.dtype, weight.dtype)
    hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if reference is not None:
        hidden_, weight_, bias_ = (None if part is None else part.detach().to(dtype)
                                   for part in (reference.hidden, reference.weight, reference.bias))  # fmt: skip
        assert hidden_ is not None and weight_ is not None
        reference = reference._replace(hidden=hidden_, weight=weight_, bias=bias_)
    rows = chunk_rows(hidden, weight.shape[0], chunk_bytes)
    call = Call(softcap, scale, label_smoothing, rows, tuple(segments), reference)
    factors = [factor for segment in segments for factor in (segment.A, segment.B)]
    losses, correct = _HeadCrossEntropy.apply(hidden, weight, bias, labels, call, torch.is_grad_enabled(), *factors)
    return losses, correct


class _HeadCrossEntropy(torch.autograd.Function):
    """See `head_cross_entropy` and the head of this file."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, call: Call, graph: bool,
        *factors: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        needs = ctx.needs_input_grad
        ctx.again = graph and (any((*needs[1:3], *needs[7::2])) or (any(needs[6::2]) and not needs[0]))
        lows: list[Tensor | None] = [None] * len(call.segments)
        unit = torch.empty_like(hidden) if graph and ctx.needs_input_grad[0] and not ctx.again else None
        losses = hidden.new_empty(len(hidden), dtype=wide(hidden.dtype))
        correct = hidden.new_empty(len(hidden), dtype=torch.bool)
        head, base = Head(hidden, weight, bias, call, factors), BaseHead(call)
        for update, number, chunks in head.updates():
            for rows in chunks:
                logits = head.logits(rows, update)
                losses[rows], correct[rows] = _score(logits, labels[rows], call, unit is not None, base.logits(rows))
                if unit is None:
                    continue
                unit[rows] = head.gradient(logits)
                if update is not None:
                    update.note(rows, logits)
            if unit is not None and update is not None and number is not None:
                update.add_gradient(unit)
                lows[number] = update.dlow if needs[6 + 2 * number] else None
        ctx.mark_non_differentiable(correct)
        compared, ctx.call = call.reference, call._replace(reference=None)
        kept = (unit, hidden if any(low is not None for low in lows) else None, *lows)
        if ctx.again:
            # The base's tensors among them, so that whoever counts what is kept counts these too.
            of_base = (None, None, None) if compared is None else (compared.hidden, compared.weight, compared.bias)
            ctx.held_to = compared and (compared.places, compared.kl)
            kept = (hidden, weight, bias, labels, *of_base, *factors)
        ctx.save_for_backward(*kept)
        return losses, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlosses: Tensor, _: Any) -> Any:
        dlosses = (dlosses * ctx.call.scale).unsqueeze(1)
        if ctx.again:
            hidden, weight, bias, labels, *more = ctx.saved_tensors
            call = ctx.call
            if ctx.held_to is not None:
                places, kl = ctx.held_to
                call = call._replace(reference=Reference(more[0], places, more[1], more[2], kl))
            return _gradients(ctx.needs_input_grad, call, dlosses, hidden, weight, bias, labels, *more[3:])
        unit, hidden, *lows = ctx.saved_tensors
        dfactors: list[Tensor | None] = []
        for segment, low in zip(ctx.call.segments, lows, strict=True):
            dfactors += [None if low is None else _unit_gradient(segment, hidden, low, dlosses), None]
        # The product is taken in fp32: rounded to a half type, the weight of a row would be off in all its entries.
        return (unit * dlosses).to(unit.dtype), *[None] * 5, *dfactors


def _unit_gradient(segment: Segment, hidden: Tensor, dlow: Tensor, dlosses: Tensor) -> Tensor:
    """∂A of a segment, from its ∂h (m, r) per unit of each row's loss and ``dlosses`` (n, 1) of all rows."""
    rows = slice(segment.start, segment.stop)
    inputs = aligned(hidden[rows])
    if draws(segment):
        inputs = inputs * mask_of(segment, hidden)
    return ((dlow * dlosses[rows]).to(hidden.dtype).T @ inputs).to(segment.A.dtype)


def _gradients(
    needs: Sequence[bool], call: Call, dlosses: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None,
    labels: Tensor, *factors: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """All gradients with the logits made anew; ``dlosses`` (n, 1), times the scale, weigh the rows.

    They multiply what is narrow: the rows' inputs instead of the gradient of their logits.
    """
    kind = wide(hidden.dtype)
    dhidden = torch.empty_like(hidden) if needs[0] else None
    dweight = torch.zeros_like(weight, dtype=kind) if needs[1] else None
    dbias = torch.zeros_like(bias, dtype=kind) if needs[2] and bias is not None else None
    dfactors: list[Tensor | None] = [None] * len(factors)
    head, base = Head(hidden, weight, bias, call, factors), BaseHead(call)
    for update, number, chunks in head.updates():
        dup = None
        if update is not None and update.up.is_floating_point():
            dup = torch.zeros(update.up.shape[::-1], dtype=kind, device=hidden.device)
        for rows in chunks:
            dlogits, weights = head.logits(rows, update), dlosses[rows]
            _score(dlogits, labels[rows], call, True, base.logits(rows))
            if dhidden is not None:
                dhidden[rows] = head.gradient(dlogits) * weights
            if dweight is not None:
                dweight += dlogits.T @ (hidden[rows] * weights).to(hidden.dtype)
            if dbias is not None:
                dbias += (dlogits.to(kind).T @ weights).squeeze(1)
            if update is None:
                continue
            local = update.local(rows)
            update.note(rows, dlogits)
            update.dlow[local] *= weights
            if dup is not None:
                dup += (update.low[local] * weights).to(hidden.dtype).T @ dlogits
        if update is not None and number is not None:
            dfactors[2 * number] = update.dlow.T @ update.inputs
            dfactors[2 * number + 1] = None if dup is None else dup.T.contiguous()
            if dhidden is not None:
                update.add_gradient(dhidden)
    dfactors = [
        None if gradient is None or not need else gradient.to(factor.dtype)
        for gradient, need, factor in zip(dfactors, needs[6:], factors, strict=True)
    ]
    return dhidden, dweight, dbias, None, None, None, *dfactors


def _score(
    logits: Tensor, labels: Tensor, call: Call, gradient: bool, base: tuple[Tensor, list[int]] | None
) -> tuple[Tensor, Tensor]:
    """Losses (m,) and hits (m,) of ``logits`` (m, v), which are overwritten: if ``gradient``, by the losses' gradient.

    The many passes over fp32 are taken block by block, so that they stay in the cache. ``base``: logits of the base,
    and the rows that they belong to; they are overwritten too.
    """
    kind = wide(logits.dtype)
    # On an accelerator whole chunks; beside the base's logits they would be there several times in fp32.
    most = len(logits) if logits.device.type != "cpu" and base is None else rows_of_block(logits)
    losses, hits = logits.new_empty(len(logits), dtype=kind), logits.new_empty(len(logits), dtype=torch.bool)
    for rows in even(0, len(logits), most):
        block = logits[rows].to(kind)  # the logits themselves where they are wide
        held = None
        if base is not None:
            start, stop = (bisect_left(base[1], place) for place in (rows.start, rows.stop))
            if start < stop:
                places = torch.tensor([place - rows.start for place in base[1][start:stop]], device=logits.device)
                held = base[0][start:stop].to(kind), places
        losses[rows], hits[rows] = _score_block(block, labels[rows, None], call, gradient, held)
        if gradient and kind != logits.dtype:
            logits[rows] = block
    return losses, hits


def _means(logits: Tensor) -> Tensor:
    """(m, 1) of ``logits`` (m, v). A lone row torch would sum by all threads, in another order than one of several."""
    return logits.expand(2, -1).mean(1, keepdim=True)[:1] if len(logits) == 1 else logits.mean(1, keepdim=True)


def _score_block(
    logits: Tensor, label: Tensor, call: Call, gradient: bool, base: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """`_score` of ``logits`` (m, v) in fp32 and ``label`` (m, 1). The gradient leaves out the factor ``scale``."""
    bounded = _finished(logits, call, gradient)
    kl = 0.0 if call.reference is None else call.reference.kl
    if base is not None:
        q, places = base
        _finished(q, call, False)
        cross = cross_sums(logits[places], q)
    # The best of the others; its place too only where it ties: argmax takes as long as the softmax.
    own = logits.gather(1, label)
    other = logits.scatter_(1, label, -torch.inf).amax(1, keepdim=True)
    hits = own > other
    if (tied := own == other).any():
        hits |= tied & (label < logits.argmax(1, keepdim=True))
    top = torch.maximum(own, other)
    logits.scatter_(1, label, own)
    mean = _means(logits) if call.smoothing else None
    if logits.device.type == "cpu":
        torch.softmax(logits, 1, out=logits)
    else:
        logits.copy_(torch.softmax(logits, 1))
    # The highest probability is exp(0)/Σ: lse = top + log Σ, exact where the label's own probability underflows.
    lse = top - logits.amax(1, keepdim=True).log()
    losses = lse - own if mean is None else lse - (1 - call.smoothing) * own - call.smoothing * mean
    if base is not None:
        apart = cross + lse[places]
        losses[places] += kl * apart
        if call.reference is not None and call.reference.total is not None:
            call.reference.total.add_(apart.sum())
    if gradient:
        if base is not None:  # p + kl·(p - q); each operation rounds once, wherever a row stands in memory
            logits[places] = (logits[places] * (1 + kl)).sub_(q.mul_(kl))
        logits.scatter_add_(1, label, torch.full_like(own, call.smoothing - 1))
        if call.smoothing:
            logits -= call.smoothing / logits.shape[1]
        if bounded is not None:
            logits *= 1 - bounded.square_()  # tanh' = 1 - tanh²
    return losses.squeeze(1), hits.squeeze(1)


def _finished(logits: Tensor, call: Call, keep: bool) -> Tensor | None:
    """Scale and cap ``logits`` in place; if ``keep``, and they are capped, what tanh gave."""
    if call.scale != 1:
        logits *= call.scale
    if call.softcap is None:
        return None
    logits.div_(call.softcap).tanh_()
    bounded = logits.clone() if keep else None
    logits *= call.softcap
    return bounded
