"""Element-wise functions of one adapter's rows at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lora.core.by_adapter import ByAdapter
from lora.core.routing import Router, Routing


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


@pytest.mark.parametrize("function", [F.silu, torch.sigmoid, torch.Tensor.sigmoid, _gelu])
@pytest.mark.parametrize("names", [["a"] * 9 + ["b"] * 9 + ["base"] * 9, ["a"] * 27])
def test_each_sees_its_own_rows(function: Any, names: list[str]) -> None:
    router = Router({"a": None, "b": None})
    x = torch.randn(27, 7, 45, generator=torch.Generator().manual_seed(0))
    parts = 3 if "b" in names else 1
    wanted = torch.cat([function(rows) for rows in x.chunk(parts)])
    with router.activate(Routing(names)), ByAdapter(router):
        assert torch.equal(function(x), wanted)
        assert torch.equal(function(x.flatten(0, 1)), wanted.flatten(0, 1))


def test_what_is_no_batch_is_left_whole() -> None:
    """A parameter, or a table whose first axis is no multiple of the rows."""
    router = Router({"a": None, "b": None})
    for shape in ((46,), (5, 33)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        wanted = F.silu(x)
        with router.activate(Routing(["a", "b"])), ByAdapter(router):
            assert torch.equal(F.silu(x), wanted)
