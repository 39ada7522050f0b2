"""Loading a base model: what is said where it cannot be."""

from __future__ import annotations

import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch

from lora import hub
from lora.errors import ModelError
from lora.model.base import load_base, load_tokenizer
from tiny_models import tiny


def refusal(name: str, auto_class: str = "AutoModelForCausalLM") -> str:
    with pytest.raises(ModelError) as caught:
        load_base(name, auto_class, torch.float32)
    return str(caught.value)


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    message = refusal("someone/nothing")
    assert "no such folder here, the hub cannot be reached" in message and "check the name" in message
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        load_tokenizer("someone/nothing")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "is_reachable", lambda: pytest.fail("the hub was asked"))
    tiny("bert").save_pretrained(tmp_path / "base")
    load_base(str(tmp_path / "base"), "AutoModelForSequenceClassification", torch.float32)


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    tiny("t5").save_pretrained(tmp_path / "base")
    message = refusal(str(tmp_path / "base"))
    assert message.endswith(
        "base: cannot be loaded as AutoModelForCausalLM (transformers has none of that kind for a model with a "
        "T5Config; choose a base made for this task)"
    )
    (tmp_path / "base" / "config.json").write_text('{"model_type": "not-one"}')
    assert "base: cannot be loaded as AutoModelForCausalLM (" in refusal(str(tmp_path / "base"))
    assert "no config.json in this folder" in refusal(str(tmp_path))
    assert "there is no such folder; give" in refusal(str(tmp_path / "none"))
