"""`lora eval --harness`: adapters beside their base on a local benchmark, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from chat_base import CHAT, SINGLE, save_adapters, save_chat_base, sentences
from lora.cli import main
from small_base import write_jsonl

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not INSTALLED, reason="needs the extra harness (pip install 'lora-many[harness]')")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = save_chat_base(tmp_path_factory.mktemp("base"))
    return save_adapters(base, tmp_path_factory.mktemp("adapters"), {"a": CHAT, "b": SINGLE})


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"q": text, "choices": [" the cat", " a dog"], "answer": len(text) % 2} for text in sentences(4)]
    write_jsonl(folder / "rows.jsonl", rows)
    (folder / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{answer}}'\n"
        "doc_to_choice: '{{choices}}'\nmetric_list: [{metric: acc}]\n"
    )
    return folder


@needs_harness
def test_several_adapters(
    adapters: dict[str, Path], tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    call = ["eval", str(adapters["a"]), "--adapter", f"x={adapters['b']}", "--harness", "mine"]
    call += ["--harness-include", str(tasks), "--limit", "3", "--output", str(tmp_path / "out.json")]
    assert main(call) == 0
    shown = capfd.readouterr().out
    assert "mine: acc" in shown and "base" in shown
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["results"]["mine"]["acc"]) == ["base", "a", "x"] and found["documents"]["mine"] == 3
    assert main([*call, "--json", "--overwrite", "--no-baseline", "--chat-template"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert list(found["results"]["mine"]["acc"]) == ["a", "x"] and found["chat_template"] is True
    assert main([*call[:-2], "--json", "--overwrite", "--harness", "mine,mien"]) == 2
    assert "there is no task 'mien'" in capfd.readouterr().err


def test_what_is_refused(
    adapters: dict[str, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = str(adapters["a"])
    for arguments, words in (
        ([a, "--data", "x.jsonl", "--limit", "3"], "--limit is for benchmarks"),
        ([a, "--data", "x.jsonl", "--fewshot", "0"], "--fewshot is for benchmarks"),
        ([a, "--harness", "mine", "--data", "x.jsonl"], "leave out --data"),
        ([a, "--harness", "mine", "--generate", "3"], "leave out --generate"),
        ([a, "--harness", " "], "name a benchmark"),
    ):
        assert main(["eval", *arguments]) == 2
        assert words in capfd.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["eval", a, "--harness", "mine"]) == 2
    assert "pip install 'lora-many[harness]'" in capfd.readouterr().err
