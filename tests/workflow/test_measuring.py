"""What is measured of a trained adapter beside its held-out rows: the probe, of one run and of a set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lora import workflow
from lora.config import RunConfig
from lora.errors import ConfigError, DataError, Interrupted
from lora.evaluation import forgetting
from small_base import labelled, save_base, stories, write_jsonl


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_base(tmp_path_factory.mktemp("base"), "llama"))


def settings(base: str, folder: Path, **more: Any) -> dict[str, Any]:
    """Of a run of one step, whose probe is two texts."""
    folder.mkdir(exist_ok=True)
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
        found = report(tmp_path / "run" / name)["forgetting"]
        assert found["texts"] == 2 and list(found["adapters"]) == ["base", name]
    learned = [line for line in said if "The probe's texts are those of data.replay" in line]
    assert len(learned) == 1 and learned[0].startswith("b: ")


@pytest.mark.parametrize("settings_, problem", [
    ({"slices": ["nowhere"]}, "no row has the column 'nowhere'; columns there are: text, label"),
    ({"robustness": ["loudly"]}, "'loudly' is none of the noises"),
    ({"slices": ["text"], "data": {"held_out": 0}}, "test rows or held-out rows, and there are none"),
])  # fmt: skip
def test_what_the_rows_cannot_give_is_refused_before_training(
    bert: Path, tmp_path: Path, settings_: dict[str, Any], problem: str
) -> None:
    config = {"model": str(bert), "output": str(tmp_path / "run"), "check": False, **settings_}
    config["data"] = {"train": str(write_jsonl(tmp_path / "rows.jsonl", labelled(40))), **settings_.get("data", {})}
    with pytest.raises(ConfigError, match=problem):
        workflow.train(RunConfig.make(config), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_probe_of_no_text_is_refused_before_training(base: str, tmp_path: Path) -> None:
    config = of_a_set(base, tmp_path, probe=str(write_jsonl(tmp_path / "bad.jsonl", [{"number": 1}])))
    with pytest.raises(DataError, match="no text for the probe"):
        workflow.train_many(RunConfig.make(config), progress=False)
    assert not (tmp_path / "run" / "a").exists()


def test_a_probe_without_tokens_is_refused_before_training(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*arguments: Any) -> None:
        raise DataError("row 1 gives no token")

    monkeypatch.setattr(forgetting, "_encoded", none)
    with pytest.raises(DataError, match="probe: .*probe.txt: row 1 gives no token"):
        workflow.train(RunConfig.make(settings(base, tmp_path)), progress=False)
    assert not (tmp_path / "run").exists()


def test_what_goes_wrong_with_the_probe_loses_no_report(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("no memory is left.\nTraceback of the allocator")

    monkeypatch.setattr(forgetting, "measure_forgetting", full)
    said = list[str]()
    workflow.train(RunConfig.make(settings(base, tmp_path)), say=said.append, progress=False)
    assert report(tmp_path / "run")["forgetting"] == "no memory is left"
    assert "What was forgotten is not measured: no memory is left." in said
    workflow.train_many(RunConfig.make(of_a_set(base, tmp_path / "set")), progress=False)
    assert report(tmp_path / "set" / "run" / "b")["forgetting"] == "no memory is left"

    def stopped(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(forgetting, "measure_forgetting", stopped)
    with pytest.raises(Interrupted, match="trained and saved .*not measured. For that: "):
        workflow.resume(tmp_path / "run", progress=False)
    with pytest.raises(Interrupted, match="trained and saved .*not all are measured. For that: "):
        workflow.resume(tmp_path / "set" / "run", progress=False)


def test_a_set_measures_its_base_once_in_passes_that_suit_each(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rows at a time as the smallest of its adapters' settings, and no more adapters than that."""
    calls, measured = list[tuple[Any, ...]](), forgetting.measure_forgetting

    def seen(model: Any, names: list[str], tokenizer: Any, length: int, *rest: Any) -> Any:
        calls.append((names, length, rest[2]))
        return measured(model, names, tokenizer, length, *rest)

    monkeypatch.setattr(forgetting, "measure_forgetting", seen)
    config = settings(base, tmp_path, adapters={
        "a": {"training": {"eval_batch_size": 3}}, "b": {"data": {"max_length": 32}}, "c": {}, "d": {}, "e": {},
    })  # fmt: skip
    workflow.train_many(RunConfig.make(config), progress=False)
    assert [(names, rows) for names, _, rows in calls] == [(["a", "c"], 3), (["d", "e"], 3), (["b"], 32)]
    assert calls[2][1] == 32 and list(report(tmp_path / "run" / "d")["forgetting"]["adapters"]) == ["base", "d"]
