"""``lora tune`` as a process: what it prints, and mistakes without a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command import lora
from small_searches import data


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data(tmp_path_factory.mktemp("rows"))


def test_from_a_file(bert: Path, rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "tune.yaml"
    file.write_text(
        f"model: {bert}\ndata: {rows}\noutput: {tmp_path / 'out'}\n"
        "training: {epochs: 1, batch_size: 8}\n"
        "tune: {trials: 9, seeds: 1, space: {rank: [1, 2], variant: [plain, dora]}, sampler: grid}\n"
    )
    done = lora("tune", file, "--trials", 3, "--at-once", 2)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert len(told["trials"]) == 3, "an option wins over the file"
    assert told["sentence"] in done.stdout and "Searched: rank, variant" in done.stderr + done.stdout
    again = lora("train", tmp_path / "out" / "best.yaml", "--output", tmp_path / "again", "--quiet")
    assert again.returncode == 0, again.stderr
    asked = lora("tune", "--resume", tmp_path / "out", "--json", "-q")
    assert json.loads(asked.stdout)["best"] == told["best"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--space", "learning_rat"], "tune.space.learning_rat: unknown setting; did you mean 'learning_rate'"),
        (["--objectives", "f1_makro"], "tune.objectives: 'f1_makro' is not measured for the task classification"),
        (["--objectives", "accuracy,size", "--pruner", "median"], "nobody knows who is losing"),
        (["--trials", "0"], "trials: must be greater than or equal to 1"),
        (["--storage", "mysterious://x"], "tune.storage: mysterious://x"),
        (["--resume", "nowhere"], "leave other options out"),
    ],
)
def test_mistakes(bert: Path, rows: Path, tmp_path: Path, arguments: list[Any], message: str) -> None:
    done = lora("tune", "-m", bert, "-d", rows, "-o", tmp_path / "out", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out" / "tune.yaml").exists()
