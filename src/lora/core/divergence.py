"""KL divergence from the base's next tokens to an adapter's: what training with ``kl`` adds, and what a probe measures;
and between two passes of one adapter, both ways, as ``r_drop`` has it.

KL(base ‖ adapter) = Σ_v q_v·(log q_v - log p_v), with q the base's probabilities and p the adapter's at one position.
The base comes first: an adapter pays for every token that the base would write and it no longer would, which is what
forgetting is. The other direction, of penalties in reinforcement learning, lets an adapter give up all but one of the
base's ways to go on. It is Learning without Forgetting (Li & Hoiem 2016, arXiv:1606.09282, eq. 2, at temperature 1) but
for the base's entropy, which has no gradient, and the measure by which Shenfeld et al. (2025, arXiv:2509.04259)
foretell forgetting. By the adapter's logits its gradient is p - q.

Both ways, KL(p ‖ q) + KL(q ‖ p) = Σ_v (p_v - q_v)·(x_v - y_v), with x and y the logits of p and q: the normalisers
cancel (Jeffreys' divergence, of which R-Drop takes half: Liang et al. 2021, arXiv:2106.14448, eq. 2). Its gradient by x
is p·(d - Σ p·d) + p - q, with d = x - y, and by y the same with both exchanged.

Shapes: n position, m position of a block, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes of fp32 logits that a thread works on between two passes over them: about the second-level cache. On an
# accelerator enough to keep it busy.
_CPU_BLOCK, _GPU_BLOCK = 1 << 20, 128 << 20


@contextmanager
def fewer_blocks() -> Iterator[None]:
    """For a rehearsal that computes nothing: the same chunks in fewer pieces of work, for 3 MB more at the peak."""
    global _CPU_BLOCK
    _CPU_BLOCK *= 4
    try:
        yield
    finally:
        _CPU_BLOCK //= 4


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over the vocabulary are taken."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows_of_block(logits: Tensor) -> int:
    """How many rows of ``logits`` (n, v) are worked on at a time."""
    row = logits.shape[1] * wide(logits.dtype).itemsize
    if logits.device.type == "cpu":
        return torch.get_num_threads() * max(1, _CPU_BLOCK // row)
    return max(1, _GPU_BLOCK // row)


def row_sums(values: Tensor) -> Tensor:
    """(m, 1) of ``values`` (m, v). A lone row torch would sum by all threads, in another order than one of several."""
    return values.expand(2, -1).sum(1, keepdim=True)[:1] if len(values) == 1 else values.sum(1, keepdim=True)


def probabilities(logits: Tensor) -> Tensor:
    """Put the softmax of ``logits`` (m, v) in their place, and give log Σ exp of what they were: (m, 1)."""
    top = logits.amax(1, keepdim=True)
    if logits.device.type == "cpu":
        torch.softmax(logits, 1, out=logits)
    else:
        logits.copy_(torch.softmax(logits, 1))
    # The highest probability is exp(0)/Σ: exact where others underflow.
    return top - logits.amax(1, keepdim=True).log()


def cross_sums(own: Tensor, base: Tensor) -> Tensor:
    """KL(base ‖ own) of each row less log Σ exp(own): (m, 1), of logits (m, v) in fp32. ``base`` becomes its
    probabilities."""
    # Of differences, so that the result is exactly 0 where both are the same.
    apart = base - own
    normaliser = probabilities(base)
    return row_sums(apart.mul_(base)) - normaliser


def divergences(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(reference ‖ logits) of each position, (n,) in fp32 (fp64 for fp64), from logits (n, v) of any type.

    Of neither there is ever a whole copy in fp32. The gradient goes to ``logits`` alone and is made from both in the
    backward; there is no second derivative.
    """
    found: Tensor = _Divergence.apply(logits, reference.detach())
    return found


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, reference: Tensor) -> Tensor:
        ctx.save_for_backward(logits, reference)
        out = logits.new_empty(len(logits), dtype=wide(logits.dtype))
        step = rows_of_block(logits)
        for start in range(0, len(logits), step):
            rows = slice(start, start + step)
            own, base = (part[rows].to(out.dtype, copy=True) for part in (logits, reference))
            out[rows] = cross_sums(own, base).add_(probabilities(own)).squeeze(1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        logits, reference = ctx.saved_tensors
        out = torch.empty_like(logits)
        step = rows_of_block(logits)
        for start in range(0, len(logits), step):
            rows = slice(start, start + step)
            own, base = (part[rows].to(grad.dtype, copy=True) for part in (logits, reference))
            probabilities(own)
            probabilities(base)
            out[rows] = own.sub_(base).mul_(grad[rows, None])
        return out, None


def disagreements(one: Tensor, other: Tensor) -> Tensor:
    """KL(one ‖ other) + KL(other ‖ one) of each row, (n,) in fp32 (fp64 for fp64), from logits (n, v) of any type.

    Gradients go to both. Of neither there is ever a whole copy in fp32; there is no second derivative.
    """
    found: Tensor = _Disagreement.apply(one, other)
    return found


class _Disagreement(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor) -> Tensor:
        ctx.save_for_backward(one, other)
        out = one.new_empty(len(one), dtype=wide(one.dtype))
        step = rows_of_block(one)
        for start in range(0, len(one), step):
            rows = slice(start, start + step)
            p, q, apart = _both(one[rows], other[rows], out.dtype)
            out[rows] = row_sums(p.sub_(q).mul_(apart)).squeeze(1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        logits = ctx.saved_tensors
        outs = [torch.empty_like(each) for each in logits]
        step = rows_of_block(logits[0])
        for start in range(0, len(grad), step):
            rows = slice(start, start + step)
            p, q, apart = _both(logits[0][rows], logits[1][rows], grad.dtype)
            weights, between = grad[rows, None], p - q
            outs[0][rows] = ((apart - row_sums(p * apart)).mul_(p) + between).mul_(weights)
            outs[1][rows] = ((row_sums(q * apart) - apart).mul_(q) - between).mul_(weights)
        return tuple(outs)


def _both(one: Tensor, other: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The probabilities of both, and by how much the logits differ: (m, v) each, in ``dtype``."""
    p, q = one.to(dtype, copy=True), other.to(dtype, copy=True)
    apart = p - q
    probabilities(p)
    probabilities(q)
    return p, q, apart
