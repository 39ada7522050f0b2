"""`fit(..., compile=True)`: of the run, restored afterwards, refused where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compiler import needs_compiler
from lora import LoRA, fit
from lora.core import compiled
from lora.errors import ConfigError
from lora.model.fused import Fused
from lora.model.kernels import choose
from small_base import stories
from tiny_models import tiny


def model_of(folder: Path) -> LoRA:
    torch.manual_seed(0)
    return LoRA(AutoModelForCausalLM.from_pretrained(folder), rank=2)


def forwards(model: LoRA) -> list[Any]:
    return [vars(module).get("forward") for module in model.base.modules()]


@needs_compiler
def test_it_is_used_and_taken_off_again(llama: Path, monkeypatch: Any) -> None:
    calls = []
    rotary = compiled.rotary
    monkeypatch.setattr(compiled, "rotary", lambda *args: (calls.append(1), rotary(*args))[1])
    model, settings = model_of(llama), {"max_steps": 2, "batch_size": 8, "eval_every": None, "progress": False}
    before = forwards(model)
    one = fit(model, stories(24, 0), False, compile=True, **settings)
    assert len(calls) == 2 * 3 and forwards(model) == before  # layers, steps and the measurement of memory
    other = fit(model_of(llama), stories(24, 0), False, **settings)
    assert len(calls) == 6, "the other run is not compiled"
    losses = [[line["loss"] for line in result.history if "loss" in line] for result in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@needs_compiler
def test_the_base_is_restored_where_training_fails(llama: Path) -> None:
    def failing(module: Any, *args: Any) -> None:
        if module.training:  # not where a row is tried before
            raise KeyError("in the middle")

    model = model_of(llama)
    before = forwards(model)
    known = Fused(model.base, choose(torch.device("cpu"), compile=True))
    assert {type(module).__name__ for module, _ in known._forwards} == {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention"}
    model.base.model.layers[1].self_attn.register_forward_hook(failing)
    with pytest.raises(KeyError):
        fit(model, stories(24, 0), False, compile=True, max_steps=1, packing=False, progress=False)
    assert forwards(model) == before


@needs_compiler
def test_a_run_goes_on_as_it_began(llama: Path, tmp_path: Path) -> None:
    settings = {"output_dir": tmp_path, "max_steps": 1, "progress": False}
    fit(model_of(llama), stories(24, 0), False, compile=True, **settings)
    with pytest.raises(ConfigError, match="cannot go on:\n  compile\n"):
        fit(model_of(llama), stories(24, 0), False, resume=True, **settings)
    fit(model_of(llama), stories(24, 0), False, resume=True, compile=True, **settings)


def test_without_a_compiler_it_is_refused_before_training(llama: Path, monkeypatch: Any) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no working C++ compiler found in g++\nand more")

    monkeypatch.setattr(compiled, "COMPILED_NORM", compiled.CompiledNorm())  # nothing made yet
    monkeypatch.setattr(torch, "compile", broken)
    model = model_of(llama)
    with pytest.raises(ConfigError, match=r"compile: torch's compiler.*\(RuntimeError: no working.*install these, or"):
        fit(model, {"new": stories(24, 0)}, False, compile=True)
    assert list(model.adapters) == ["default"]


def test_attention_of_other_makes_is_left_alone() -> None:
    for arch, embedded in (("llama", True), ("qwen3", True), ("gpt2", False), ("phi3", False), ("modernbert", False)):
        known = Fused(tiny(arch), choose(torch.device("cpu"))._replace(rotary=lambda q, k, cos, sin: (q, k)))
        assert any("Attention" in type(module).__name__ for module, _ in known._forwards) == embedded, arch
