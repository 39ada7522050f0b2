"""The commands on an encoder-decoder: it is known by its config.json; answers are written, scored and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from command import lora
from lora.config import RunConfig
from lora.workflow import train_many
from small_base import stories, write_jsonl


@pytest.fixture(scope="module")
def run(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    rows = [{"document": row["prompt"], "summary": row["prompt"].split()[0]} for row in stories(120)]
    data = write_jsonl(folder / "train.jsonl", rows)
    done = lora(
        "train", "--model", t5, "--data", data, "--output", folder / "run", "--options", "{prefix: 'here '}", "--rank",
        "4", "--epochs", "2", "--lr", "1e-2", "--generate-rows", "6",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Task seq2seq: prompt from column 'document', completion from column 'summary'" in done.stderr
    assert "BLEU" in done.stdout and "Written answers, 5 of 6" in done.stdout
    return folder / "run"


def test_train_reports_what_was_written(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())["evaluation"]
    assert len(report["generation"]["answers"]) == 6 and report["generation"]["max_new_tokens"] == 128
    for name in ("base", "default"):
        assert {"bleu", "chrf", "rouge_l", "exact_match", "stop_rate", "answer_length"} <= set(report["metrics"][name])
    assert "## Written answers, 5 of 6" in (run / "report.md").read_text()
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["generate_rows"] == 6
    told = json.loads((run / "adapter" / "lora.json").read_text())
    assert told["task"]["task"] == "seq2seq" and told["task"]["prefix"] == "here "
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"


def test_predict_and_eval_write_the_same(run: Path, tmp_path: Path) -> None:
    data = [{"document": row["prompt"], "summary": row["prompt"].split()[0]} for row in stories(12, seed=5)]
    rows = write_jsonl(tmp_path / "test.jsonl", data)
    done = lora("predict", run, "--data", rows, "--max-new-tokens", "5", "--batch-size", "4")
    assert done.returncode == 0, done.stderr
    said = {answer["prompt"]: answer["completion"] for answer in map(json.loads, done.stdout.splitlines())}
    done = lora(
        "eval", run, "--data", rows, "--generate", "all", "--max-new-tokens", "5", "--json", "--no-latency",
        "--no-baseline",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    written = [answer["answers"][run.name] for answer in facts["generation"]["answers"]]
    assert written == list(said.values())
    hits = sum(said[row["document"]] == row["summary"] for row in data) / len(data)
    assert facts["metrics"][run.name]["exact_match"] == pytest.approx(hits)
    refused = lora("eval", run, "--data", rows, "--generate", "0")
    assert refused.returncode == 2 and "'0' is neither a whole number" in refused.stderr


def test_several_adapters_of_an_encoder_decoder(t5: Path, tmp_path: Path) -> None:
    adapters = {name: {"data": str(write_jsonl(tmp_path / f"{name}.jsonl", stories(30, seed)))}
                for seed, name in enumerate("ab")}  # fmt: skip
    config = {
        "model": str(t5), "output": str(tmp_path / "set"), "adapters": adapters, "adapter": {"rank": 2},
        "training": {"max_steps": 3, "generate_rows": 0},
    }  # fmt: skip
    for name, result in train_many(RunConfig.make(config), progress=False).items():
        assert result.evaluation is not None and result.evaluation.task == "seq2seq"
        report = json.loads((tmp_path / "set" / name / "report.json").read_text())["evaluation"]
        assert report["generation"] is None and "loss" in report["metrics"]["base"]
