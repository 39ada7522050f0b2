"""The chunked cross-entropy of a head: beside `F.cross_entropy` on full logits, and beside itself with other rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora.core import loss
from lora.core.loss import head_cross_entropy
from lora.core.randomness import keep_mask
from lora.core.segments import Segment


def fully(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, segments: Any = (),
    softcap: float | None = None, scale: float = 1.0, label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same with all logits, in the type of ``hidden`` up to them as models compute them."""
    logits = F.linear(hidden, weight, bias)
    for start, stop, A, B, scaling, dropout, seed in segments:
        inputs = hidden[start:stop]
        if dropout:
            inputs = inputs * keep_mask(inputs.shape, dropout, seed, inputs) / (1 - round(dropout * 65536) / 65536)
        update = torch.zeros_like(logits)
        update[start:stop] = scaling * (inputs @ A.T.to(hidden.dtype) @ B.T.to(hidden.dtype))
        logits = logits + update
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    return losses, logits.argmax(-1) == labels


def head_of(
    n: int, h: int, v: int, dtype: torch.dtype = torch.float64, factors: torch.dtype | None = None
) -> dict[str, Any]:
    """Tensors of a call; more than one label is right."""
    hidden, weight = torch.randn(n, h), torch.randn(v, h)
    labels = torch.where(torch.rand(n) < 0.5, (hidden @ weight.T).argmax(-1), torch.randint(0, v, (n,)))
    tensors = {"hidden": hidden, "weight": weight / h**0.5, "bias": torch.randn(v) / 4}
    return {key: value.to(dtype) for key, value in tensors.items()} | {"labels": labels}


def adapted(spans: list[tuple[int, int]], h: int, v: int, dtype: torch.dtype, dropout: float = 0.0) -> list[Segment]:
    return [
        Segment(
            start, stop, torch.randn(2 + k, h, dtype=dtype).requires_grad_(),
            (torch.randn(v, 2 + k, dtype=dtype) / h**0.5).requires_grad_(), 0.5, dropout, 3 + k,
        )
        for k, (start, stop) in enumerate(spans)
    ]  # fmt: skip


KINDS = [
    {}, {"bias": None}, {"softcap": 2.0}, {"scale": 0.3}, {"label_smoothing": 0.1},
    {"softcap": 1.5, "scale": 2.0, "label_smoothing": 0.2},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("trained", ["hidden", "weight", "adapters", "all"])
def test_gradients_are_those_of_finite_differences(kind: dict[str, Any], trained: str) -> None:
    torch.manual_seed(0)
    call = head_of(40, 4, 6) | kind
    call["segments"] = adapted([(20, 37), (1, 19)], 4, 6, torch.float64, 0.2) if trained in ("adapters", "all") else []
    names = {"hidden": ["hidden"], "weight": ["weight", "bias"], "adapters": ["hidden"]}
    wanted = [name for name in names.get(trained, ["hidden", "weight", "bias"]) if call[name] is not None]
    factors = [factor for segment in call["segments"] for factor in (segment.A, segment.B)]
    # What each row's loss is multiplied with differs by row and is not known in the forward.
    weigh = torch.linspace(0.5, 2, 40, dtype=torch.float64)

    def loss(*tensors: Tensor) -> Tensor:
        given = dict(zip(wanted, tensors, strict=False))
        rest = iter(tensors[len(wanted) :])
        segments = [segment._replace(A=next(rest), B=next(rest)) for segment in call["segments"]]
        losses, _ = head_cross_entropy(**(call | given | {"segments": segments}), chunk_bytes=6 * 8 * 17)
        return (losses * weigh).sum()

    inputs = [call[name].requires_grad_() for name in wanted] + factors
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=trained == "all")


# Rounded to bf16, logits and gradients are off by 2^-9, those of the reference more often than these.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("trained", [False, True])
def test_it_equals_cross_entropy_of_full_logits(
    dtype: torch.dtype, tolerance: float, kind: dict[str, Any], trained: bool
) -> None:
    torch.manual_seed(1)
    n, h, v = 70, 33, 101
    call = head_of(n, h, v, dtype) | kind
    factors = torch.float64 if dtype == torch.float64 else torch.float32
    call["segments"] = adapted([(3, 30), (30, 31), (31, 31), (40, 69)], h, v, factors, 0.2) if trained else []
    wanted = [call["hidden"].requires_grad_()]
    if trained:
        wanted += [call[name].requires_grad_() for name in ("weight", "bias") if call[name] is not None]
        wanted += [factor for segment in call["segments"] for factor in (segment.A, segment.B)]
    mine, hits = head_cross_entropy(**call, chunk_bytes=20 * v * dtype.itemsize)
    theirs, expected = fully(**call)
    assert mine.dtype == torch.promote_types(dtype, torch.float32) and mine.shape == (n,)
    assert torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance)
    if dtype != torch.bfloat16 or not trained:
        assert torch.equal(hits, expected) and hits.any() and not hits.all()
    weigh = torch.linspace(0.5, 2, n, dtype=mine.dtype)
    grads = torch.autograd.grad((mine * weigh).sum(), wanted)
    for one, other in zip(grads, torch.autograd.grad((theirs * weigh).sum(), wanted), strict=True):
        assert one.dtype == other.dtype and (one - other).norm() <= tolerance * other.norm() + 1e-12


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    before, seen, after = draw(st.integers(0, 80)), draw(st.integers(1, 60)), draw(st.integers(0, 80))
    kinds = [*KINDS, {"bias": None, "label_smoothing": 0.1}]
    return {
        "before": before, "seen": seen, "after": after, "h": draw(st.sampled_from([16, 33])),
        "v": draw(st.sampled_from([50, 333])), "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16])),
        "kind": draw(st.sampled_from(kinds)), "adapted": draw(st.booleans()),
        "rows": draw(st.sampled_from([16, 40, 999])), "threads": draw(st.sampled_from([1, 2])),
        "seed": draw(st.integers(0, 99)), "poison": draw(st.sampled_from([float("nan"), 1e30, 0.0])),
    }  # fmt: skip


@settings(max_examples=80, deadline=None, derandomize=True)
@given(layout=layouts())
def test_a_row_has_the_same_bits_whatever_stands_beside_it(layout: dict[str, Any]) -> None:
    torch.manual_seed(layout["seed"])
    before, seen, h, v = layout["before"], layout["seen"], layout["h"], layout["v"]
    n, rows = before + seen + layout["after"], slice(before, before + seen)
    call = head_of(n, h, v, layout["dtype"]) | layout["kind"]
    call["chunk_bytes"] = layout["rows"] * v * layout["dtype"].itemsize
    segments = adapted([(before, before + seen), (0, before), (before + seen, n)], h, v, torch.float32, 0.1)
    segments = segments if layout["adapted"] else []
    others = torch.ones(n, dtype=torch.bool)
    others[rows] = False
    call["hidden"][others] += layout["poison"]
    alone = call | {"hidden": call["hidden"][rows].clone(), "labels": call["labels"][rows].clone()}
    lonely = [segment._replace(start=0, stop=seen) for segment in segments[:1]]
    threads = torch.get_num_threads()
    torch.set_num_threads(layout["threads"])
    try:
        among, other = results(call, segments, rows), results(alone, lonely, slice(None))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(among, other, strict=True):
        assert torch.equal(one, two) and two.isfinite().all()


def results(call: dict[str, Any], segments: list[Segment], rows: slice) -> list[Tensor]:
    """Losses, hits and the gradient of hidden at ``rows``, and the gradients of the first segment."""
    hidden = call["hidden"].detach().requires_grad_()
    losses, hits = head_cross_entropy(**(call | {"hidden": hidden, "segments": segments}))
    factors = [factor for segment in segments[:1] for factor in (segment.A, segment.B)]
    dhidden, *rest = torch.autograd.grad(losses.sum(), [hidden, *factors])
    return [losses[rows].detach(), hits[rows], dhidden[rows], *rest]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("trained", ["rows", "hidden and rows", "all"])
def test_products_that_are_added_to_single_outputs(dtype: torch.dtype, tolerance: float, trained: str) -> None:
    """Integers for B stand for a one-hot one; a dense update of the same head may stand beside it."""
    torch.manual_seed(5)
    n, h, v = 70, 33, 101
    factors = torch.float64 if dtype == torch.float64 else torch.float32
    call = head_of(n, h, v, dtype) | {"scale": 0.5, "softcap": 3.0}
    dense, places = adapted([(3, 20)], h, v, factors, 0.2), torch.tensor([4, 100, 7])
    if trained != "all":
        dense = [segment._replace(A=segment.A.detach(), B=segment.B.detach()) for segment in dense]
    rows = torch.randn(3, h, dtype=factors, requires_grad=True)
    one_hot = F.one_hot(places, v).T.to(factors)
    few, full = ([*dense, Segment(25, 60, rows, B, 1.0, 0.1, 8)] for B in (places, one_hot))
    wanted = [rows]
    if trained != "rows":
        wanted += [call["hidden"].requires_grad_()]
    if trained == "all":
        wanted += [dense[0].A, dense[0].B, call["weight"].requires_grad_()]
    mine, _ = head_cross_entropy(**call, segments=few, chunk_bytes=20 * v * dtype.itemsize)
    theirs, _ = fully(**call, segments=full)
    assert torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance)
    weigh = torch.linspace(0.5, 2, n, dtype=mine.dtype)
    grads = torch.autograd.grad((mine * weigh).sum(), wanted)
    for one, other in zip(grads, torch.autograd.grad((theirs * weigh).sum(), wanted), strict=True):
        assert one.dtype == other.dtype and (one - other).norm() <= tolerance * other.norm() + 1e-12


def test_single_rows_of_a_frozen_head_need_no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    call = head_of(50, 8, 400, torch.float32)
    call["hidden"].requires_grad_()
    seen: list[int] = []
    score = loss._score
    monkeypatch.setattr(loss, "_score", lambda *args: seen.append(len(args[0])) or score(*args))
    rows = torch.randn(2, 8, requires_grad=True)
    losses, _ = head_cross_entropy(**call, segments=[Segment(0, 50, rows, torch.tensor([3, 399]))])
    losses.sum().backward()
    assert sum(seen) == 50 and rows.grad is not None and rows.grad.abs().max() > 0


def test_of_equal_logits_the_first_is_the_highest() -> None:
    weight = torch.eye(4)[[0, 1, 1, 3]]
    hidden, labels = torch.eye(4)[[1, 1, 1, 0, 2]], torch.tensor([1, 2, 0, 0, 0])
    _, hits = head_cross_entropy(hidden, weight, labels)
    assert hits.tolist() == [True, False, False, True, True]
    assert hits.tolist() == ((hidden @ weight.T).argmax(-1) == labels).tolist()


def test_losses_are_exact_where_the_labels_probability_underflows() -> None:
    hidden, weight = torch.tensor([[1.0], [500.0]], requires_grad=True), torch.tensor([[0.0], [1.0], [-1.0]])
    losses, _ = head_cross_entropy(hidden, weight, torch.tensor([1, 2]))
    assert losses.tolist() == pytest.approx([0.40760597, 1000.0], rel=1e-6)
    assert torch.autograd.grad(losses.sum(), hidden)[0].flatten().tolist() == pytest.approx([-0.425, 2.0], abs=1e-3)


def test_a_tied_weight_gets_its_gradient_from_both_places() -> None:
    torch.manual_seed(2)
    weight, labels = torch.randn(11, 5, requires_grad=True), torch.randint(0, 11, (30,))
    ids = torch.randint(0, 11, (30,))
    (mine,) = torch.autograd.grad(head_cross_entropy(weight[ids], weight, labels)[0].sum(), weight)
    (theirs,) = torch.autograd.grad(fully(weight[ids], weight, labels)[0].sum(), weight)
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_nothing_is_kept_of_the_logits() -> None:
    torch.manual_seed(3)
    call = head_of(50, 8, 400, torch.float32)
    shapes: list[tuple[int, ...]] = []
    call["hidden"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        losses, hits = head_cross_entropy(**call)
        assert shapes == [(50, 8)] and losses.requires_grad and not hits.requires_grad
        with torch.no_grad():
            assert not head_cross_entropy(**call)[0].requires_grad
    assert shapes == [(50, 8)]


def test_no_rows_and_rows_in_another_type() -> None:
    torch.manual_seed(4)
    call = head_of(0, 8, 40, torch.float32)
    call["hidden"].requires_grad_()
    losses, hits = head_cross_entropy(**call, segments=adapted([(0, 0)], 8, 40, torch.float32))
    losses.sum().backward()
    assert losses.shape == hits.shape == (0,) and call["hidden"].grad.shape == (0, 8)
    call = head_of(20, 8, 40, torch.bfloat16)
    # A head kept in fp32 beside a half-precision base computes in fp32.
    wide = call | {key: call[key].float().requires_grad_() for key in ("weight", "bias")}
    losses, _ = head_cross_entropy(**wide)
    assert torch.equal(losses, head_cross_entropy(**(wide | {"hidden": call["hidden"].float()}))[0])
    assert torch.autograd.grad(losses.sum(), wide["weight"])[0].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head_cross_entropy(**wide)[0], head_cross_entropy(**call)[0])
