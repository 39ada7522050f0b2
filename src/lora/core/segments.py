"""What a frozen linear layer is given to add: one adapter's low-rank update for each of several runs of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lora.core.randomness import keep_mask, kept_share


class Segment(NamedTuple):
    """One adapter's update of a run of rows. The segments of a layer do not overlap."""

    start: int
    stop: int
    A: Tensor  # (r, i)
    B: Tensor  # (o, r); of integers (r,): the output that each of the r products is added to, for a one-hot matrix
    scaling: float = 1.0
    dropout: float = 0.0
    seed: int | None = None  # of the dropout; None: none is drawn


class FrozenLinear(NamedTuple):
    """A frozen layer and the updates on it. Rows in no segment go through the frozen layer alone."""

    weight: Tensor  # (o, i), or (i, o) if transposed (transformers' Conv1D); gets no gradient
    bias: Tensor | None = None  # (o,); gets no gradient
    segments: Sequence[Segment] = ()
    transposed: bool = False


def kept_scaling(segment: Segment) -> float:
    """The scaling of an update, and with it the division of inverted dropout: x is multiplied by 0 or 1 alone."""
    if not draws(segment):
        return segment.scaling
    return segment.scaling / kept_share(segment.dropout)


def draws(segment: Segment) -> bool:
    """Whether the segment drops any of its input."""
    return segment.dropout > 0 and segment.seed is not None


def mask_of(segment: Segment, like: Tensor) -> Tensor:
    """What multiplies the segment's rows of x (m, i): drawn in the forward, and drawn again in the backward.

    ``like`` (..., i) says its width, type and device.
    """
    assert segment.seed is not None, "it draws"
    return keep_mask((segment.stop - segment.start, like.shape[-1]), segment.dropout, segment.seed, like)
