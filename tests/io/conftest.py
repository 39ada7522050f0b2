"""What the tests of adapter files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora import LoRA
from tiny_models import randomise, tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good adapter of the tiny BERT."""
    model = LoRA(tiny("bert"), rank=2, targets=["query", "value"])
    randomise(model.adapter_parameters("default").values())
    return model.save_adapter("default", tmp_path / "good")
