"""An output head, chunk by chunk of the rows that go through it: its logits, and what flows back through it.

Shapes: n supervised position, m row of a chunk, h width, v vocabulary, r rank.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lora.core.functions import (
    FEWEST_ROWS,
    add_product,
    add_update,
    aligned,
    in_type,
    through_update,
)
from lora.core.products import contained, lost
from lora.core.segments import Segment, draws, kept_scaling, mask_of

# Bytes of a chunk's logits. On the CPU somewhat below 32 MB: up to there malloc keeps memory at hand, and larger pieces
# are mapped anew at every call, which costs a tenth of the whole. But 128 rows at least: with fewer the weight is read
# more often than the product hides.
_CPU_CHUNK, _GPU_CHUNK, _GOOD_ROWS = 24 << 20, 256 << 20, 128


class Reference(NamedTuple):
    """What the base makes of some of the rows, to which a head's distribution is held.

    Attributes:
        hidden: (m, h), what its head is given there. It gets no gradient.
        places: the rows they belong to, rising.
        weight, bias: of its head, (v, h) and (v,).
        kl: weight of KL(base ‖ adapter), which is added to the loss of these rows.
        total: () to which the forward adds the KL of these rows, without the weight; None: nobody asks.
    """

    hidden: Tensor
    places: Sequence[int]
    weight: Tensor
    bias: Tensor | None
    kl: float
    total: Tensor | None = None

    def within(self, start: int, stop: int) -> tuple[slice, list[int]]:
        """Which of the m belong to rows ``start:stop``, and to which of these, counted from ``start``."""
        found = slice(bisect_left(self.places, start), bisect_left(self.places, stop))
        return found, [place - start for place in self.places[found]]


class Call(NamedTuple):
    """What is not a tensor to differentiate by."""

    softcap: float | None
    scale: float
    smoothing: float
    rows: int  # of a chunk, at most
    segments: tuple[Segment, ...]
    reference: Reference | None


def chunk_bytes_of(weight: Tensor) -> int:
    """Bytes of the logits that are held at a time, for a head of ``weight`` (v, h)."""
    return chunk_rows(weight, weight.shape[0], None) * weight.shape[0] * weight.element_size()


def chunk_rows(hidden: Tensor, vocabulary: int, chunk_bytes: int | None) -> int:
    row = vocabulary * hidden.element_size()
    if chunk_bytes is not None:
        return max(FEWEST_ROWS, chunk_bytes // row)
    return max(_GOOD_ROWS, (_CPU_CHUNK if hidden.device.type == "cpu" else _GPU_CHUNK) // row)


def even(start: int, stop: int, most: int) -> Iterator[slice]:
    """``start:stop`` in as few pieces of at most ``most`` rows as will do, of even size."""
    count = -(-(stop - start) // most)
    for piece in range(count):
        yield slice(start + (stop - start) * piece // count, start + (stop - start) * (piece + 1) // count)


def _runs(rows: int, segments: Sequence[Segment]) -> Iterator[tuple[int, int, int | None]]:
    """Runs of rows with the number of their segment; None for what lies between."""
    done = 0
    for number in sorted(range(len(segments)), key=lambda number: segments[number][:2]):
        start, stop = segments[number][:2]
        assert done <= start <= stop <= rows, "segments lie within the rows and do not overlap"
        yield done, start, None
        yield start, stop, number
        done = stop
    yield done, rows, None


class Update:
    """The low-rank part of the logits of one segment, s · (m∘x)·Aᵀ·Bᵀ, as in `lora.core.functions`."""

    def __init__(self, hidden: Tensor, segment: Segment, A: Tensor, B: Tensor) -> None:
        self.rows = slice(segment.start, segment.stop)
        self.scaling = kept_scaling(segment)
        self.down, self.up = A.to(hidden.dtype), in_type(B, hidden.dtype)
        self.inputs, self.mask = aligned(hidden[self.rows]), None
        if draws(segment):
            self.mask = mask_of(segment, hidden)
            self.inputs = self.inputs * self.mask
        self.low = F.linear(self.inputs, self.down).mul_(self.scaling)
        self.dlow = torch.empty_like(self.low)

    def local(self, rows: slice) -> slice:
        """``rows`` of all as rows of the segment."""
        return slice(rows.start - self.rows.start, rows.stop - self.rows.start)

    def note(self, rows: slice, dlogits: Tensor) -> None:
        """Keep ∂h of a chunk; ``dlogits`` (m, v)."""
        self.dlow[self.local(rows)] = through_update(dlogits, self.up).mul_(self.scaling)

    def add_gradient(self, dhidden: Tensor) -> None:
        """Add m∘(∂h·A) to the segment's rows of ``dhidden`` (n, h)."""
        if self.mask is None:
            add_product(dhidden[self.rows], self.dlow, self.down)
        else:
            dhidden[self.rows].add_((self.dlow @ self.down).mul_(self.mask))


class Head:
    """The products of a head with a chunk of rows. All chunks share one buffer: memory is slow to come by."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: Call, factors: Sequence[Tensor]):
        self.hidden, self.weight, self.bias, self.call, self.factors = hidden, weight, bias, call, factors
        self.buffer = hidden.new_empty(max(FEWEST_ROWS, min(call.rows, len(hidden))), len(weight))

    def updates(self) -> Iterator[tuple[Update | None, int | None, Iterator[slice]]]:
        """For each run of rows its update, the number of its segment, and its chunks."""
        for start, stop, number in _runs(len(self.hidden), self.call.segments):
            update = None
            if number is not None:
                A, B = self.factors[2 * number : 2 * number + 2]
                update = Update(self.hidden, self.call.segments[number], A, B)
            yield update, number, even(start, stop, self.call.rows)

    def logits(self, rows: slice, update: Update | None) -> Tensor:
        """(m, v) before scale and softcap; they hold until the next call."""
        inputs = self.hidden[rows]
        if len(inputs) < FEWEST_ROWS:
            inputs = F.pad(inputs, (0, 0, 0, FEWEST_ROWS - len(inputs)))
        out = self.buffer[: len(inputs)]
        inputs, bad = contained(inputs)
        if self.bias is None:
            torch.mm(inputs, self.weight.T, out=out)
        else:
            torch.addmm(self.bias, inputs, self.weight.T, out=out)
        out = lost(out, bad)[: rows.stop - rows.start]
        if update is not None:
            add_update(out, update.low[update.local(rows)], update.up)
        return out

    def gradient(self, dlogits: Tensor) -> Tensor:
        """∂l·W (m, h); ``dlogits`` stand where the logits stood. Rows of padding hold whatever they hold."""
        given, bad = contained(self.buffer[: max(len(dlogits), FEWEST_ROWS)])
        return lost(given @ self.weight, bad)[: len(dlogits)]


class BaseHead:
    """The base's logits at the rows that are held to it, chunk by chunk, in one buffer; without a `Reference`: none."""

    def __init__(self, call: Call) -> None:
        self.reference, self.head = call.reference, None
        if (base := call.reference) is not None and len(base.hidden):
            self.head = Head(base.hidden, base.weight, base.bias, call, [])

    def logits(self, rows: slice) -> tuple[Tensor, list[int]] | None:
        """(m, v) of a chunk of rows, and which of its rows these are; None: none of them."""
        if self.head is None or self.reference is None:
            return None
        which, places = self.reference.within(rows.start, rows.stop)
        return (self.head.logits(which, None), places) if places else None
