"""A whole search on a tiny model: each trial as by itself, what is kept, going on, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lora
from lora import RunConfig
from lora.overrides import load_config
from lora.tuning.result import TuneResult
from small_base import labelled, write_jsonl

TRAINING = {"batch_size": 8, "dtype": "float32", "epochs": 2, "learning_rate": 3e-3}
ASKED: dict[str, Any] = {"trials": 6, "seeds": 2, "space": ["learning_rate", "rank", "dropout"], "sampler": "random"}


def data(folder: Path) -> Path:
    """A folder with parts of its own, so that a trial's rows are those that `lora train` takes."""
    place = folder / "data"
    place.mkdir(exist_ok=True)
    for seed, (part, count) in enumerate({"train": 40, "validation": 16, "test": 24}.items()):
        write_jsonl(place / f"{part}.jsonl", labelled(count, seed=seed, longest=4))
    return place


def settings(base: Path, folder: Path, **training: Any) -> RunConfig:
    return RunConfig.make({
        "model": str(base), "data": str(data(folder)), "output": str(folder / "out"), "at_once": 3,
        "adapter": {"rank": 4}, "training": {**TRAINING, **training},
    })  # fmt: skip


def tuned(base: Path, folder: Path, **asked: Any) -> TuneResult:
    return lora.tune(settings(base, folder), progress=False, **{**ASKED, **asked})


@pytest.fixture(scope="module")
def found(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    return tuned(bert, tmp_path_factory.mktemp("tuned"))


def history(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines]


def test_files(found: TuneResult) -> None:
    told = json.loads((found.output / "tune.json").read_text())
    assert told["format"] == 1 and len(told["trials"]) == 6 and told["sentence"] == found.verdict
    assert {its["state"] for its in told["trials"]} <= {"done", "stopped early"}
    print((found.output / "tune.md").read_text())
    assert (found.folder or Path()) == found.output / "best" / "adapter"


def test_each_trial_is_the_run_of_its_configuration(found: TuneResult, tmp_path: Path) -> None:
    """`lora train trials/trial-000k/config.yaml` gives the same lines, to the last bit."""
    for its in found.trials[:3]:
        place = found.output / "trials" / f"trial-{its.number:04d}"
        config = load_config(place / "config.yaml", {"output": str(tmp_path / str(its.number)), "check": False})
        lora.workflow.train(config, progress=False, latency=False)
        mine = history(place)
        assert mine and history(tmp_path / str(its.number))[: len(mine)] == mine
