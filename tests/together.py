"""Adapters trained together, and what became of each: for tests that hold it against each one's own run."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from lora import LoRA, fit
from lora.training.job import Job
from small_base import labelled, stories


def base(folder: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    if "llama" in str(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if "t5" in str(folder):
        return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=dtype)


def rows(folder: Any, count: int, seed: int) -> list[dict[str, Any]]:
    writes = any(kind in str(folder) for kind in ("llama", "t5"))
    return stories(count, seed) if writes else labelled(count, seed, longest=5)


def train(folder: Any, jobs: dict[str, Job], dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, Any]:
    """What became of each adapter: every parameter, and every loss and norm on the way."""
    model = LoRA(base(folder, dtype), name=None)
    results = fit(model, jobs, progress=False, **options)
    return {
        name: {
            "parameters": {key: p.detach().clone() for key, p in model.adapter_parameters(name).items()},
            "history": [{k: v for k, v in e.items() if k != "tokens_per_second"} for e in result.history],
            "error": result.error,
        }
        for name, result in results.items()
    }


def check(
    folder: Any, jobs: dict[str, Job], dtype: torch.dtype = torch.float32, compile: bool = False, **options: Any
) -> dict[str, Any]:
    """Train together, then each alone, and hold one against the other bit by bit. ``options``: of the first alone."""
    together = train(folder, jobs, dtype, compile=compile, **options)
    for name, job in jobs.items():
        same_bits(name, together[name], train(folder, {name: job}, dtype, compile=compile)[name])
    return together


def same_bits(name: str, together: dict[str, Any], alone: dict[str, Any]) -> None:
    assert together["error"] == alone["error"], name
    # repr: NaN equals NaN, and 0.1 nothing but itself.
    for one, other in zip(together["history"], alone["history"], strict=True):
        assert repr(one) == repr(other), name
    for key, parameter in alone["parameters"].items():
        assert torch.equal(parameter, together["parameters"][key]), f"{name}: {key}"


def mixed_jobs(folder: Any, variant: str, held: bool = True) -> dict[str, Job]:
    """Four adapters that have nothing in common but the base."""
    return {
        "small": Job(
            rows(folder, 40, 0), rows(folder, 12, 9) if held else False,
            {"rank": 2, "alpha": 4, "targets": "attention", "variant": variant},
            {"learning_rate": 1e-2, "batch_size": 8, "epochs": 2, "seed": 1, "clip": None, "schedule": "cosine"},
        ),
        "dropped": Job(
            rows(folder, 32, 1), False, {"rank": 7, "alpha": 64, "dropout": 0.3, "variant": "plain"},
            {"learning_rate": 3e-3, "batch_size": 16, "epochs": 4, "seed": 2, "weight_decay": 0.1},
        ),
        "accumulated": Job(
            rows(folder, 48, 2), False, {"rank": 4, "targets": "mlp", "dropout": 0.1, "variant": variant},
            {"learning_rate": 5e-3, "batch_size": 8, "accumulation": 3, "epochs": 3, "seed": 3, "clip": 0.1},
        ),
        "patient": Job(
            rows(folder, 24, 3), rows(folder, 12, 8), {"rank": 3, "rslora": True, "variant": variant, "layers": [1]},
            {"learning_rate": 1e-3, "batch_size": 8, "epochs": 6, "seed": 4, "patience": 1, "eval_every": 2,
             "warmup_ratio": 0.5, "label_smoothing": 0.1},
        ),
    }  # fmt: skip
