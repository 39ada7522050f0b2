"""Loading an adapter on its base again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lora import LoRA
from lora.errors import AdapterFileError
from lora.model.base import load_base
from lora.tasks.classification import ClassificationTask
from lora.training import device
from lora.workflow import load_tuned


@pytest.fixture
def adapter(bert: Path, tmp_path: Path) -> Path:
    task = ClassificationTask(["cat", "dog"])
    model = LoRA(load_base(str(bert), task.auto_class, torch.float32, task.model_options()), rank=2)
    model.notes["default"] = {"task": task.state()}
    return model.save_adapter("default", tmp_path / "a")


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("trained", ["float32", "bfloat16", None])
def test_the_base_has_the_type_of_training_where_that_is_float32(
    adapter: Path, fast: bool, trained: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the numbers of the report would not come again; bfloat16 is for machines that are good at it."""
    monkeypatch.setattr(device, "bf16_is_fast", lambda: fast)
    if trained:
        sidecar = json.loads((adapter / "lora.json").read_text())
        (adapter / "lora.json").write_text(json.dumps({**sidecar, "training": {"dtype": trained}}))
    model, name, _, task = load_tuned(adapter)
    expected = torch.bfloat16 if fast and trained != "float32" else torch.float32
    assert next(model.base.bert.embeddings.parameters()).dtype is expected
    assert (name, task.labels) == ("tuned", ["cat", "dog"])
    asked, *_ = load_tuned(adapter, dtype="bfloat16")
    assert next(asked.base.bert.embeddings.parameters()).dtype is torch.bfloat16


@pytest.mark.parametrize("task", [{"name": "nope"}, {"task": "nope"}, {"task": "classification"}, [], "x", 7])
def test_a_damaged_task_is_named(adapter: Path, task: Any) -> None:
    sidecar = json.loads((adapter / "lora.json").read_text())
    (adapter / "lora.json").write_text(json.dumps({**sidecar, "task": task}))
    with pytest.raises(AdapterFileError, match=r"lora\.json: the task in it cannot be read"):
        load_tuned(adapter)


def test_an_adapter_without_a_task(adapter: Path, bert: Path) -> None:
    (adapter / "lora.json").unlink()
    for folder in (adapter, bert):
        with pytest.raises(AdapterFileError, match="does not say its task|holds no adapter"):
            load_tuned(folder)
