"""The updates of many adapters on CUDA by grouped matrix products: one kernel for all of them in place of one for each.

There a product of a few hundred rows is over before the next one has been asked for. Ranks are filled up with zeros to
the largest, which changes sums' order at most; of bits no promise is made on accelerators. Each group is computed from
its own rows, so what is not finite in one stays there.

Shapes: n row, i in, o out, k adapter, r largest rank.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lora.core.segments import FrozenLinear, draws, kept_scaling, mask_of

FEWEST = 4  # adapters; fewer are computed one after another
_BYTES = 16  # what rows must be a multiple of, for these kernels


def fits(x: Tensor, layer: FrozenLinear) -> bool:
    """Whether the updates of ``layer`` on x (n, ...) are computed so: on CUDA, and the same for its gradients."""
    if x.device.type != "cuda" or len(layer.segments) < FEWEST or x.dtype != torch.bfloat16:
        return False
    if not all(segment.B.is_floating_point() for segment in layer.segments):
        return False
    stops = [0, *(segment.stop for segment in layer.segments)]
    gapless = all(segment.start == stop for segment, stop in zip(layer.segments, stops, strict=False))
    return gapless and stops[-1] == len(x) and not any(n * 2 % _BYTES for n in layer.weight.shape) and works(x.device)


@functools.cache
def works(device: torch.device) -> bool:
    """Whether this torch has the kernels for this device: seen by using them once."""
    if not hasattr(F, "grouped_mm"):
        return False
    numbers = torch.arange(48 * 16 + 2 * 16 * 8, device=device).mul(0.7).sin().bfloat16()  # nothing random is drawn
    x, weight = numbers[: 48 * 16].view(48, 16), numbers[48 * 16 :].view(2, 16, 8)
    try:
        found = F.grouped_mm(x, weight, offs=_stops((16, 48), device))
        both = F.grouped_mm(x.T, found, offs=_stops((16, 48), device))
    except RuntimeError:
        return False
    wanted = torch.cat([x[:16] @ weight[0], x[16:] @ weight[1]])
    of_both = torch.stack([x[:16].T @ found[:16], x[16:].T @ found[16:]])
    return torch.allclose(found, wanted, rtol=0.02, atol=0.1) and torch.allclose(both, of_both, rtol=0.02, atol=0.1)


def add_updates(
    out: Tensor, x: Tensor, layer: FrozenLinear, factors: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Add the updates to ``out`` (n, o); what `add_gradients` takes as ``kept``, three entries for each segment."""
    rank = _rank(layer)
    down, up = x.new_zeros(len(layer.segments), rank, x.shape[1]), x.new_zeros(len(layer.segments), out.shape[1], rank)
    for number, segment in enumerate(layer.segments):
        down[number, : len(segment.A)] = factors[2 * number]
        up[number, :, : len(segment.A)] = factors[2 * number + 1]
    offsets = _offsets(layer, x)
    mask = _mask(layer, x)
    low = F.grouped_mm(x if mask is None else x * mask, down.transpose(1, 2), offs=offsets).mul_(_scales(layer, x))
    out += F.grouped_mm(low, up.transpose(1, 2), offs=offsets)
    nothing = [None] * (3 * len(layer.segments) - 3)
    return [low if any(needs[1::2]) else None, down, up, *nothing]


def add_gradients(
    dx: Tensor | None, dy: Tensor, layer: FrozenLinear, x: Tensor | None, kept: Sequence[Any], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Add the updates' part to ``dx`` (n, i); the gradients of A and B of each segment."""
    low, down, up = kept[:3]
    offsets, grads = _offsets(layer, dy), list[Tensor | None]([None]) * len(needs)
    dlow = F.grouped_mm(dy, up, offs=offsets).mul_(_scales(layer, dy))
    mask = _mask(layer, down)
    if any(needs[1::2]):
        of_up = F.grouped_mm(dy.T, low, offs=offsets)  # (k, o, r)
        for number, segment in enumerate(layer.segments):
            if needs[2 * number + 1]:
                grads[2 * number + 1] = of_up[number, :, : len(segment.A)].to(segment.B.dtype).contiguous()
    if any(needs[::2]):
        assert x is not None, "kept where an A needs its gradient"
        of_down = F.grouped_mm(dlow.T, x if mask is None else x * mask, offs=offsets)  # (k, r, i)
        for number, segment in enumerate(layer.segments):
            if needs[2 * number]:
                grads[2 * number] = of_down[number, : len(segment.A)].to(segment.A.dtype)
    if dx is not None:
        update = F.grouped_mm(dlow, down, offs=offsets)
        dx += update if mask is None else update.mul_(mask)
    return grads


def _rank(layer: FrozenLinear) -> int:
    """The largest rank, filled up to what the kernels take."""
    return -(-max(len(segment.A) for segment in layer.segments) * 2 // _BYTES) * _BYTES // 2


def _offsets(layer: FrozenLinear, like: Tensor) -> Tensor:
    return _stops(tuple(segment.stop for segment in layer.segments), like.device)


@functools.lru_cache(maxsize=64)
def _stops(stops: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each run ends, (k,) int32: the same for all layers of a pass, and copied to the device once."""
    return torch.tensor(stops, dtype=torch.int32, device=device)


def _scales(layer: FrozenLinear, like: Tensor) -> Tensor | float:
    """The scaling of each row (n, 1), or of all."""
    scales = [kept_scaling(segment) for segment in layer.segments]
    if len(set(scales)) == 1:
        return scales[0]
    runs = tuple((scale, segment.stop - segment.start) for scale, segment in zip(scales, layer.segments, strict=True))
    return _repeated(runs, like.device)


@functools.lru_cache(maxsize=64)
def _repeated(runs: tuple[tuple[float, int], ...], device: torch.device) -> Tensor:
    """In fp32: rounded to a half type, all of an adapter's update would be off."""
    return torch.tensor([scale for scale, count in runs for _ in range(count)], device=device)[:, None]


def _mask(layer: FrozenLinear, like: Tensor) -> Tensor | None:
    """The dropout of all rows (n, i), each segment's as it would draw it by itself; None where nobody drops."""
    if not any(draws(segment) for segment in layer.segments):
        return None
    return torch.cat(
        [
            mask_of(segment, like) if draws(segment) else like.new_ones(segment.stop - segment.start, like.shape[-1])
            for segment in layer.segments
        ]
    )
