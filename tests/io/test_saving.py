"""Saving an adapter: whole or not at all, nothing saved before is lost, nothing half-written stays."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import lora.io.peft
import lora.io.peft_load
from lora import LoRA
from lora.errors import AdapterFileError, SaveError
from lora.io.atomic import atomic_folder, recover, write_text
from tiny_models import batch, logits, randomise, tiny

WEIGHTS = "adapter_model.safetensors"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(folder: Path) -> LoRA:
    model = LoRA(tiny("bert"), name=None)
    model.load_adapter(folder, "a")
    randomise(model.adapter_parameters("a").values(), seed=9)
    return model


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
])  # fmt: skip
def test_a_full_disk_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    model, before = changed(folder), content(folder)

    def full(tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(lora.io.peft, "save_file", full)
    with pytest.raises(SaveError, match="no space left on the disk"):
        model.save_adapter("a", folder)
    with pytest.raises(SaveError, match="no space left on the disk"):
        model.save_adapter("a", folder.parent / "new")
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["good"]


def test_a_rename_that_fails_puts_the_old_folder_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = changed(folder), content(folder)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(SaveError):
        model.save_adapter("a", folder)
    assert content(folder) == before


def test_a_kill_between_the_renames_is_mended(folder: Path) -> None:
    before = content(folder)
    folder.rename(folder.parent / ".good.old")
    LoRA(tiny("bert"), name=None).load_adapter(folder)
    assert content(folder) == before
    # After the second rename the new folder stands and the old one is litter.
    (folder.parent / ".good.old").mkdir()
    recover(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["good"] and content(folder) == before


def test_a_kill_is_mended_behind_a_link_and_in_a_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    folder.rename(tmp_path / ".good.old")
    assert LoRA(tiny("bert"), name=None).load_adapter(tmp_path / "link") == "good"
    run = tmp_path / "run"
    run.mkdir()
    folder.rename(run / ".adapter.old")
    assert LoRA(tiny("bert"), name=None).load_adapter(run) == "run"
    assert [path.name for path in run.iterdir()] == ["adapter"]


def test_a_reader_that_mends_too_early_does_not_stop_the_writer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = changed(folder), content(folder)
    rename, mended = Path.rename, []

    def renaming(self: Path, target: Path) -> Path:
        out = rename(self, target)
        if self == folder and not mended:
            mended.append(self)
            recover(folder)  # what load_adapter does first
            assert content(folder) == before
        return out

    monkeypatch.setattr(Path, "rename", renaming)
    model.save_adapter("a", folder)
    assert mended and content(folder)[WEIGHTS] != before[WEIGHTS]
    assert [path.name for path in folder.parent.iterdir()] == ["good"]


def test_a_folder_replaced_while_it_is_read_is_read_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = changed(folder)
    read, calls = lora.io.peft_load.read_sidecar, []

    def replacing(path: Path) -> dict[str, Any]:
        calls.append(path)
        if len(calls) == 1:  # configuration and tensors have been read
            model.save_adapter("a", path)
        return read(path)

    monkeypatch.setattr(lora.io.peft_load, "read_sidecar", replacing)
    other = LoRA(tiny("bert"), name=None).eval()
    other.load_adapter(folder, "b")
    assert len(calls) == 2
    assert torch.equal(logits(other, batch("bert")), logits(model.eval(), batch("bert")))


def test_a_folder_away_while_it_is_read_is_read_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = changed(folder), []
    opening, aside = lora.io.peft_load.safe_open, folder.with_name(".good.old")

    def away(path: Path, **options: Any) -> Any:
        calls.append(path)
        if len(calls) == 1:  # between the first rename of a save and the second
            folder.rename(aside)
        return opening(path, **options)

    monkeypatch.setattr(lora.io.peft_load, "safe_open", away)
    model.load_adapter(folder, "b")
    assert len(calls) == 2 and not aside.exists()
    monkeypatch.setattr(lora.io.peft_load, "safe_open", opening)
    shutil.rmtree(folder)
    with pytest.raises(AdapterFileError, match="there is no such adapter folder"):
        model.load_adapter(folder, "c")


def test_what_killed_saves_left_goes_with_a_later_one(folder: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    long_ago = time.time() - 3600
    stages = {}
    for what, process, age in (
        ("left", gone.pid, long_ago),
        ("fresh", gone.pid, None),
        ("at work", os.getppid(), long_ago),
    ):
        parent = folder.parent / what
        stages[what] = parent / f".copy.tmp-{process}"
        stages[what].mkdir(parents=True)
        (stages[what] / WEIGHTS).write_bytes(b"half")
        for path in (stages[what] / WEIGHTS, stages[what]):
            os.utime(path, None if age is None else (age, age))
        changed(folder).save_adapter("a", parent / "copy")
    # A fresh one may be of another machine that shares the disk, where such a number means another process.
    assert {what: path.exists() for what, path in stages.items()} == {"left": False, "fresh": True, "at work": True}


def test_overwriting_replaces_ours_and_keeps_what_is_not(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    (folder / "inside").mkdir()
    (folder / "inside" / "file").write_text("mine too")
    model, before = changed(folder), content_of_files(folder)
    model.save_adapter("a", folder)
    after = content_of_files(folder)
    assert after["README.md"] == b"mine" and (folder / "inside" / "file").read_text() == "mine too"
    assert after[WEIGHTS] != before[WEIGHTS]
    other = LoRA(tiny("bert"), name=None).eval()
    other.load_adapter(folder, "b")
    assert torch.equal(logits(other, batch("bert")), logits(model.eval(), batch("bert")))


def content_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_places_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = changed(folder)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SaveError, match="is a file"):
        model.save_adapter("a", tmp_path / "file")
    with pytest.raises(SaveError, match="cannot be written"):
        model.save_adapter("a", tmp_path / "file" / "below")
    with pytest.raises(SaveError, match="cannot be written"):
        write_text(tmp_path / "file" / "below", "text")
    monkeypatch.chdir(folder)
    with pytest.raises(SaveError, match="is the working folder"):
        model.save_adapter("a", ".")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_stays_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    before = content(folder)
    changed(folder).save_adapter("a", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and content(folder)[WEIGHTS] != before[WEIGHTS]


def test_an_error_of_the_caller_passes_through(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "x") as stage:
        (stage / "a").write_text("a")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "t", "one")
    write_text(tmp_path / "t", "two")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["two"]
