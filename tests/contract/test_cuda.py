"""The law of isolation and packed rows on CUDA, where kernels may add in another order: within a stated tolerance.

Relative to the largest value of a tensor: fp32 1e-3, bf16 5e-2, after a few steps. Skipped where there is no GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lora import LoRA, fit
from lora.training.job import Job
from small_base import labelled, stories

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
# With Adam's usual epsilon an entry whose gradient is next to nothing moves as far as any other, its rounding with it.
LINEAR = {"epsilon": 1.0, "learning_rate": 1.0, "clip": None}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def base(folder: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    if "llama" in str(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=dtype)


def train(folder: Any, jobs: dict[str, Job], dtype: torch.dtype, **options: Any) -> dict[str, dict[str, torch.Tensor]]:
    model = LoRA(base(folder, dtype), name=None)
    fit(model, jobs, progress=False, **options)
    return {name: {key: p.detach().cpu() for key, p in model.adapter_parameters(name).items()} for name in jobs}


def jobs_for(kind: str) -> dict[str, Job]:
    """Five adapters: from four on, updates go by grouped products."""
    rows = stories if kind == "llama" else lambda count, seed: labelled(count, seed, longest=5)
    return {
        f"adapter{number}": Job(
            rows(16, number), False, {"rank": 2 + number, "alpha": 4 + number, "dropout": 0.1 * (number % 2)},
            {**LINEAR, "batch_size": 8, "max_steps": 3, "seed": number},
        )
        for number in range(5)
    }  # fmt: skip


def agree(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    for key, tensor in one.items():
        assert (tensor - other[key]).abs().max() <= TOLERANCE[dtype] * tensor.abs().max().clamp(min=1e-3), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_together_as_alone(request: Any, kind: str, dtype: torch.dtype) -> None:
    folder, jobs = request.getfixturevalue(kind), jobs_for(kind)
    together = train(folder, jobs, dtype, at_once=5)
    for name, job in jobs.items():
        agree(train(folder, {name: job}, dtype)[name], together[name], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_packed_as_padded(llama: Any, dtype: torch.dtype) -> None:
    job = {"adapter1": Job(stories(16, 0), False, {"rank": 4}, {**LINEAR, "max_steps": 3})}
    agree(
        train(llama, job, dtype, packing=True)["adapter1"], train(llama, job, dtype, packing=False)["adapter1"], dtype
    )


def test_what_is_not_finite_stays_with_its_adapter(llama: Any) -> None:
    jobs = jobs_for("llama")
    jobs["adapter2"].training["learning_rate"] = 1e30
    model = LoRA(base(llama, torch.bfloat16), name=None)
    results = fit(model, jobs, progress=False, at_once=5)
    assert results["adapter2"].error
    for name, result in results.items():
        assert name == "adapter2" or not result.error
        for parameter in model.adapter_parameters(name).values():
            assert parameter.isfinite().all()
