"""A temperature is fitted where rows are held out beside test rows, kept with the adapter, and used where asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lora.cli.eval import command as eval_command
from lora.cli.predict import command as predict_command
from lora.config import RunConfig
from lora.errors import ConfigError
from lora.evaluation.evaluate import evaluate
from lora.io.peft import read_sidecar
from lora.statistics.temperature import Temperature
from lora.workflow import train
from lora.workflow.measuring import keep_temperature
from small_base import labelled, write_jsonl


@pytest.fixture(scope="module")
def run(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("data")
    (folder / "rows").mkdir()
    for split, count in (("train", 60), ("validation", 40), ("test", 40)):
        rows = [{**row, "source": "mail" if place % 2 else "chat"} for place, row in enumerate(labelled(count))]
        write_jsonl(folder / "rows" / f"{split}.jsonl", rows)
    config = RunConfig.make(
        {
            "model": str(bert),
            "output": str(folder / "run"),
            "data": {"train": str(folder / "rows")},
            "training": {"max_steps": 6, "learning_rate": 0.01},
            "check": False,
            "slices": ["source"],
            "robustness": ["some"],
        }
    )
    return folder, train(config, progress=False, latency=False)


def test_it_is_kept_and_said(run: tuple[Path, Any]) -> None:
    folder, result = run
    kept = read_sidecar(folder / "run" / "adapter")["temperature"]
    assert read_sidecar(folder / "run" / "adapter")["temperature_rows_picked"] is True
    assert kept > 0 and result.evaluation is not None
    its = result.evaluation.calibration["default"]["temperature"]
    assert its["temperature"] == kept and "also picked the best checkpoint" in its["note"]
    assert its["note"] in (folder / "run" / "report.md").read_text()
    base = result.evaluation.calibration["base"]["temperature"]
    assert "No rows were held out" in base["note"] and len(base["folds"]) == 5
    told = json.loads((folder / "run" / "report.json").read_text())["evaluation"]
    assert told["comparisons"]["default"]["f1_macro"]["verdict"] in (folder / "run" / "report.md").read_text()


def test_the_report_has_the_slices_and_the_noise_that_were_asked_for(run: tuple[Path, Any]) -> None:
    """What `evaluate` says of the same rows, from the rows and tokens that training had prepared."""
    folder, result = run
    told = json.loads((folder / "run" / "report.json").read_text())["evaluation"]
    assert {part["column"] for part in told["slices"]["default"]["slices"]} == {"source"}
    assert set(told["robustness"]["default"]) == {"typos", "case", "whitespace", "punctuation"}
    rows = str(folder / "rows" / "test.jsonl")
    again = evaluate(result.model, rows, latency=False, slices=["source"], robustness=True, batch_size=32).to_dict()
    for key in ("metrics", "slices", "robustness", "errors", "class_intervals"):
        assert again[key] == told[key], key


def test_the_commands_use_it(run: tuple[Path, Any]) -> None:
    folder, _ = run
    adapter, rows = str(folder / "run"), str(folder / "rows" / "test.jsonl")

    def said(*more: str) -> dict[str, Any]:
        done = CliRunner().invoke(predict_command, [adapter, "where is it", *more], catch_exceptions=False)
        return dict(json.loads(done.stdout))

    plain, soft = said(), said("--calibrated")
    assert plain["label"] == soft["label"] and plain["score"] != soft["score"]
    options = [adapter, "--data", rows, "--no-latency", "--json", "--resamples", "200", "--robustness", "typos,upper"]
    done = CliRunner().invoke(eval_command, options, catch_exceptions=False)
    told = json.loads(done.stdout)
    assert set(told["robustness"]["run"]) == {"typos", "upper"} and told["slices"]["run"]["notes"] is not None
    assert (
        told["calibration"]["run"]["temperature"]["temperature"]
        == read_sidecar(folder / "run" / "adapter")["temperature"]
    )
    with pytest.raises(ConfigError, match="no row has the column 'nowhere'"):
        CliRunner().invoke(eval_command, [adapter, "--data", rows, "--slices", "nowhere"], catch_exceptions=False)


def test_who_picked_nothing_is_not_said_to(run: tuple[Path, Any]) -> None:
    folder, result = run
    keep_temperature(result.model, replace(result.fit, best_step=None), 16)
    assert read_sidecar(folder / "run" / "adapter")["temperature_rows_picked"] is False
    rows = str(folder / "rows" / "test.jsonl")
    its = evaluate(result.model, rows, latency=False, resamples=0).calibration["default"]["temperature"]
    assert its["note"] == "It was fitted on the rows held out of training."
    keep_temperature(result.model, result.fit, 16)


def test_one_without_end_is_not_kept(run: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every held-out row is right, the best temperature has no end: all probabilities would be 1."""
    folder, result = run
    before = read_sidecar(folder / "run" / "adapter")
    endless = Temperature(0.01, "Every row is right.")
    monkeypatch.setattr("lora.evaluation.calibrating.temperature_of", lambda *_: endless)
    keep_temperature(result.model, result.fit, 16)
    assert read_sidecar(folder / "run" / "adapter") == before
    assert "No temperature is kept" in result.fit.notes[-1] and "Every row is right." in result.fit.notes[-1]
