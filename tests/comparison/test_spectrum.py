"""Singular values without forming ΔW are those of ΔW; ranks and shares follow from them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lora import LoRA
from lora.comparison.spectrum import Spectrum, of_matrix, of_product, spectra, summed_up
from tiny_models import tiny


@pytest.mark.parametrize("shape", [(7, 5, 3), (5, 9, 5), (40, 33, 1), (6, 6, 6), (3, 4, 8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_of_a_product_as_of_the_matrix(shape: tuple[int, int, int], seed: int) -> None:
    out, into, rank = shape
    torch.manual_seed(seed)
    a, b = torch.randn(rank, into), torch.randn(out, rank)
    if seed:
        a[-1] = a[0]  # rank deficient
    dense = torch.linalg.svdvals(0.7 * b.double() @ a.double())
    found = of_product(a, b, 0.7)
    count = min(len(found), len(dense))
    assert torch.allclose(found[:count], dense[:count], atol=1e-10)
    assert float(found[count:].abs().sum()) < 1e-10 and float(dense[count:].abs().sum()) < 1e-10


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama-tied"])
@pytest.mark.parametrize("variant", ["plain", "dora"])
def test_of_a_model_as_of_its_merged_weights(kind: str, variant: str) -> None:
    torch.manual_seed(0)
    base = tiny(kind)
    model = LoRA(base, name=None)
    model.add_adapter("a", rank=3, variant=variant, targets=["all-linear"])
    with torch.no_grad():
        for parameter in model.adapter_parameters("a").values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    merged: Any = model.merge("a")
    found = spectra(model, "a")
    assert found.keys() == model.slots("a").keys()
    plain = dict(merged.named_modules())
    for path, its in found.items():
        layer = next(m for m in model.base.modules() if getattr(m, "path", None) == path)
        dense = torch.linalg.svdvals((plain[path].weight - layer.base_layer.weight).detach().double())
        count = min(len(dense), len(its.values))
        assert torch.allclose(torch.tensor(its.values[:count]).double(), dense[:count], atol=1e-5), path
        assert its.energy == pytest.approx(float(dense.square().sum()), rel=1e-4)
        assert its.rank == 3 if variant == "plain" else its.rank == min(layer.base_layer.weight.shape)


def test_of_full_fine_tuning_the_head_left_out() -> None:
    torch.manual_seed(0)
    model = LoRA(tiny("bert"), name=None)
    model.add_adapter("full", targets="none", modules_to_save=["all"])
    own = model.owned("full")
    path = next(path for path, module in own.items() if path.endswith("query"))
    weight: Any = own[path].weight
    with torch.no_grad():
        weight += torch.outer(torch.ones(weight.shape[0]), torch.ones(weight.shape[1]))
    found = spectra(model, "full")
    assert not any("classifier" in path for path in found)
    changed = {path: its for path, its in found.items() if its.energy > 1e-8}
    assert list(changed) == [path]
    assert changed[path].effective_rank == pytest.approx(1, abs=0.01) and changed[path].rank_for(0.99) == 1
    told = summed_up(found, [1, 4])
    assert told is not None and told["unchanged"] == len(found) - 1 and told["kept_by_rank"][1] == pytest.approx(1)


def test_a_large_matrix_by_its_largest_values(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(60, 8) @ torch.randn(8, 50)
    exact = of_matrix(matrix)
    monkeypatch.setattr("lora.comparison.spectrum.EXACT", 10)
    monkeypatch.setattr("lora.comparison.spectrum.MOST", 12)
    found = of_matrix(matrix)
    assert len(found.values) == 12 and found.energy == pytest.approx(exact.energy)
    assert found.values[:8] == pytest.approx(exact.values[:8], rel=1e-6)
    noisy = of_matrix(torch.randn(60, 50))
    assert noisy.rank_for(0.99) == 13, "more than were computed"


def test_ranks_and_shares() -> None:
    even, one, none = Spectrum((1.0,) * 4, 4.0, 4), Spectrum((2.0, 0.0, 0.0, 0.0), 4.0, 4), Spectrum((0.0,) * 4, 0.0, 4)
    assert even.effective_rank == pytest.approx(4) and one.effective_rank == pytest.approx(1)
    assert (even.rank_for(0.9), one.rank_for(0.9), even.rank_for(0.5)) == (4, 1, 2)
    assert even.share_of(1) == 0.25 and one.share_of(1) == 1 and math.isnan(none.share_of(1))
    assert none.effective_rank == 0 and summed_up({"x": none}) is None and summed_up({}) is None
    told = summed_up({"x": even, "y": one, "z": none}, [1])
    assert told == {
        "layers": 3, "unchanged": 1, "rank": 4, "effective_rank": pytest.approx(2.5),
        "used_most": [["x", pytest.approx(4)], ["y", pytest.approx(1)]],
        "used_least": [["y", pytest.approx(1)], ["x", pytest.approx(4)]],
        "rank_90": {"median": 2.5, "largest": 4}, "rank_99": {"median": 2.5, "largest": 4},
        "kept_by_rank": {1: 0.625},
    }  # fmt: skip
