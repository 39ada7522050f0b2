"""Where commands write: what cannot be is told before the work; what comes in by lines goes out by lines."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora import LoRA
from lora.cli import main
from lora.cli.show import show_result
from lora.model.base import load_base
from lora.tasks.classification import ClassificationTask
from small_base import labelled, write_jsonl


@pytest.fixture(scope="module")
def adapter(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = ClassificationTask(["bird", "cat", "dog"])
    model = LoRA(load_base(str(bert), task.auto_class, torch.float32, task.model_options()), rank=2)
    model.notes["default"] = {"task": task.state()}
    return model.save_adapter("default", tmp_path_factory.mktemp("adapter") / "a")


@pytest.mark.parametrize("command", ["predict", "eval", "train"])
def test_a_place_that_cannot_be_is_told_before_anything_is_loaded(
    command: str, adapter: Path, bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import transformers

    def loading(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", loading)
    data = write_jsonl(tmp_path / "rows.jsonl", labelled(30))
    job = {"train": ["train", "-m", str(bert)], "predict": ["predict", str(adapter)], "eval": ["eval", str(adapter)]}
    inside = data / "out"
    assert main([*job[command], "--data", str(data), "--output", str(inside)]) == 2
    said = capfd.readouterr().err
    assert f"output: {data} is no folder" in said and said.count("error:") == 1


def test_files_go_into_new_folders(adapter: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", labelled(9))
    answers, numbers = tmp_path / "a" / "b" / "answers.jsonl", tmp_path / "c" / "numbers.json"
    assert main(["predict", str(adapter), "--data", str(data), "--output", str(answers)]) == 0
    assert len(answers.read_text().splitlines()) == 9
    assert main(["eval", str(adapter), "--data", str(data), "--output", str(numbers), "--no-latency"]) == 0
    assert json.loads(numbers.read_text())["rows"] == 9


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_what_is_there_is_not_replaced_unasked(command: str, adapter: Path, tmp_path: Path, capfd) -> None:
    data, there = write_jsonl(tmp_path / "rows.jsonl", labelled(9)), tmp_path / "there"
    there.write_text("mine")
    rows, more = data.read_text(), ["--no-latency"] if command == "eval" else []
    call = [command, str(adapter), "--data", str(data), *more, "--output"]
    assert main([*call, str(there)]) == 2 and there.read_text() == "mine"
    assert "is there already; name another file, or say --overwrite" in capfd.readouterr().err
    assert main([*call, str(data), "--overwrite"]) == 2 and data.read_text() == rows
    assert "is the data that are read" in capfd.readouterr().err
    assert main([*call, str(there), "--overwrite"]) == 0 and there.read_text() != "mine"


def test_merge_replaces_a_model_and_nothing_else(adapter: Path, tmp_path: Path, capfd) -> None:
    call = ["merge", str(adapter), "--output", str(tmp_path / "merged")]
    assert main(call) == 0
    assert main(call) == 2 and "is not empty" in capfd.readouterr().err
    assert main([*call, "--overwrite"]) == 0
    (tmp_path / "merged" / "thesis.txt").write_text("mine")
    assert main([*call, "--overwrite"]) == 2 and (tmp_path / "merged" / "thesis.txt").read_text() == "mine"
    assert "holds thesis.txt, which is no part of a model folder" in capfd.readouterr().err
    assert main(["merge", str(adapter), "--output", str(tmp_path / "half"), "--dtype", "float16"]) == 0
    half = load_base(str(tmp_path / "half"), "AutoModelForSequenceClassification", torch.float16)
    whole = load_base(str(tmp_path / "merged"), "AutoModelForSequenceClassification", torch.float32)
    for (name, one), other in zip(half.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other.half()), name
    assert half.config.id2label == {0: "bird", 1: "cat", 2: "dog"}


def test_lines_of_standard_input(adapter: Path, capfd: pytest.CaptureFixture[str], monkeypatch) -> None:
    def predict(text: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code = main(["predict", str(adapter), "--data", "-"])
        said = capfd.readouterr()
        return code, said.out, said.err

    code, out, _ = predict("cat sun\r\ndog moon\n\n \n")
    assert code == 0 and len(out.splitlines()) == 2
    code, out, err = predict("cat sun\n\ndog moon\n")  # left out, it would give the third line's answer to the second
    assert code == 2 and out == "" and "empty: row 2" in err
    code, _, err = predict("\n\n")
    assert code == 2 and "there are no lines" in err


def test_the_end_of_a_run_names_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = SimpleNamespace(best_value=None, stopped_early=False, steps=3, epochs=1.0, seconds=2.0, output=tmp_path)
    result: Any = SimpleNamespace(fit=fit, evaluation=None, report=tmp_path / "report.md")
    show_result(result)
    assert f"report:  {tmp_path / 'report.html'}\n" in capsys.readouterr().out
    result.report = None
    show_result(result)
    assert "report:" not in capsys.readouterr().out
