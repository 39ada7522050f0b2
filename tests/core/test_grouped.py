"""The updates of many adapters by grouped products, which run on the CPU too: beside the loop over adapters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lora.core import grouped
from lora.core.functions import adapted_linear
from lora.core.fused import ACTIVATIONS, gated_mlp
from lora.core.segments import FrozenLinear, Segment

pytestmark = pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="this torch has no grouped_mm")

RANKS, LENGTHS = (8, 3, 16, 1), (20, 33, 16, 40)


def layer(i: int, o: int, dropout: float = 0.0, seed: int = 0) -> FrozenLinear:
    generator, segments, start = torch.Generator().manual_seed(seed), [], 0
    for number, (rank, length) in enumerate(zip(RANKS, LENGTHS, strict=True)):
        A = (torch.randn(rank, i, generator=generator) / i**0.5).requires_grad_()
        B = torch.randn(o, rank, generator=generator).requires_grad_()
        drops = dropout if number != 1 else 0.0
        segments.append(Segment(start, start + length, A, B, 1.0 + number % 2, drops, 5 + number))
        start += length
    return FrozenLinear((torch.randn(o, i, generator=generator) / i**0.5).bfloat16(), None, segments)


def leaves(*layers: FrozenLinear) -> list[Tensor]:
    return [factor for one in layers for segment in one.segments for factor in (segment.A, segment.B)]


def both(compute: Any, wanted: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Output and gradients by the loop and by groups."""
    out = []
    for fits in (False, True):
        monkeypatch.setattr(grouped, "fits", lambda x, layer, fits=fits: fits)
        y = compute()
        out.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), wanted)])
    return out


def close(one: Tensor, other: Tensor, tolerance: float = 1e-2) -> None:
    """Of bfloat16: roundings of 2^-9 in a few places after one another."""
    assert one.dtype == other.dtype and one.shape == other.shape and one.is_contiguous() == other.is_contiguous()
    assert (one.double() - other.double()).norm() <= tolerance * other.double().norm()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_equals_the_loop(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    one, x = layer(24, 32, dropout), torch.randn(sum(LENGTHS), 24).bfloat16().requires_grad_()
    loop, groups = both(lambda: adapted_linear(x, *one), [x, *leaves(one)], monkeypatch)
    for mine, other in zip(groups, loop, strict=True):
        close(mine, other)


def test_inside_of_the_gated_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    gate, up, down = layer(24, 32), layer(24, 32, seed=1), layer(32, 24, seed=2)
    x = torch.randn(sum(LENGTHS), 24).bfloat16().requires_grad_()
    loop, groups = both(
        lambda: gated_mlp(x, gate, up, down, ACTIVATIONS["silu"]), [x, *leaves(gate, up, down)], monkeypatch
    )
    for mine, other in zip(groups, loop, strict=True):
        close(mine, other, 4e-2)  # the sum of squares doubles what three layers round


def test_what_is_not_finite_stays_with_its_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    one, x = layer(24, 32), torch.randn(sum(LENGTHS), 24).bfloat16()
    x[25] = torch.nan  # of the second adapter
    _, (y, dx, *grads) = both(lambda: adapted_linear(x, *one), [x.requires_grad_(), *leaves(one)], monkeypatch)
    others = [*range(20), *range(53, sum(LENGTHS))]
    assert y[others].isfinite().all() and dx[others].isfinite().all() and y[25].isnan().all()
    assert [grad.isfinite().all().item() for grad in grads] == [True, True, False, False, True, True, True, True]


def test_scalings_are_not_rounded() -> None:
    """In a half type all of an adapter's update would be off, beside neighbours of other scalings alone."""
    one = layer(24, 32)
    scaled = one._replace(segments=[s._replace(scaling=1.48148 if n else 0.7) for n, s in enumerate(one.segments)])
    x = torch.randn(sum(LENGTHS), 24).bfloat16()
    found = grouped._scales(scaled, x)
    assert isinstance(found, Tensor) and found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx([0.7] * LENGTHS[0] + [1.48148] * sum(LENGTHS[1:]), rel=1e-6)
    assert x.mul_(found).dtype == torch.bfloat16
    assert grouped._scales(one._replace(segments=one.segments[:1]), x) == 1.0


def test_only_what_is_needed_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    one, x = layer(24, 32), torch.randn(sum(LENGTHS), 24).bfloat16()
    wanted = [one.segments[0].A, one.segments[2].B]
    for factor in leaves(one):
        factor.requires_grad_(any(factor is each for each in wanted))
    loop, groups = both(lambda: adapted_linear(x, *one), wanted, monkeypatch)
    for mine, other in zip(groups, loop, strict=True):
        close(mine, other)


def test_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    one, n = layer(24, 32), sum(LENGTHS)
    monkeypatch.setattr(grouped, "works", lambda device: True)

    def asked(rows: int = n, device: str = "cuda", dtype: torch.dtype = torch.bfloat16, of: FrozenLinear = one) -> bool:
        class Rows(SimpleNamespace):
            def __len__(self) -> int:
                return rows

        return grouped.fits(Rows(device=torch.device(device), dtype=dtype), of)  # type: ignore[arg-type]

    assert asked()
    assert not asked(device="cpu") and not asked(dtype=torch.float32) and not asked(rows=n + 1)
    assert not asked(of=one._replace(segments=one.segments[:3]))
    moved = [segment._replace(start=segment.start + 1) if number == 2 else segment
             for number, segment in enumerate(one.segments)]  # fmt: skip
    assert not asked(of=one._replace(segments=moved)) and not asked(of=layer(20, 32))


def test_the_kernels_are_tried_before_they_are_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    grouped.works.cache_clear()
    assert grouped.works(cpu)
    for broken in (lambda a, b, offs: (a @ b[0]) * 1.5, None):
        grouped.works.cache_clear()

        def fails(*args: Any, broken: Any = broken, **options: Any) -> Tensor:
            if broken is None:
                raise RuntimeError("no kernel for this device")
            return broken(*args, **options)

        monkeypatch.setattr(torch.nn.functional, "grouped_mm", fails)
        assert not grouped.works(cpu)
    grouped.works.cache_clear()
