"""KL to the base beside `F.kl_div` on full logits: from logits, and in the chunked loss of a head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora.core import divergence
from lora.core.divergence import disagreements, divergences
from lora.core.head import Reference
from lora.core.loss import head_cross_entropy
from lora.core.segments import Segment


def kl(logits: Tensor, base: Tensor) -> Tensor:
    """KL(base ‖ logits) of each row by torch's own operators."""
    return F.kl_div(logits.log_softmax(1), base.log_softmax(1), reduction="none", log_target=True).sum(1)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 1e-2)]
)
def test_it_is_torchs_kl_div(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(divergence, "_CPU_BLOCK", 101 * 8 * 7)  # several blocks
    base = (3 * torch.randn(50, 101)).to(dtype)
    logits = (base + torch.randn(50, 101).to(dtype)).requires_grad_()
    weigh = torch.linspace(0.5, 2, 50, dtype=torch.float64)
    mine, theirs = divergences(logits, base), kl(logits.double(), base.double())
    assert mine.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5 if dtype != torch.float64 else 1e-12)
    (one,), (other,) = (torch.autograd.grad((found * weigh).sum(), logits) for found in (mine, theirs))
    assert one.dtype == dtype and (one - other).norm() <= tolerance * other.norm()


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(1)
    logits, base = torch.randn(2, 5, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: divergences(x, base), logits.requires_grad_())


def test_of_the_same_logits_it_is_zero_and_far_apart_it_is_finite() -> None:
    same = torch.randn(30, 999) * 20
    assert torch.equal(divergences(same, same), torch.zeros(30))
    one, other = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]])
    assert divergences(one, other).item() == pytest.approx(1000)


def test_of_neither_is_there_a_whole_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_CPU_BLOCK", 4 * 400 * 3)
    logits = torch.randn(60, 400, dtype=torch.bfloat16, requires_grad=True)
    kept: list[tuple[Any, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append((t.dtype, *t.shape)) or t, lambda t: t):
        found = divergences(logits, torch.randn(60, 400, dtype=torch.bfloat16))
    assert kept == [(torch.bfloat16, 60, 400)] * 2 and found.requires_grad
    largest = 0
    real = divergence.probabilities

    def noted(block: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(block))
        return real(block)

    monkeypatch.setattr(divergence, "probabilities", noted)
    found.sum().backward()
    assert largest == 3 * torch.get_num_threads()


# -- in the loss of a head ---------------------------------------------------------------------------------------------

KINDS = [{}, {"bias": None}, {"softcap": 2.0}, {"scale": 0.3}, {"softcap": 1.5, "scale": 2.0, "label_smoothing": 0.1}]


def head_of(n: int, h: int, v: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "hidden": torch.randn(n, h).to(dtype), "weight": (torch.randn(v, h) / h**0.5).to(dtype),
        "bias": (torch.randn(v) / 4).to(dtype), "labels": torch.randint(0, v, (n,)),
    }  # fmt: skip


def held_to(call: dict[str, Any], places: list[int], weight: float = 0.7, own_head: bool = False) -> Reference:
    hidden = call["hidden"].detach()[places] + 0.5 * torch.randn(len(places), call["hidden"].shape[1]).to(
        call["hidden"].dtype
    )
    W, b = call["weight"].detach(), call["bias"]
    if own_head:  # the adapter trains a head of its own; the base's is another
        W = W + torch.randn_like(W) / 3
    return Reference(hidden, places, W, None if b is None else b.detach(), weight)


def fully(call: dict[str, Any], reference: Reference) -> Tensor:
    """The same with all logits."""

    def finished(hidden: Tensor, weight: Tensor, bias: Tensor | None, segments: list[Segment]) -> Tensor:
        logits = F.linear(hidden, weight, bias)
        for segment in segments:
            update = torch.zeros_like(logits)
            rows = slice(segment.start, segment.stop)
            update[rows] = segment.scaling * (hidden[rows] @ segment.A.T @ segment.B.T).to(logits.dtype)
            logits = logits + update
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * call.get("scale", 1.0)
        cap = call.get("softcap")
        return logits if cap is None else torch.tanh(logits / cap) * cap

    own = finished(call["hidden"], call["weight"], call["bias"], call.get("segments", []))
    base = finished(reference.hidden, reference.weight, reference.bias, [])
    losses = F.cross_entropy(own, call["labels"], reduction="none", label_smoothing=call.get("label_smoothing", 0.0))
    return losses.index_add(0, torch.tensor(list(reference.places)), reference.kl * kl(own[reference.places], base))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("trained", ["hidden", "adapters", "all"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_the_loss_of_a_head_is_that_of_full_logits(
    kind: dict[str, Any], trained: str, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(2)
    n, h, v = 90, 33, 101
    call = head_of(n, h, v, dtype) | kind
    wanted = [call["hidden"].requires_grad_()]
    if trained != "hidden":
        segments = [
            Segment(start, stop, torch.randn(2, h, dtype=dtype).requires_grad_(),
                    (torch.randn(v, 2, dtype=dtype) / h**0.5).requires_grad_(), 0.5)
            for start, stop in ((3, 40), (50, 71))
        ]  # fmt: skip
        call["segments"] = segments
        wanted += [factor for segment in segments for factor in (segment.A, segment.B)]
    if trained == "all":
        wanted += [call[name].requires_grad_() for name in ("weight", "bias") if call[name] is not None]
    reference = held_to(call, [*range(1, 30), 45, *range(60, 90, 2)], own_head=trained == "all")
    mine, _ = head_cross_entropy(**call, chunk_bytes=20 * v * dtype.itemsize, reference=reference)
    theirs = fully(call, reference)
    torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=10 * tolerance)
    weigh = torch.linspace(0.5, 2, n, dtype=mine.dtype)
    grads = torch.autograd.grad((mine * weigh).sum(), wanted)
    for one, other in zip(grads, torch.autograd.grad((theirs * weigh).sum(), wanted), strict=True):
        assert one.dtype == other.dtype and (one - other).norm() <= tolerance * other.norm() + 1e-12


def test_no_rows_held_to_the_base_are_as_none() -> None:
    call = head_of(20, 8, 40, torch.float32)
    call["hidden"].requires_grad_()
    empty = Reference(call["hidden"][:0].detach(), [], call["weight"], None, 0.5)
    assert torch.equal(head_cross_entropy(**call, reference=empty)[0], head_cross_entropy(**call)[0])


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "before": draw(st.integers(0, 60)), "seen": draw(st.integers(1, 50)), "after": draw(st.integers(0, 60)),
        "v": draw(st.sampled_from([50, 333])), "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16])),
        "kind": draw(st.sampled_from(KINDS)), "rows": draw(st.sampled_from([16, 40, 999])),
        "held": draw(st.sampled_from([1, 2, 7])), "threads": draw(st.sampled_from([1, 2])),
        "seed": draw(st.integers(0, 99)), "poison": draw(st.sampled_from([float("nan"), 1e30, 0.0])),
    }  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layout=layouts())
def test_a_row_has_the_same_bits_whatever_stands_beside_it(layout: dict[str, Any]) -> None:
    torch.manual_seed(layout["seed"])
    before, seen = layout["before"], layout["seen"]
    n, rows = before + seen + layout["after"], slice(before, before + seen)
    call = head_of(n, 33, layout["v"], layout["dtype"]) | layout["kind"]
    call["chunk_bytes"] = layout["rows"] * layout["v"] * layout["dtype"].itemsize
    reference = held_to(call, list(range(0, n, layout["held"])))
    others = torch.ones(n, dtype=torch.bool)
    others[rows] = False
    call["hidden"][others] += layout["poison"]
    its, places = reference.within(rows.start, rows.stop)
    alone = call | {"hidden": call["hidden"][rows].clone(), "labels": call["labels"][rows].clone()}
    lonely = reference._replace(hidden=reference.hidden[its].clone(), places=places)
    found = []
    threads = torch.get_num_threads()
    torch.set_num_threads(layout["threads"])
    try:
        for given_, compared, part in ((call, reference, rows), (alone, lonely, slice(None))):
            hidden = given_["hidden"].detach().requires_grad_()
            losses, _ = head_cross_entropy(**(given_ | {"hidden": hidden}), reference=compared)
            (gradient,) = torch.autograd.grad(losses.sum(), hidden)
            found.append((losses[part].detach(), gradient[part]))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two) and two.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 1e-2)]
)
def test_both_ways_it_is_the_sum_of_torchs_two(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(divergence, "_CPU_BLOCK", 101 * 8 * 7)  # several blocks
    one = (3 * torch.randn(50, 101)).to(dtype).requires_grad_()
    other = (one.detach() + torch.randn(50, 101).to(dtype)).requires_grad_()
    weigh = torch.linspace(0.5, 2, 50, dtype=torch.float64)
    mine = disagreements(one, other)
    theirs = kl(one.double(), other.double()) + kl(other.double(), one.double())
    assert mine.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5 if dtype != torch.float64 else 1e-12)
    found, expected = (torch.autograd.grad((values * weigh).sum(), (one, other)) for values in (mine, theirs))
    for its, true in zip(found, expected, strict=True):
        assert its.dtype == dtype and (its - true).norm() <= tolerance * true.norm()


def test_both_ways_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(1)
    one, other = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(disagreements, (one, other))
    same = torch.randn(30, 999) * 20
    assert torch.equal(disagreements(same, same.clone()), torch.zeros(30))
