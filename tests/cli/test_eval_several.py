"""`lora eval` of several adapters on the user's rows: one pass, each as alone, each against the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lora import LoRA
from lora.cli import main
from lora.model.base import load_base
from lora.tasks.classification import ClassificationTask
from small_base import labelled, write_jsonl
from tiny_models import randomise

LABELS = ["bird", "cat", "dog"]


def save(bert: Path, folder: Path, seed: int, labels: list[str] = LABELS) -> str:
    task = ClassificationTask(labels)
    model = LoRA(load_base(str(bert), task.auto_class, torch.float32, task.model_options()), rank=2)
    randomise(model.adapter_parameters("default").values(), seed=seed)
    model.notes["default"] = {"task": task.state(), "training": {"dtype": "float32"}}
    return str(model.save_adapter("default", folder))


@pytest.fixture(scope="module")
def places(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    made = {name: save(bert, folder / name, seed) for seed, name in enumerate(("first", "second"), 1)}
    return made | {"other": save(bert, folder / "other", 3, ["ant", *LABELS[1:]])}


def evaluated(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["eval", *arguments, "--json", "--no-latency", "--resamples", "200"]) == 0
    return dict(json.loads(capfd.readouterr().out))


def test_each_has_the_numbers_it_has_alone(places: dict[str, str], tmp_path: Path, capfd: Any) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", labelled(40)))
    both = evaluated(capfd, places["first"], places["second"], "--data", data)
    assert list(both["metrics"]) == ["base", "first", "second"]
    for name in ("first", "second"):
        alone = evaluated(capfd, "--adapter", f"{name}={places[name]}", "--data", data)
        assert list(alone["metrics"]) == ["base", name]
        assert alone["metrics"][name] == both["metrics"][name] and alone["metrics"]["base"] == both["metrics"]["base"]
    assert both["metrics"]["first"] != both["metrics"]["second"], "they differ, or nothing is shown"
    assert "second" in json.dumps(both["pairs"]) and "first" in json.dumps(both["pairs"])


def test_what_cannot_be_compared_is_refused(places: dict[str, str], tmp_path: Path, capfd: Any) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", labelled(9)))
    for arguments, words in (
        ([places["first"], places["other"]], "first alone has 'bird', other alone has 'ant'"),
        ([places["first"], places["first"]], "would both be called 'first'"),
        ([], "name an adapter's or a run's folder"),
    ):
        assert main(["eval", *arguments, "--data", data]) == 2
        assert words in capfd.readouterr().err
