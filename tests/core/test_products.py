"""Rows of a product do not see each other: neither in their last bits nor in what is not finite."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from lora.arithmetic import SETTING, STRICT, _by_intel
from lora.core.functions import adapted_linear
from lora.core.products import contained, lost
from lora.core.segments import Segment

intel = pytest.mark.skipif(not _by_intel(), reason="only MKL on Intel's processors has a strict mode")


@intel
@pytest.mark.parametrize("inner, outer", [(384, 3), (768, 768), (384, 1536), (64, 32)])
def test_a_row_of_fp32_has_the_same_bits_in_any_number(inner: int, outer: int) -> None:
    """At widths of real models, where kernels of few rows and of many differ in MKL's own choice."""
    assert os.environ[SETTING] == STRICT, "importing lora asks for it"
    torch.manual_seed(0)
    weight, rows = torch.randn(outer, inner), torch.randn(300, inner)
    whole = adapted_linear(rows, weight, None, [])
    for count in (1, 2, 3, 7, 8, 15, 16, 33, 100):
        assert torch.equal(adapted_linear(rows[:count], weight, None, []), whole[:count]), count


@intel
def test_what_the_user_set_stays() -> None:
    code = f"import os, lora; print(os.environ['{SETTING}'])"
    for given, found in (({SETTING: "COMPATIBLE"}, "COMPATIBLE"), ({}, STRICT)):
        env = {key: value for key, value in os.environ.items() if key != SETTING} | given
        told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == found


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("inner", [32, 33, 50, 257, 784])
def test_what_is_not_finite_stays_in_its_row(inner: int, poison: float) -> None:
    """Forward and backward of a frozen product in bf16, whose outputs are as many columns as its inputs."""
    torch.manual_seed(0)
    weight = torch.randn(inner, inner).bfloat16()
    for count in (2, 17, 33, 64):
        for bad in (1, count // 2, count - 1):
            rows, gradient = torch.randn(2, count, inner).bfloat16()
            rows[bad], gradient[bad] = poison, poison
            rows.requires_grad_()
            A, B = torch.randn(2, inner), torch.randn(inner, 2)
            out = adapted_linear(rows, weight, None, [Segment(bad, bad + 1, A, B)])
            (back,) = torch.autograd.grad(out, rows, gradient)
            others = torch.arange(count) != bad
            for found in (out, back):
                assert found[others].isfinite().all() and not found[bad].isfinite().any(), (count, bad)


def test_finite_rows_are_left_as_they_are() -> None:
    rows = torch.full((3, 33), 3e38).bfloat16()
    assert contained(rows) == (rows, None)  # a sum over them would overflow
    rows[1, 7] = float("nan")
    given, bad = contained(rows)
    assert bad is not None and bad.tolist() == [False, True, False] and given.isfinite().all()
    assert torch.equal(lost(given.clone(), bad)[::2], rows[::2])
    assert contained(rows.float())[1] is None
