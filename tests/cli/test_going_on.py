"""``lora train --resume`` and ``--start``: what a run keeps, what may change, what its report counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lora.cli import main
from lora.errors import SaveError
from lora.io.run import RunFolder
from small_base import labelled, write_jsonl

SETTINGS = ["--rank", "4", "--batch-size", "8", "--lr", "1e-3", "--save-every", "4", "--dropout", "0.1"]


class Stop(Exception):
    """As a kill: nothing in the package handles it."""


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A command's exit code and what it said on standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        code = main(["train", "--quiet", *map(str, arguments)])
        return code, capfd.readouterr().err

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "train.jsonl", labelled(80))


@pytest.fixture(scope="module")
def finished(bert: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", "-q", "-m", str(bert), "-d", str(data), "-o", str(folder), "--epochs", "2", *SETTINGS]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def stopped(bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed after step 7 of 16; its newest checkpoint is of step 4."""
    stop_after(7, monkeypatch)
    folder = tmp_path / "stopped"
    assert main(["train", "-q", "-m", str(bert), "-d", str(data), "-o", str(folder), "--epochs", "2", *SETTINGS]) == 1
    monkeypatch.undo()
    return folder


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunFolder.log

    def logging(self: RunFolder, entry: dict[str, Any]) -> None:
        log(self, entry)
        if entry["step"] == step and "loss" in entry:
            raise Stop

    monkeypatch.setattr(RunFolder, "log", logging)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def training(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())["training"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_the_report_counts_the_whole_run(command, stopped: Path, finished: Path) -> None:
    state = json.loads((stopped / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["tokens"] == sum(entry["tokens"] for entry in lines(stopped)[:4])
    state["seconds"] += 1000  # as if the first part had taken that long
    (stopped / "checkpoints" / "step-00000004" / "state.json").write_text(json.dumps(state))
    assert command("--resume", stopped)[0] == 0
    found = training(stopped)
    assert found["steps"] == len([entry for entry in lines(stopped) if "loss" in entry]) == 16
    assert found["tokens"] == sum(entry.get("tokens", 0) for entry in lines(stopped)) == training(finished)["tokens"]
    assert state["seconds"] < found["seconds"] < found["total_seconds"] < state["seconds"] + 100
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"], abs=0.1)


def test_a_run_killed_before_it_trained_is_to_be_begun_anew(
    command, bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    start = ["-m", bert, "-d", data, "-o", folder, "--max-steps", "2", *SETTINGS]

    def killed(*_: Any, **__: Any) -> None:
        raise Stop

    for place in ("lora.workflow.run.load", "lora.workflow.run.verify"):  # in loading, in the checks
        monkeypatch.setattr(place, killed)
        assert command(*start)[0] == 1
        monkeypatch.undo()
        code, said = command("--resume", folder)
        assert code == 2 and said.count("error:") == 1 and "Traceback" not in said
        assert "nothing was trained" in said and "start it anew" in said and "without --resume" in said
    assert command(*start)[0] == 0 and (folder / "adapter").is_dir()


def test_folders_that_are_no_runs_say_what_they_are(command, run: Path, tmp_path: Path) -> None:
    bare, other = tmp_path / "bare", tmp_path / "other"
    bare.mkdir()
    (bare / ".config.yaml.tmp-1").write_text("model: x")  # of a kill while it was written
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for folder, words in (
        (tmp_path / "nowhere", "there is no such folder. If its run was stopped before training began, nothing was"),
        (bare, "nothing was trained here yet"),
        (other, "holds no run: there is no config.yaml"),
        (other / "notes.txt", "is a file; name the folder of a run"),
        (run / "adapter", f"is a part of a run; go on with that: lora train --resume {run}\n"),
        (run / "checkpoints" / "best", f"is a part of a run; go on with that: lora train --resume {run}\n"),
    ):
        code, said = command("--resume", folder)
        assert code == 2 and said.startswith(f"error: {folder}: {words}"), said
    (run / "config.yaml").unlink()
    assert "so it was trained from Python; go on with it there: fit(..., output_dir=" in command("--resume", run)[1]


@pytest.mark.parametrize("change", [["--epochs", "5"], ["--max-steps", "99"], ["--rank", "8"], ["--output", "other"]])
def test_other_settings_are_refused_with_the_way_out(command, run: Path, change: list[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, said = command("--resume", run, *change)
    assert code == 2 and said.count("error:") == 1
    assert (
        said.startswith(f"error: {'adapter.' if 'rank' in change[0] else ''}")
        and "May change: data.cache, data.replay, data.streaming" in said
    )
    assert f"lora train --start {run} --data DATA --output ANOTHER_FOLDER" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_configuration_beside_resume_is_refused(command, run: Path) -> None:
    for other in (["job.yaml"], ["--overwrite"]):
        code, said = command("--resume", run, *other)
        assert code == 2 and "leave CONFIG.yaml and --overwrite out" in said


def test_base_and_data_may_have_moved_and_saving_may_change(
    command, stopped: Path, finished: Path, bert: Path, data: Path, tmp_path: Path
) -> None:
    moved, rows = Path(shutil.copytree(bert, tmp_path / "moved")), Path(shutil.copy(data, tmp_path / "moved.jsonl"))
    code, said = command("--resume", stopped, "-m", moved, "-d", rows, "--save-every", "3", "--memory-gib", "1e-5")
    assert code == 0, said
    assert any("layers are recomputed" in note for note in json.loads((stopped / "report.json").read_text())["notes"])
    config = yaml.safe_load((stopped / "config.yaml").read_text())
    assert (config["model"], config["data"]["train"]) == (str(moved), str(rows))
    assert config["training"]["save_every"] == 3
    assert sorted(path.name for path in (stopped / "checkpoints").glob("step-*")) == ["step-00000015", "step-00000016"]
    expected, found = weights(finished), weights(stopped)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_refused_data_do_not_stay_in_the_configuration(command, stopped: Path, finished: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", labelled(80, seed=5))
    before = (stopped / "config.yaml").read_bytes()
    code, said = command("--resume", stopped, "--data", other)
    assert code == 2 and "training data" in said
    assert (stopped / "config.yaml").read_bytes() == before
    assert command("--resume", stopped)[0] == 0  # by the data it began with
    assert lines(stopped)[-1] == lines(finished)[-1]


def test_a_finished_run_says_so_and_is_measured_again(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = weights(run)
    assert main(["train", "--resume", str(run)]) == 0
    assert "All 16 steps had been taken before; the result is measured again." in capfd.readouterr().err
    assert all(torch.equal(value, before[key]) for key, value in weights(run).items())


def test_start_trains_an_adapter_further(command, finished: Path, data: Path, tmp_path: Path) -> None:
    """Base, task, labels and adapter settings are the adapter's; the first loss is about the last one's."""
    more = write_jsonl(tmp_path / "more.jsonl", [row for row in labelled(60, seed=3) if row["label"] != "bird"])
    further = tmp_path / "further"
    code, said = command(
        "--start",
        finished,
        "-d",
        more,
        "-o",
        further,
        "--max-steps",
        "3",
        "--save-every",
        "1",
        "--keep-checkpoints",
        "9",
    )
    assert code == 0, said
    config = yaml.safe_load((further / "config.yaml").read_text())
    first = yaml.safe_load((finished / "config.yaml").read_text())
    assert (config["start"], config["model"]) == (str(finished), first["model"])
    assert (config["adapter"]["rank"], config["adapter"]["dropout"]) == (4, 0.1)
    assert json.loads((further / "adapter" / "lora.json").read_text())["task"]["labels"] == ["bird", "cat", "dog"]
    begun, source = weights_at(further, 0), weights(finished)
    assert all(torch.equal(begun[key], source[key]) for key in source)
    assert not all(torch.equal(value, source[key]) for key, value in weights(further).items())


def test_a_full_disk_says_how_to_go_on(
    command, bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunFolder.log

    def full(self: RunFolder, entry: dict[str, Any]) -> None:
        if entry["step"] == 5:
            raise SaveError("metrics.jsonl: no space left on the disk")
        log(self, entry)

    monkeypatch.setattr(RunFolder, "log", full)
    run = tmp_path / "run"
    code, said = command("-m", bert, "-d", data, "-o", run, *SETTINGS)
    assert code == 2 and said.count("error:") == 1
    assert f"no space left on the disk. Go on from the newest checkpoint with: lora train --resume {run}\n" in said


def test_ctrl_c_while_the_result_is_measured(command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lora.evaluation.evaluate.evaluate", interrupted)
    code, said = command("--resume", run)
    assert code == 2
    assert said.startswith(f"interrupted: the adapter is trained and saved ({run / 'adapter'}), but not measured.")
    assert said.endswith(f"For that: lora train --resume {run}\n")


def weights_at(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "adapter_model.safetensors")


def test_a_run_with_a_start_is_resumed_without_it(
    command, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it started from may be gone: the checkpoint holds all."""
    job = ["--start", run, "-d", data, "--epochs", "2", "--lr", "1e-3", "--batch-size", "8", "--save-every", "4"]
    assert command(*job, "-o", tmp_path / "whole")[0] == 0
    stop_after(7, monkeypatch)
    assert command(*job, "-o", tmp_path / "part")[0] == 1
    monkeypatch.undo()
    shutil.rmtree(run)
    code, said = command("--resume", tmp_path / "part")
    assert code == 0, said
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_what_start_refuses(command, run: Path, data: Path, bert: Path, llama: Path, tmp_path: Path) -> None:
    job = ["--start", run, "-d", data, "-o", tmp_path / "new"]
    for more, words in (
        (["--rank", "8"], f"adapter.rank: is 4 in {run}, which training starts from; leave it out"),
        (["-m", llama], "does not fit the base"),
        (["-o", run], "--overwrite"),
        (["-o", run, "--overwrite"], "holds the adapter that training starts from"),
        (["--start", tmp_path / "none"], "none"),
        (["--start", bert], "holds no adapter"),
    ):
        code, said = command(*job, *more)
        assert code == 2 and said.count("error:") == 1 and words in said, (more, said)
    unseen = write_jsonl(tmp_path / "unseen.jsonl", [*labelled(20), {"text": "sun", "label": "fish"}])
    code, said = command(*job, "-d", unseen)
    assert code == 2 and "'fish'" in said
    assert not (tmp_path / "new").exists()
