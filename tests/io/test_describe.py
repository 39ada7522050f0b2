"""What ``lora inspect`` says of a base model and of an adapter folder is what `LoRA` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from lora import LoRA
from lora.cli import main
from lora.config import AdapterConfig
from lora.errors import AdapterFileError, ConfigError, ModelError
from lora.io.describe import describe_adapter, describe_base
from lora.model.targets import PRESETS
from tiny_models import LAYERS, MODELS, tiny


def facts(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("arch", MODELS)
def test_each_preset_is_what_it_would_adapt(arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny(arch).save_pretrained(tmp_path / "base")
    shown = json.loads(facts(capsys, tmp_path / "base", "--rank", "2", "--json"))
    base = tiny(arch)
    total = sum(p.numel() for p in base.parameters())
    assert shown["class"] == type(base).__name__ and shown["parameters"] == total and shown["layers"] == LAYERS
    assert list(shown["presets"]) == list(PRESETS)
    for preset, line in shown["presets"].items():
        model = LoRA(base, name=None)
        try:
            report = model.add_adapter("a", rank=2, targets=preset)
        except ConfigError as error:
            assert str(error).startswith(line) and "matches no module" in line
        else:
            count = sum(p.numel() for slot in model.slots("a").values() for p in slot.parameters())
            modules = f"{len(report.adapted)} module" + ("" if len(report.adapted) == 1 else "s")
            start = f"{modules}, {count:,} parameters at rank 2 ({100 * count / total:.2f} %): "
            assert line.startswith(start) and report.adapted[0].path.split(".")[-1] in line
        model.unload()


def test_the_presets_of_a_llama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: two layers of 32 wide, 16 for keys and values, 48 in the MLP, 80 tokens."""
    tiny("llama").save_pretrained(tmp_path)
    presets = json.loads(facts(capsys, tmp_path, "--rank", "2", "--json"))["presets"]
    attention, mlp = 2 * 2 * (64 + 48 + 48 + 64), 2 * 2 * 3 * 80
    assert presets["attention"].startswith(f"8 modules, {attention} parameters at rank 2 (4.34 %): ")
    assert presets["attention"].endswith(
        ": model.layers.*.self_attn.q_proj ×2, model.layers.*.self_attn.k_proj ×2, "
        "model.layers.*.self_attn.v_proj ×2, model.layers.*.self_attn.o_proj ×2"
    )
    assert presets["mlp"].startswith(f"6 modules, {mlp} parameters at rank 2")
    assert presets["all-linear"].startswith(f"14 modules, {attention + mlp:,} parameters at rank 2")
    assert presets["embedding"].startswith(f"1 module, {2 * (80 + 32)} parameters at rank 2")


def test_the_rank_is_the_default_unless_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny("bert").save_pretrained(tmp_path)
    assert f"parameters at rank {AdapterConfig().rank} (" in facts(capsys, tmp_path)
    assert "  attention: 8 modules, 2,560 parameters at rank 5 (12.72 %)" in facts(capsys, tmp_path, "--rank", "5")
    too_high = describe_base(str(tmp_path), 33)["presets"]["attention"]
    assert too_high.startswith("rank: above the size of") and "\n" not in too_high


def test_weights_are_not_needed(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert describe_base(str(tmp_path))["parameters"] == sum(p.numel() for p in tiny("llama").parameters())


@pytest.mark.parametrize("arch, shown", [("bert", "BertModel"), ("t5", "T5Model"), ("gpt2", "GPT2Model")])
def test_a_body_is_shown_as_a_body(arch: str, shown: str, tmp_path: Path) -> None:
    model = tiny(arch)
    model.config.architectures = None
    model.config.save_pretrained(tmp_path)
    assert describe_base(str(tmp_path))["class"] == shown


def test_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "none-of-that-name"}')
    with pytest.raises(ModelError, match="its config.json cannot be read"):
        describe_base(str(tmp_path))
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_an_adapter_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = LoRA(tiny("bert"), rank=2, alpha=6, targets="attention", variant="dora", rslora=True)
    model.notes["default"] = {"task": {"name": "classification", "labels": ["a", "b"]}}
    folder = model.save_adapter("default", tmp_path / "run" / "adapter")
    shown = json.loads(facts(capsys, tmp_path / "run", "--json"))  # a run's folder: its result
    assert shown["adapter"] == str(folder)
    assert (shown["variant"], shown["rank"], shown["alpha"]) == ("dora", 2, 6)
    assert shown["scaling"] == "alpha / sqrt(rank)" and shown["task"]["labels"] == ["a", "b"]
    parameters = model.adapter_parameters("default").values()
    assert shown["parameters"] == sum(p.numel() for p in parameters) and shown["bytes"] == 4 * shown["parameters"]
    assert shown["adapted modules"] == [
        f"bert.encoder.layer.*.attention.{part} ×2" for part in ("output.dense", "self.key", "self.query", "self.value")
    ]
    assert shown["stored in full"] == ["classifier.bias", "classifier.weight"]
    assert len(shown["fingerprint of the base"]) == 16
    assert "task:\n  name: classification\n  labels:\n    a\n    b\n" in facts(capsys, folder)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_an_adapter_of_peft_says_less(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["embed_tokens"])
    peft.get_peft_model(tiny("llama").to(torch.bfloat16), config).save_pretrained(tmp_path)
    shown = describe_adapter(tmp_path)
    assert shown["variant"] == "plain" and shown["rank"] == 3 and shown["scaling"] == "alpha / rank"
    assert shown["fingerprint of the base"] == "not recorded" and "task" not in shown
    assert shown["adapted modules"] == ["model.embed_tokens"]
    assert shown["stored in full"] == ["model.embed_tokens.base_layer.weight"]
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterFileError, match=r"no adapter_model.safetensors here"):
        describe_adapter(tmp_path)
