"""What is measured of a trained adapter beside its held-out rows: the probe, of one run and of a set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora import workflow
from lora.config import RunConfig
from lora.errors import DataError
from small_base import save_base, stories, write_jsonl


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_base(tmp_path_factory.mktemp("base"), "llama"))


def settings(base: str, folder: Path, **more: Any) -> dict[str, Any]:
    """Of a run of one step, whose probe is two texts."""
    write_jsonl(folder / "rows.jsonl", stories(12))
    (folder / "probe.txt").write_text("red sun here\n\nblue moon there\n", encoding="utf-8")
    return {
        "model": base, "output": str(folder / "run"), "check": False, "probe": str(folder / "probe.txt"),
        "data": {"train": str(folder / "rows.jsonl"), "held_out": 0},
        "training": {"max_steps": 1, "tensorboard": False, "generate_rows": 0, "dtype": "float32"}, **more,
    }  # fmt: skip


def of_a_set(base: str, folder: Path, **more: Any) -> dict[str, Any]:
    adapters = {
        "a": {"adapter": {"rank": 2}},
        "b": {"adapter": {"rank": 4}, "data": {"replay": str(folder / "probe.txt")}},
    }
    return settings(base, folder, adapters=adapters, **more)


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_a_set_has_a_probe(base: str, tmp_path: Path) -> None:
    said = list[str]()
    workflow.train_many(RunConfig.make(of_a_set(base, tmp_path)), say=said.append, progress=False)
    for name in ("a", "b"):
        forgetting = report(tmp_path / "run" / name)["forgetting"]
        assert forgetting["texts"] == 2 and list(forgetting["adapters"]) == ["base", name]
    learned = [line for line in said if "The probe's texts are those of data.replay" in line]
    assert len(learned) == 1 and learned[0].startswith("b: ")


def test_a_probe_of_no_text_is_refused_before_training(base: str, tmp_path: Path) -> None:
    config = of_a_set(base, tmp_path, probe=str(write_jsonl(tmp_path / "bad.jsonl", [{"number": 1}])))
    with pytest.raises(DataError, match="no text for the probe"):
        workflow.train_many(RunConfig.make(config), progress=False)
    assert not (tmp_path / "run" / "a").exists()
