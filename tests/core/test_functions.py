"""The hand-derived linear layer: beside plain operators, finite differences, and itself with other neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora.core.functions import adapted_linear
from lora.core.randomness import keep_mask
from lora.core.segments import FrozenLinear, Segment


def plainly(x: Tensor, layer: FrozenLinear) -> Tensor:
    """The same by operators that anyone can read, in the type of the factors."""
    weight = layer.weight.T if layer.transposed else layer.weight
    out = F.linear(x, weight, layer.bias)
    parts, done = [], 0
    for segment in sorted(layer.segments, key=lambda segment: segment.start):
        rows, inputs = slice(segment.start, segment.stop), x[segment.start : segment.stop].to(segment.A.dtype)
        if segment.dropout and segment.seed is not None:
            inputs = inputs * keep_mask(inputs.shape, segment.dropout, segment.seed, inputs)
            inputs = inputs / (1 - round(segment.dropout * 65536) / 65536)
        parts += [out[done : segment.start], out[rows] + segment.scaling * (inputs @ segment.A.T @ segment.B.T)]
        done = segment.stop
    return torch.cat([*parts, out[done:]]).to(out.dtype)


def layer_of(
    spans: Sequence[tuple[int, int]], i: int, o: int, rank: int = 3, dtype: torch.dtype = torch.float32,
    bias: bool = True, transposed: bool = False, dropout: float = 0.0, factors: torch.dtype = torch.float32,
) -> FrozenLinear:  # fmt: skip
    """A layer with one adapter per span, each of its own rank and scaling."""
    segments = []
    for number, (start, stop) in enumerate(spans):
        r = rank + number
        A, B = torch.randn(r, i, dtype=factors) / i**0.5, torch.randn(o, r, dtype=factors)
        segments.append(
            Segment(start, stop, A.requires_grad_(), B.requires_grad_(), 0.5 + number, dropout, 11 + number)
        )
    weight = (torch.randn(o, i) / i**0.5).to(dtype)
    return FrozenLinear(
        weight.T.contiguous() if transposed else weight,
        torch.randn(o).to(dtype) if bias else None,
        segments,
        transposed,
    )


def adapted_linears(x: Tensor, layers: Sequence[FrozenLinear]) -> tuple[Tensor, ...]:
    """Several layers over one x, as query, key and value are."""
    return tuple(adapted_linear(x, *layer) for layer in layers)


def leaves(layers: Sequence[FrozenLinear]) -> list[Tensor]:
    return [factor for layer in layers for segment in layer.segments for factor in (segment.A, segment.B)]


def close(mine: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    """Within ``tolerance`` of the norm: single entries near zero say nothing."""
    for one, other in zip(mine, theirs, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other.double()).norm() <= tolerance * (other.double().norm() + 1e-12)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(transposed: bool, dropout: float) -> None:
    torch.manual_seed(0)
    double = {"dtype": torch.float64, "factors": torch.float64, "transposed": transposed}
    layers = [
        layer_of([(1, 4), (4, 9)], 5, 4, dropout=dropout, **double),
        layer_of([(1, 4)], 5, 3, bias=False, **double),
        layer_of([], 5, 2, **double),
    ]
    x = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)

    def outs(x: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        given = iter(factors)
        moved = [
            layer._replace(segments=[segment._replace(A=next(given), B=next(given)) for segment in layer.segments])
            for layer in layers
        ]
        return adapted_linears(x, moved)

    assert torch.autograd.gradcheck(outs, (x, *leaves(layers)))


@pytest.mark.parametrize("transposed", [False, True])
def test_integers_stand_for_a_one_hot_matrix(transposed: bool) -> None:
    torch.manual_seed(1)
    layer = layer_of([(2, 9)], 12, 7, transposed=transposed)
    rows, places = torch.randn(2, 12, requires_grad=True), torch.tensor([5, 0])
    few, full = (
        layer._replace(segments=[*layer.segments, Segment(9, 20, rows, B, 1.0)])
        for B in (places, F.one_hot(places, 7).T.float())
    )
    x, weigh = torch.randn(20, 12, requires_grad=True), torch.randn(20, 7)
    mine, theirs = adapted_linear(x, *few), plainly(x, full)
    wanted = [x, rows, *leaves([layer])]
    close([mine], [theirs], 1e-6)
    close(torch.autograd.grad((mine * weigh).sum(), wanted), torch.autograd.grad((theirs * weigh).sum(), wanted), 1e-5)


# Of half types only single roundings may differ: 2^-9 relative, in a few places after one another.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 8e-3)]
)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("i", "o"), [(64, 32), (33, 50), (7, 129)])
def test_it_equals_plain_operators(i: int, o: int, dtype: torch.dtype, tolerance: float, dropout: float) -> None:
    torch.manual_seed(1)
    factors = torch.float64 if dtype == torch.float64 else torch.float32
    spans = [(3, 40), (40, 41), (50, 50), (57, 100)]
    layers = [
        layer_of(spans, i, o, dtype=dtype, dropout=dropout, factors=factors),
        layer_of(spans[1:], i, o + 1, 5, dtype, False, True, dropout, factors),
    ]
    x = torch.randn(101, i).to(dtype).requires_grad_()
    douts = [torch.randn(101, layer_out).to(dtype) for layer_out in (o, o + 1)]
    mine, theirs = adapted_linears(x, layers), [plainly(x, layer) for layer in layers]
    close(mine, theirs, tolerance)
    grads = torch.autograd.grad(mine, [x, *leaves(layers)], douts)
    assert [grad.dtype for grad in grads[1:]] == [factors] * (len(grads) - 1)
    close(grads, torch.autograd.grad(theirs, [x, *leaves(layers)], douts), tolerance)


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, object]:
    """Rows of several adapters, some of none, one to look at and one to poison."""
    lengths = draw(st.lists(st.integers(16, 70), min_size=2, max_size=4))
    gaps = draw(st.lists(st.integers(0, 9), min_size=len(lengths), max_size=len(lengths)))
    spans, row = [], 0
    for length, gap in zip(lengths, gaps, strict=True):
        spans.append((row + gap, row + gap + length))
        row += gap + length
    seen, poisoned = draw(st.permutations(range(len(spans))))[:2]
    return {
        "spans": spans, "rows": row + draw(st.integers(0, 9)), "seen": seen, "poisoned": poisoned,
        "i": draw(st.sampled_from([16, 33, 96])),
        "outs": draw(st.lists(st.sampled_from([24, 31, 64]), min_size=1, max_size=3)),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16])), "dropout": draw(st.sampled_from([0.0, 0.2])),
        "poison": draw(st.sampled_from([float("nan"), float("inf"), 1e6])), "seed": draw(st.integers(0, 99)),
        "threads": draw(st.sampled_from([1, 2])),
    }  # fmt: skip


@settings(max_examples=80, deadline=None, derandomize=True)
@given(layout=layouts())
def test_a_segment_has_the_same_bits_whatever_stands_beside_it(layout: dict) -> None:
    torch.manual_seed(layout["seed"])
    spans, i, dtype = layout["spans"], layout["i"], layout["dtype"]
    layers = [layer_of(spans, i, o, dtype=dtype, dropout=layout["dropout"]) for o in layout["outs"]]
    x = torch.randn(layout["rows"], i).to(dtype)
    douts = [torch.randn(layout["rows"], o).to(dtype) for o in layout["outs"]]
    start, stop = spans[layout["poisoned"]]
    x[start:stop] = layout["poison"]
    for dout in douts:
        dout[start:stop] = layout["poison"]
    start, stop = spans[layout["seen"]]
    alone = [
        layer._replace(segments=[layer.segments[layout["seen"]]._replace(start=0, stop=stop - start)])
        for layer in layers
    ]
    with threads(layout["threads"]):
        among = both_ways(x, layers, douts, leaves(alone), slice(start, stop))
        lonely = both_ways(x[start:stop].clone(), alone, [d[start:stop].clone() for d in douts], leaves(alone))
    for one, other in zip(among, lonely, strict=True):
        assert torch.equal(one, other) and other.isfinite().all()


def both_ways(
    x: Tensor, layers: Sequence[FrozenLinear], douts: Sequence[Tensor], wanted: list[Tensor], rows: slice = slice(None)
) -> list[Tensor]:
    """Outputs and the gradient of x at ``rows``, and the gradients of ``wanted``."""
    x = x.detach().requires_grad_()
    outs = adapted_linears(x, layers)
    dx, *grads = torch.autograd.grad(outs, [x, *wanted], douts)
    return [*(out[rows] for out in outs), dx[rows], *grads]


def test_rows_of_no_segment_are_the_frozen_layers_own_to_the_bit() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(2)
    x = torch.randn(2, 40, 48)
    linear, conv = nn.Linear(48, 32).requires_grad_(False), Conv1D(32, 48).requires_grad_(False)
    for module, transposed in ((linear, False), (conv, True)):
        segments = layer_of([(20, 60)], 48, 32).segments
        out = adapted_linear(x, module.weight, module.bias, segments, transposed)
        assert torch.equal(out.flatten(0, 1)[:20], module(x).flatten(0, 1)[:20])
        assert not torch.equal(out, module(x))


def test_dropout_is_the_seeds_alone_and_the_same_again_in_the_backward() -> None:
    like = torch.empty(0)
    mask = keep_mask((400, 500), 0.1, 7, like)
    assert torch.equal(mask, keep_mask((400, 500), 0.1, 7, like.bfloat16()).float())
    assert not torch.equal(mask, keep_mask((400, 500), 0.1, 8, like))
    # Every fourth column comes from the same lane of the random words: none may be off.
    for lane in range(4):
        assert mask[:, lane::4].mean().item() == pytest.approx(0.9, abs=0.005)
    assert keep_mask((3, 5), 0.0, 1, like).all() and not keep_mask((3, 5), 1.0, 1, like).any()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    layer = layer_of([(0, 2000)], 16, 8, dropout=0.25)
    state = torch.get_rng_state()
    x = torch.ones(2000, 16, requires_grad=True)
    out = adapted_linear(x, *layer)
    kept = adapted_linear(x, *layer._replace(segments=[layer.segments[0]._replace(seed=None)]))
    assert out.mean(0).sub(kept.mean(0)).abs().max() < 0.05 and not torch.equal(out, kept)
    assert torch.equal(torch.get_rng_state(), state) and not torch.equal(state, before)


def test_checkpointing_changes_no_bit() -> None:
    torch.manual_seed(4)
    layers = [layer_of([(0, 30), (30, 64)], 32, 24, dropout=0.2), layer_of([(0, 30)], 32, 16, dropout=0.2)]
    x, douts = torch.randn(64, 32), [torch.randn(64, 24), torch.randn(64, 16)]
    wanted = leaves(layers)
    plain = both_ways(x, layers, douts, wanted)
    x.requires_grad_()
    outs = checkpoint(lambda x: adapted_linears(x * 1, layers), x, use_reentrant=False)
    again = [*outs, *torch.autograd.grad(outs, [x, *wanted], douts)]
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_one_parameter_in_two_segments_gets_the_sum() -> None:
    torch.manual_seed(5)
    layer = layer_of([(0, 20), (20, 50)], 16, 12)
    first, second = layer.segments
    shared = layer._replace(segments=[first, second._replace(A=first.A, B=first.B)])
    x = torch.randn(50, 16, requires_grad=True)
    mine = torch.autograd.grad(adapted_linear(x, *shared).square().sum(), [x, first.A, first.B])
    theirs = torch.autograd.grad(plainly(x, shared).square().sum(), [x, first.A, first.B])
    close(mine, theirs, 1e-6)


def test_gradients_come_in_any_layout_or_not_at_all() -> None:
    torch.manual_seed(6)
    layers = [layer_of([(0, 20)], 16, 12), layer_of([(0, 20), (20, 30)], 16, 12)]
    wanted = leaves(layers)
    x = torch.randn(2, 15, 16, requires_grad=True)
    flat = x.flatten(0, 1)
    for use in (
        lambda outs: outs[0].sum() + outs[1].mean(),  # expanded
        lambda outs: (outs[0].movedim(-1, 0) * torch.arange(1.0, 13).view(-1, *[1] * (outs[0].dim() - 1))).sum(),
        lambda outs: outs[1].square().sum(),  # nothing for the first
    ):
        mine = torch.autograd.grad(use(adapted_linears(x, layers)), [x, *wanted], allow_unused=True)
        theirs = torch.autograd.grad(use([plainly(flat, layer) for layer in layers]), [x, *wanted], allow_unused=True)
        for one, other in zip(mine, theirs, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                close([one], [other], 1e-6)


def test_only_what_is_needed_is_computed_and_kept() -> None:
    torch.manual_seed(7)
    layer = layer_of([(0, 20)], 16, 12, 3, torch.bfloat16)
    (segment,) = layer.segments
    x = torch.randn(20, 16, dtype=torch.bfloat16)
    out = adapted_linear(x, *layer)  # x needs none: the first layer of a model
    assert all(grad is not None for grad in torch.autograd.grad(out.sum(), [segment.A, segment.B]))

    def kept(x: Tensor, layer: FrozenLinear) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)), lambda _: None):
            adapted_linear(x, *layer)
        return shapes

    # x and x·Aᵀ, and A and B in the type of x.
    assert sorted(kept(x, layer)) == sorted([(20, 16), (20, 3), (3, 16), (12, 3)])
    frozen = layer._replace(segments=[segment._replace(A=segment.A.detach(), B=segment.B.detach())])
    assert sorted(kept(x.requires_grad_(), frozen)) == sorted([(3, 16), (12, 3)])
    assert torch.autograd.grad(adapted_linear(x, *frozen).sum(), x)[0].isfinite().all()
    with torch.no_grad():
        assert kept(x, layer) == [] and not adapted_linear(x, *layer).requires_grad


def test_under_autocast_products_are_taken_in_its_type() -> None:
    torch.manual_seed(8)
    layer = layer_of([(0, 20)], 16, 12)
    x = torch.randn(20, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = adapted_linear(x, *layer)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out.float().square().sum(), [x, *leaves([layer])])
    assert all(grad.dtype == torch.float32 for grad in grads)
    close(grads, torch.autograd.grad(plainly(x, layer).square().sum(), [x, *leaves([layer])]), 2e-2)


def test_what_it_does_not_give_is_refused() -> None:
    torch.manual_seed(9)
    layer = layer_of([(0, 20)], 16, 12)
    x = torch.randn(20, 16, requires_grad=True)
    (dx,) = torch.autograd.grad(adapted_linear(x, *layer).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
    with pytest.raises(AssertionError, match="frozen"):
        adapted_linear(x, layer.weight.clone().requires_grad_(), None, layer.segments)
