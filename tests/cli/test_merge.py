"""``lora merge`` on a disk that fills up; every command on base models with code of their own."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import BertForSequenceClassification, dynamic_module_utils

from lora import LoRA
from lora.cli import main
from lora.model.base import load_base
from lora.tasks.classification import ClassificationTask
from small_base import labelled, write_jsonl
from tiny_models import randomise

OWN = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "own-bert"

class OwnClassifier(BertForSequenceClassification):
    config_class = OwnConfig
"""


def adapter_on(base: Path, folder: Path, trust: bool = False) -> Path:
    """An adapter for a classifier on ``base``, with the task that commands look for."""
    task = ClassificationTask(["cat", "dog"])
    model = LoRA(load_base(str(base), task.auto_class, torch.float32, task.model_options(), trust), rank=2)
    randomise(model.adapter_parameters("default").values())
    model.notes["default"] = {"task": task.state()}
    return model.save_adapter("default", folder)


@pytest.fixture(scope="module")
def adapter(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_on(bert, tmp_path_factory.mktemp("adapter") / "a")


FAILURES = {
    "python": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "tokenizers": Exception("No space left on device (os error 28)"),
}


@pytest.mark.parametrize("cause", FAILURES)
def test_a_full_disk(
    cause: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Any, folder: Path, **_: Any) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise FAILURES[cause]

    monkeypatch.setattr(BertForSequenceClassification, "save_pretrained", full)
    before = tmp_path / "before"
    before.mkdir()
    (before / "config.json").write_text("mine")
    for output, more in ((tmp_path / "merged", []), (before, ["--overwrite"])):
        assert main(["merge", str(adapter), "--output", str(output), *more]) == 2
        assert capsys.readouterr().err == (
            f"error: {output}: no space left on the disk; nothing half-written is left, and nothing saved before was "
            "touched. Free some space, or name another place\n"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["before"]
    assert [path.read_text() for path in before.iterdir()] == ["mine"]


def test_no_permission(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(self: Any, folder: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(BertForSequenceClassification, "save_pretrained", denied)
    assert main(["merge", str(adapter), "-o", str(tmp_path / "merged")]) == 2
    assert "merged: cannot be written (Permission denied); nothing half-written is left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# -- code of the base model's own -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small BERT as a model type that transformers does not know, with its code beside it."""
    folder = tmp_path_factory.mktemp("own") / "base"
    shutil.copytree(bert, folder)
    (folder / "own.py").write_text(OWN)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own-bert", "architectures": ["OwnClassifier"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnClassifier"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_its_code_runs_where_it_is_trusted_and_nowhere_else(
    bert: Path, own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Code of a model goes to a cache whose place is read when transformers is loaded.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    adapter = adapter_on(bert, tmp_path / "a")
    merge = ("merge", adapter, "--model", own, "--output", tmp_path / "merged")
    data = write_jsonl(tmp_path / "rows.jsonl", [row for row in labelled(30) if row["label"] != "bird"])
    predict = ("predict", adapter, "cat sun", "--model", own)
    measure = ("eval", adapter, "--data", data, "--model", own, "--no-latency", "--json")
    train = ("train", "-m", own, "-d", data, "-o", tmp_path / "run", "--max-steps", "1", "--dtype", "float32")

    def lora(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        said = capfd.readouterr()
        return code, said.out, said.err

    for command in (merge, ("inspect", own), predict, measure, train, ("plan", "-m", own, "-d", data)):
        code, _, refused = lora(*command)
        assert code == 2 and "Traceback" not in refused
        assert "it brings code of its own; read it, then say --trust-remote-code" in refused
    assert not (tmp_path / "merged").exists() and not (tmp_path / "run").exists()
    assert not list((tmp_path / "modules").rglob("own.py")), "nor is it copied to where it could run"
    code, said, error = lora(*predict, "--trust-remote-code")
    assert code == 0 and json.loads(said)["label"] in ("cat", "dog"), error
    code, said, error = lora(*measure, "--trust-remote-code")
    assert code == 0 and set(json.loads(said)["metrics"]) == {"base", "a"}, error
    code, _, error = lora(*train, "--trust-remote-code")
    assert code == 0 and (tmp_path / "run" / "report.md").is_file(), error
    code, said, error = lora("plan", "-m", own, "-d", data, "--quick", "--json", "--trust-remote-code")
    assert code == 0 and json.loads(said)["parameters"] > 0, error
    code, _, error = lora(*merge, "--trust-remote-code")
    assert code == 0, error
    assert (tmp_path / "merged" / "own.py").read_text() == OWN  # goes along: the model cannot be loaded without it
    code, said, error = lora("inspect", own, "--trust-remote-code", "--json")
    assert code == 0 and json.loads(said)["class"] == "OwnClassifier", error
