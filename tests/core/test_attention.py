"""Attention per document in a packed row: beside torch's own, document by document, and whoever stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lora.core import attention, causal_attention
from lora.core.attention import Document, Row, document_attention, documents

HEADS, SHARED, WIDTH = 6, 2, 8


class Layer(nn.Module):
    is_causal = True


def draw(lengths: Sequence[int], dtype: torch.dtype, seed: int = 0, heads: int = HEADS) -> list[Tensor]:
    """Query (1, h, n, d), key and value (1, h', n, d), laid out as a model's projections leave them."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, sum(lengths), count, WIDTH, generator=generator, dtype=torch.float64)
        .to(dtype).transpose(1, 2).requires_grad_()
        for count in (heads, SHARED, SHARED)
    ]  # fmt: skip


def run(tensors: list[Tensor], row: Sequence[Document], **options: Any) -> Tensor:
    with documents(Row(row)):
        return document_attention(Layer(), *tensors, **options)[0][0]


def expected(tensors: list[Tensor], lengths: Sequence[int], **options: Any) -> Tensor:
    """The same by torch's kernel, one document after another: (n, h, d)."""
    q, k, v = tensors[0], *(x.repeat_interleave(HEADS // SHARED, 1) for x in tensors[1:])
    pieces = zip(*(x.split(list(lengths), 2) for x in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*cut, **options) for cut in pieces], 2)[0].transpose(0, 1)


LENGTHS = [5, 1, 33, 32, 70, 12, 64, 65, 130]


@pytest.mark.parametrize("queries, scores", [(64, 1 << 19), (16, 1), (1 << 20, 5000)])
def test_causal_attention_by_hand(queries: int, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside torch's kernel in fp64, values and gradients, however queries and blocks are cut."""
    monkeypatch.setattr(causal_attention, "_QUERIES", queries)
    monkeypatch.setattr(causal_attention, "_SCORES", scores)
    tensors, row = draw(LENGTHS, torch.float64), [Document(length, None, "a") for length in LENGTHS]
    found, wanted = run(tensors, row, scaling=0.3), expected(tensors, LENGTHS, is_causal=True, scale=0.3)
    torch.testing.assert_close(found, wanted)
    incoming = torch.randn(found.shape, dtype=found.dtype)
    for mine, other in zip(
        torch.autograd.grad(found, tensors, incoming), torch.autograd.grad(wanted, tensors, incoming), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_gradients_beside_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_attention, "_QUERIES", 2)
    lengths = [3, 5]
    row = [Document(length, None, "a") for length in lengths]
    assert torch.autograd.gradcheck(lambda *x: run(list(x), row), draw(lengths, torch.float64))


@given(
    mine=st.lists(st.integers(1, 140), min_size=1, max_size=4),
    before=st.lists(st.integers(1, 140), max_size=3),
    after=st.lists(st.integers(1, 140), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    window=st.sampled_from([None, 40, 1]),
)
@settings(max_examples=30, deadline=None)
def test_no_bit_depends_on_the_neighbours(
    mine: list[int], before: list[int], after: list[int], dtype: torch.dtype, window: int | None
) -> None:
    alone = draw(mine, dtype)
    others = [draw(lengths, dtype, 1) if lengths else None for lengths in (before, after)]
    together = [
        torch.cat([part.detach() for part in (others[0] and others[0][i], alone[i], others[1] and others[1][i])
                   if part is not None], 2).transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        for i in range(3)
    ]  # fmt: skip
    row = [*((n, "b") for n in before), *((n, "a") for n in mine), *((n, "c") for n in after)]
    of_all = run(together, [Document(length, None, owner) for length, owner in row], sliding_window=window)
    of_one = run(alone, [Document(length, None, "a") for length in mine], sliding_window=window)
    span = slice(sum(before), sum(before) + sum(mine))
    assert torch.equal(of_all[span], of_one)
    incoming = torch.randn(of_all.shape).to(dtype)
    gradients = torch.autograd.grad(of_all, together, incoming)
    for all_of_it, own in zip(gradients, torch.autograd.grad(of_one, alone, incoming[span]), strict=True):
        assert torch.equal(all_of_it[:, :, span], own)


def test_what_is_not_finite_stays_in_its_document() -> None:
    lengths = [20, 30, 10]
    tensors = draw(lengths, torch.float32)
    with torch.no_grad():
        for tensor in tensors:
            tensor[0, :, 25] = torch.nan
    out = run(tensors, [Document(length, None, "a") for length in lengths])
    gradients = torch.autograd.grad(out.sum(), tensors)
    for found in (out, *(gradient[0].transpose(0, 1) for gradient in gradients)):
        assert found[:20].isfinite().all() and found[50:].isfinite().all() and found[20:50].isnan().any()


@pytest.mark.parametrize(
    "options",
    [{"is_causal": False}, {"sliding_window": 4}, {"softcap": 5.0}, {"sliding_window": 4, "softcap": 5.0},
     {"is_causal": False, "sliding_window": 4}, {"sliding_window": 70}],
    ids=str,
)  # fmt: skip
def test_other_kinds_of_attention(options: dict[str, Any]) -> None:
    """Beside scores written out, in fp64."""
    lengths = [5, 5, 9, 3, 150]
    tensors = draw(lengths, torch.float64)
    found = run(tensors, [Document(length, None, "a") for length in lengths], **options)
    start = 0
    for length in lengths:
        q, k, v = (x[0, :, start : start + length] for x in tensors)
        k, v = (x.repeat_interleave(HEADS // SHARED, 0) for x in (k, v))
        scores = q @ k.transpose(1, 2) * WIDTH**-0.5
        if cap := options.get("softcap"):
            scores = torch.tanh(scores / cap) * cap
        distance = torch.arange(length)[:, None] - torch.arange(length)
        seen = distance >= 0 if options.get("is_causal", True) else distance == distance
        seen &= distance.abs() < options.get("sliding_window", length)
        out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
        torch.testing.assert_close(found[start : start + length], out.transpose(0, 1))
        start += length


def test_the_kernel_for_lengths_that_vary_is_told_of_every_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on CUDA alone: here something else computes what it would, from the arguments it is given."""

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, from_q: Tensor, from_k: Tensor, longest_q: int, longest_k: int, *,
        scale: float, num_splits: int, window_size: tuple[int, int], enable_gqa: bool,
    ) -> Tensor:  # fmt: skip
        assert num_splits == 1 and window_size[1] == 0 and from_q.dtype == torch.int32
        assert longest_q == longest_k == max(LENGTHS) and torch.equal(from_q, from_k)
        parts = []
        for start, stop in zip(from_q.tolist(), from_q.tolist()[1:], strict=False):
            cut = (x[start:stop].transpose(0, 1) for x in (q, k, v))
            distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
            seen = (distance >= 0) & (distance <= (window_size[0] if window_size[0] >= 0 else stop))
            parts.append(F.scaled_dot_product_attention(*cut, attn_mask=seen, scale=scale, enable_gqa=enable_gqa))
        return torch.cat([part.transpose(0, 1) for part in parts])

    tensors, row = draw(LENGTHS, torch.float64), [Document(length, None, "a") for length in LENGTHS]
    for window in (None, 7):
        wanted = run(tensors, row, scaling=0.3, sliding_window=window)
        with monkeypatch.context() as patched:
            patched.setattr(attention, "varlen_attn", kernel)
            patched.setattr(attention, "_has_kernel", lambda *tensors: True)
            torch.testing.assert_close(run(tensors, row, scaling=0.3, sliding_window=window), wanted)


def unfolded(tensors: list[Tensor], prompt: int, answers: Sequence[int]) -> list[list[Tensor]]:
    """The prompt with each of its answers, as rows of their own."""
    out, start = [], prompt
    for length in answers:
        places = torch.tensor([*range(prompt), *range(start, start + length)])
        out.append([x.index_select(2, places) for x in tensors])
        start += length
    return out


def answering(prompt: int, answers: Sequence[int], start: int = 0, owner: str = "a") -> list[Document]:
    first, *others = answers
    return [
        Document(prompt + first, None, owner),
        *(Document(length, None, owner, (start, prompt)) for length in others),
    ]


@pytest.mark.parametrize("queries, scores", [(64, 1 << 19), (16, 1), (1 << 20, 5000)])
@pytest.mark.parametrize("options", [{}, {"sliding_window": 9}, {"softcap": 3.0}])
@pytest.mark.parametrize("prompt, answers", [(1, [1, 1]), (5, [3, 40]), (70, [33, 2, 90]), (130, [64, 64])])
def test_answers_that_share_a_prompt(
    prompt: int, answers: list[int], options: dict[str, Any], queries: int, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if each stood behind a prompt of its own: values, and gradients that are the sums of theirs."""
    monkeypatch.setattr(causal_attention, "_QUERIES", queries)
    monkeypatch.setattr(causal_attention, "_SCORES", scores)
    tensors = draw([prompt + sum(answers)], torch.float64)
    found = run(tensors, answering(prompt, answers), scaling=0.3, **options)
    rows = [
        run(row, [Document(prompt + length)], scaling=0.3, **options)
        for row, length in zip(unfolded(tensors, prompt, answers), answers, strict=True)
    ]
    wanted = torch.cat([rows[0], *(row[prompt:] for row in rows[1:])])
    torch.testing.assert_close(found, wanted)
    incoming = torch.randn(found.shape, dtype=found.dtype)
    for mine, other in zip(
        torch.autograd.grad(found, tensors, incoming), torch.autograd.grad(wanted, tensors, incoming), strict=True
    ):
        torch.testing.assert_close(mine, other)
