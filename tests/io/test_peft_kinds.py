"""What PEFT can do and this cannot is refused with the reason and the way out; real folders of PEFT say so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from lora import LoRA
from lora.errors import AdapterFileError
from lora.io.peft_kinds import CHANGES_BASE, NEUTRAL_STARTS, OTHER, UNDERSTOOD, check_kind
from tiny_models import batch, logits, randomise, tiny

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIG = "adapter_config.json"
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
MERGE = "Merge it with PEFT (merge_and_unload) and take the result as base"


def made_by_peft(folder: Path, base: nn.Module, **settings: Any) -> nn.Module:
    settings = {"r": 2, "target_modules": ["q_proj"], **settings}
    model = peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()
    randomise(parameter for parameter in model.parameters() if parameter.requires_grad)
    model.save_pretrained(folder)
    return model


def refusal(folder: Path, base: nn.Module) -> str:
    model = LoRA(base, name=None)
    structure = repr(model)
    with pytest.raises(AdapterFileError) as caught:
        model.load_adapter(folder, "a")
    assert repr(model) == structure
    return str(caught.value)


@pytest.mark.parametrize("settings, reason", [
    ({"lora_bias": True}, "lora_bias=True, which adds a bias to B."),
    (
        {"target_parameters": ["q_proj.weight"], "target_modules": []},
        "target_parameters=['q_proj.weight'], which adapts bare parameters (experts' weights) instead of layers.",
    ),
    ({"layer_replication": [[0, 2]]}, "layer_replication=[[0, 2]], which stacks the base's layers anew."),
    ({"bias": "lora_only"}, "bias='lora_only', which trains the base's own biases, which all adapters share here."),
])  # fmt: skip
def test_folders_of_peft_that_need_more(settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    made_by_peft(tmp_path, tiny("llama", attention_bias=True), **settings)
    said = refusal(tmp_path, tiny("llama", attention_bias=True))
    assert said == f"{tmp_path / CONFIG}: cannot be loaded:\n  {reason} {MERGE}"


def test_merged_by_peft_as_the_message_says_they_can_be_used(tmp_path: Path) -> None:
    theirs = made_by_peft(tmp_path, tiny("llama", attention_bias=True), lora_bias=True)
    expected = logits(theirs, batch("llama"))
    model = LoRA(theirs.merge_and_unload(), rank=2).eval()
    torch.testing.assert_close(logits(model, batch("llama")), expected, atol=1e-5, rtol=0)


class WithAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x)[0])


def test_torch_attention(tmp_path: Path) -> None:
    made_by_peft(tmp_path, WithAttention(), target_modules=["attention", "out"])
    said = refusal(tmp_path, WithAttention())
    assert (
        "no place for tensor attention.lora_A.weight (2, 8): attention is torch's MultiheadAttention, which reads its "
        "weights without calling a layer, so that no adapter can sit on it here"
    ) in said
    assert "no place for tensor attention.base_layer.out_proj.lora_B.weight" in said
    assert "If it was made for another base" in said


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_a_start_that_changes_the_base_is_refused_until_converted(start: str, tmp_path: Path) -> None:
    model = peft.get_peft_model(
        tiny("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)
    ).eval()
    initial = tmp_path / "initial"
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(initial)
    model.peft_config["default"].init_lora_weights = start
    for parameter in model.parameters():
        parameter.data += 0.1 * parameter.requires_grad
    model.save_pretrained(tmp_path / "raw")
    assert f"init_lora_weights={start!r}, which changes the base weights" in refusal(tmp_path / "raw", tiny("llama"))
    expected = logits(model, batch("llama"))
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(initial))
    ours = LoRA(tiny("llama"), name=None)
    ours.load_adapter(tmp_path / "plain")
    torch.testing.assert_close(logits(ours.eval(), batch("llama")), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("start", [start for start in NEUTRAL_STARTS if start != "eva"])
def test_a_start_that_leaves_the_base_alone_is_none_of_our_business(start: str, tmp_path: Path) -> None:
    theirs = made_by_peft(tmp_path, tiny("llama"), init_lora_weights=start)
    ours = LoRA(tiny("llama"), name=None)
    ours.load_adapter(tmp_path)
    torch.testing.assert_close(logits(ours.eval(), batch("llama")), logits(theirs, batch("llama")), atol=1e-5, rtol=0)


@pytest.mark.parametrize("start", CHANGES_BASE)
def test_every_such_start_is_refused(start: str) -> None:
    with pytest.raises(AdapterFileError, match="changes the base weights.*path_initial_model_for_weight_conversion"):
        check_kind({**PLAIN, "init_lora_weights": start}, Path("there"))


@pytest.mark.parametrize("key", OTHER)
def test_every_other_kind_is_explained(key: str) -> None:
    with pytest.raises(AdapterFileError) as caught:
        check_kind({**PLAIN, key: {"a": 1}}, Path("there"))
    said = str(caught.value)
    assert OTHER[key] in said and f"{key}={{'a': 1}}" in said
    merges = key not in ("alora_invocation_tokens", "arrow_config")
    assert said.endswith(MERGE if merges else "Use it with PEFT")
    check_kind({**PLAIN, key: None}, Path("there"))


def test_all_reasons_are_said_at_once() -> None:
    config = {**PLAIN, "r": 0, "init_lora_weights": "pissa", "lora_bias": True, "use_novelty": list(range(99))}
    with pytest.raises(AdapterFileError) as caught:
        check_kind(config, Path("there"))
    lines = str(caught.value).splitlines()
    assert lines[0] == "there: cannot be loaded:" and len(lines) == 5
    assert any(re.fullmatch(r"  use_novelty is not known here, and leaving it out .*", line) for line in lines)


def test_keys_are_those_of_peft() -> None:
    """Misspelt, a key would be refused as unknown, or worse: let through."""
    fields = set(peft.LoraConfig().to_dict()) | {"runtime_config"}
    # Private to PEFT's own bookkeeping since 0.18, and written by no newer version.
    assert (UNDERSTOOD | set(OTHER)) - fields <= {"modules_to_tie", "target_modules_to_tie"}
