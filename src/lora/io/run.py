"""A run's folder, and checkpoints from which it goes on exactly.

config.yaml          the resolved configuration
metrics.jsonl        one line per step and evaluation
checkpoints/
  step-00000120/     an adapter folder, and beside it training.safetensors and state.json
  best/              the adapter with the best validation metric so far
adapter/             the result
tensorboard/         events
report.md, report.json, report.html
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora.errors import ConfigError, TrainingError
from lora.io.atomic import atomic_folder, recover, saving, write_text
from lora.io.peft import write_adapter
from lora.yaml_text import read_yaml

if TYPE_CHECKING:
    from lora.model.lora import LoRA

TRAINING, STATE = "training.safetensors", "state.json"
FILES = ("metrics.jsonl", "report.md", "report.json", "report.html", "curves.png")  # that a run replaces


class RunFolder:
    """Paths and files of one run. Making one only looks; `clear` and the methods that write change the disk.

    Raises:
        ConfigError: the folder holds a run and neither ``resume`` nor ``overwrite`` says what to do with it, or
            ``overwrite`` names a folder that no run made.
    """

    def __init__(self, folder: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
        self.path = Path(folder).expanduser()
        if resume and overwrite:
            raise ConfigError("resume goes on with a run and overwrite replaces it; give one of the two")
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output: {self.path} is a file; name a folder")
        # A run that ended before its first checkpoint has nothing to lose.
        used = self.adapter.exists() or any((self.path / "checkpoints").glob("step-*")) or bool(self.history())
        if used and not resume and not overwrite:
            raise ConfigError(
                f"output: {self.path} already holds a run. Go on with it (--resume, resume=True), replace it "
                "(--overwrite, overwrite=True), or name another folder"
            )
        if holds_a_set(self.path):
            raise ConfigError(f"output: {self.path} holds a set of runs, one for each adapter; name another folder")
        others = [name for name in FILES if (self.path / name).is_file() and (self.path / name).stat().st_size]
        if others and not used:
            raise ConfigError(
                f"output: {self.path} holds {others[0]}, which no run wrote and a run would replace; "
                "name another folder"
            )
        ours = any((self.path / name).exists() for name in ("metrics.jsonl", "config.yaml"))
        if used and overwrite and not ours:
            raise ConfigError(
                f"output: {self.path} was not made by a run, so it is not overwritten; name another folder"
            )
        if resume and not used and not ours:
            raise ConfigError(f"{self.path}: there is no run here to resume; leave resume out to start anew")

    @classmethod
    def of_a_set(cls, folder: str | Path, *, resume: bool = False, overwrite: bool = False) -> RunFolder:
        """The folder of one adapter among several: one that had not begun when the set was stopped begins now."""
        path = Path(folder).expanduser()
        begun = (path / "metrics.jsonl").exists() or any((path / "checkpoints").glob("step-*"))
        return cls(path, resume=resume and begun, overwrite=overwrite)

    def clear(self) -> None:
        """Delete what a run wrote here, and what a kill left half written; whatever else lies here stays."""
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.adapter, self.best, *(self.path / "checkpoints").glob("step-*")):
            shutil.rmtree(folder, ignore_errors=True)
        for events in self.tensorboard.glob("events.out.tfevents*"):
            events.unlink(missing_ok=True)
        self.recover()

    def recover(self) -> None:
        """Finish or undo what a kill cut short: half-written folders go, replaced ones come back."""
        for folder in (self.path, self.path / "checkpoints"):
            for old in folder.glob(".*.old"):
                recover(old.with_name(old.name[1 : -len(".old")]))
            for stage in folder.glob(".*.tmp-*"):
                shutil.rmtree(stage, ignore_errors=True) if stage.is_dir() else stage.unlink(missing_ok=True)

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = (self.path / "checkpoints").glob("step-*")
        return sorted(path for path in found if re.fullmatch(r"step-\d+", path.name) and (path / STATE).is_file())

    def newest_step(self) -> int:
        """The step of the newest checkpoint; -1: there is none."""
        return max((int(path.name.removeprefix("step-")) for path in self.checkpoints()), default=-1)

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with saving(self.metrics):
            self.metrics.parent.mkdir(parents=True, exist_ok=True)
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, see `read_history`."""
        return read_history(self.metrics)

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that will be done again."""
        kept = [entry for entry in self.history() if entry.get("step", 0) <= step]
        write_text(self.metrics, "".join(json.dumps(entry) + "\n" for entry in kept))


def read_history(metrics: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; none where there is no file, and a last one cut short by a kill is left out."""
    entries: list[dict[str, Any]] = []
    if metrics.is_file():
        for line in metrics.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return entries


def holds_a_set(folder: Path) -> bool:
    """Whether a set of runs was trained into ``folder``: its configuration names several adapters."""
    file = folder / "config.yaml"
    try:
        return bool(file.is_file() and read_yaml(file).get("adapters"))
    except ConfigError:  # somebody else's file
        return False


def how_to_resume(path: Path) -> str:
    """What to type to go on with the run, or the set of runs, in ``path``."""
    if (path / "config.yaml").is_file():
        return f"lora train --resume {path}"
    return f"fit(..., output_dir={str(path)!r}, resume=True)"


def save_checkpoint(
    run: RunFolder, model: LoRA, name: str, step: int, state: dict[str, Any], tensors: dict[str, Tensor], keep: int
) -> Path:
    """Write a checkpoint under its own name, then drop the oldest beyond ``keep``. Raises SaveError, losing nothing."""
    folder = run.path / "checkpoints" / f"step-{step:08d}"
    with atomic_folder(folder) as stage:
        write_adapter(model, name, stage)
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, stage / TRAINING)
        (stage / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
    for old in run.checkpoints()[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State and tensors of a checkpoint. Raises TrainingError naming the file that is broken."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return state, load_file(folder / TRAINING)
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(
            f"{folder}: this checkpoint is broken ({error}); delete it to go on from the one before"
        ) from None
