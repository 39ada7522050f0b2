"""Searches that take seconds: a base, data in three parts, settings; and what became of their trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

import lora
from lora import RunConfig
from lora.tuning.result import TuneResult
from small_base import labelled, write_jsonl

TRAINING = {"batch_size": 8, "dtype": "float32", "epochs": 2, "learning_rate": 3e-3}
ASKED: dict[str, Any] = {
    "trials": 6, "seeds": 2, "space": {"learning_rate": "default", "rank": [1, 2, 4, 8], "dropout": "default"},
    "sampler": "random", "pruner": "none",
}  # fmt: skip


def data(folder: Path) -> Path:
    """A folder with parts of its own, so that a trial's rows are those that `lora train` takes."""
    place = folder / "data"
    if place.is_dir():
        return place
    place.mkdir()
    for seed, (part, count) in enumerate({"train": 40, "validation": 16, "test": 24}.items()):
        write_jsonl(place / f"{part}.jsonl", labelled(count, seed=seed, longest=4))
    return place


def settings(base: Path, folder: Path, **training: Any) -> RunConfig:
    return RunConfig.make({
        "model": str(base), "data": str(data(folder)), "output": str(folder / "out"), "at_once": 3,
        "adapter": {"rank": 4}, "training": {**TRAINING, **training},
    })  # fmt: skip


def tuned(base: Path, folder: Path, **asked: Any) -> TuneResult:
    """``asked``: of the search, or of training."""
    training = {key: asked.pop(key) for key in ("epochs", "clip") if key in asked}
    wanted = {key: value for key, value in {**ASKED, **asked}.items() if value is not None}
    if len(wanted.get("objectives", [])) > 1 and "pruner" not in asked:
        del wanted["pruner"]
    return lora.tune(settings(base, folder, **training), progress=False, **wanted)


def by_number(found: TuneResult) -> dict[int, FrozenTrial]:
    return {its.number: its for its in found.trials}


def history(run: Path) -> list[dict[str, Any]]:
    """The lines of a run, but for its speed."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines]
