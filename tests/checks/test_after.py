"""Checks after training: what was saved, what merging gives, and what the base could do before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lora import LoRA, workflow
from lora.checks import after
from lora.checks.after import check_trained
from lora.checks.finding import Finding
from lora.config import DataConfig, RunConfig
from lora.errors import DataError
from lora.evaluation.forgetting import measure_forgetting
from lora.evaluation.probe import probe_texts
from lora.training.prepare import Prepared, prepare, read_rows
from small_base import labelled, save_base, stories, tokenizer, write_jsonl
from tiny_models import tiny


@pytest.fixture
def trained(tmp_path: Path) -> tuple[LoRA, Prepared, Path]:
    """An adapter that changes outputs, and its folder."""
    model = LoRA(tiny("llama", vocab_size=25, max_position_embeddings=300), rank=4)
    with torch.no_grad():
        for key, parameter in model.adapter_parameters("default").items():
            if key.endswith(".B"):
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    prepared = prepare(model, read_rows(stories(12), None, DataConfig(held_out=0.25), 0), tokenizer("llama"))
    return model, prepared, model.save_adapter("default", tmp_path / "adapter")


def found(model: LoRA, prepared: Prepared, folder: Path, texts: list[str] | None = None) -> dict[str, Finding]:
    forgetting = measure_forgetting(model, ["default"], prepared.tokenizer, prepared.max_length, texts)
    return {one.check: one for one in check_trained(model, "default", folder, prepared, forgetting)}


def test_all_is_well(trained: tuple[LoRA, Prepared, Path]) -> None:
    model, prepared, folder = trained
    before = {key: value.clone() for key, value in model.state_dict().items()}
    findings = found(model, prepared, folder)
    assert findings["reloaded equals trained"].status == findings["merged equals unmerged"].status == "passed"
    assert "before," in findings["general ability"].said
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert list(model.adapters) == ["default"]


def test_a_folder_that_is_not_what_was_trained(trained: tuple[LoRA, Prepared, Path]) -> None:
    model, prepared, folder = trained
    with torch.no_grad():
        model.adapter_parameters("default")["model.layers.0.self_attn.q_proj.B"].add_(0.5)
    finding = found(model, prepared, folder)["reloaded equals trained"]
    assert finding.status == "failed" and "not be what you trained" in finding.why
    (folder / "adapter_model.safetensors").unlink()
    finding = found(model, prepared, folder)["reloaded equals trained"]
    assert finding.status == "failed" and "cannot be read" in finding.said


def test_merging_that_loses_the_update(trained: tuple[LoRA, Prepared, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, prepared, folder = trained
    monkeypatch.setitem(vars(model), "merge", lambda name: tiny("llama", vocab_size=25, max_position_embeddings=300))
    finding = found(model, prepared, folder)["merged equals unmerged"]
    assert finding.status == "note" and "rounded" in finding.why
    monkeypatch.undo()
    monkeypatch.setattr(after, "free_memory", lambda model: 100)
    assert found(model, prepared, folder)["merged equals unmerged"].status == "skipped"


def test_the_probe_sees_what_is_unlearned(trained: tuple[LoRA, Prepared, Path]) -> None:
    model, prepared, folder = trained
    measured: Any = measure_forgetting(model, ["default"], prepared.tokenizer, 64, ["red sun"])
    measured.adapters["base"]["loss"] = 2.0
    for after_it, status in ((2.09, "passed"), (2.11, "note")):
        measured.adapters["default"]["loss"] = after_it
        finding = check_trained(model, "default", folder, prepared, measured)[-1]
        assert finding.check == "general ability" and finding.status == status
        assert f"loss per token on general text 2.000 before, {after_it:.3f} after" in finding.said
        assert "KL to the base" in finding.said


def test_why_the_probe_was_not_measured_is_told(trained: tuple[LoRA, Prepared, Path]) -> None:
    model, prepared, folder = trained
    finding = check_trained(model, "default", folder, prepared, "the memory was full")[-1]
    assert (finding.check, finding.status, finding.said) == ("general ability", "skipped", "the memory was full")


def test_classifiers_have_no_probe(tmp_path: Path) -> None:
    model = LoRA(tiny("bert", vocab_size=25), rank=4)
    prepared = prepare(model, read_rows(labelled(24), None, DataConfig(), 0), tokenizer("bert"))
    findings = found(model, prepared, model.save_adapter("default", tmp_path / "a"))
    assert findings["general ability"].status == "skipped" and findings["reloaded equals trained"].status == "passed"


def test_in_the_report_of_a_run(tmp_path: Path) -> None:
    save_base(tmp_path / "base", "llama")
    write_jsonl(tmp_path / "data.jsonl", stories(24))
    (tmp_path / "probe.txt").write_text("red sun here\n\nblue moon there\n", encoding="utf-8")
    config = {
        "model": str(tmp_path / "base"), "data": str(tmp_path / "data.jsonl"), "output": str(tmp_path / "run"),
        "training": {"max_steps": 2, "tensorboard": False}, "probe": str(tmp_path / "probe.txt"),
    }  # fmt: skip
    workflow.train(RunConfig.make(config), latency=False, progress=False)
    told = json.loads((tmp_path / "run/report.json").read_text())["checks_after_training"]
    assert set(told) == {"reloaded equals trained", "merged equals unmerged", "general ability"}
    assert (
        told["reloaded equals trained"].startswith("passed")
        and "## Checks after training" in (tmp_path / "run/report.md").read_text()
    )
    assert probe_texts(str(tmp_path / "probe.txt")) == ["red sun here", "blue moon there"]
    write_jsonl(tmp_path / "bad.jsonl", [{"number": 1}])
    with pytest.raises(DataError, match="no text for the probe"):
        workflow.train(RunConfig.make({**config, "output": str(tmp_path / "b"), "probe": str(tmp_path / "bad.jsonl")}))
    assert not (tmp_path / "b").exists()
