"""Whether the adapter can be saved, and comes back as it was."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora.checks.finding import Finding
from lora.checks.outputs import AGAIN, apart, logits_of
from lora.checks.steps import Trial
from lora.core.routing import BASE
from lora.errors import LoraError
from lora.training.memory import gib

if TYPE_CHECKING:
    from lora.model.lora import LoRA

TIMES = 4  # a checkpoint holds parameters, two moments, and perhaps the best parameters


def save(trial: Trial, output: Path | None) -> list[Finding]:
    """Save the adapter, read it again, and compare: `Finding`s on the disk, the files and their effect.

    Its parameters, which begin without effect, are others for the while.

    Args:
        output: where the run will write; None: a temporary folder.
    """
    place = _existing(output)
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".check-") as folder:
            return _save(trial, Path(folder))
    except OSError as error:
        return [_refused(f"{output or 'a temporary folder'} cannot be written to ({error.strerror or error})")]


def _save(trial: Trial, folder: Path) -> list[Finding]:
    found: list[Finding] = []

    def write() -> None:
        begun = time.perf_counter()
        trial.model.save_adapter(trial.name, folder / "adapter")
        seconds = time.perf_counter() - begun
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        found.append(_room(trial, size, folder, seconds))

    try:
        difference, before, base = compare(trial, write, lambda: trial.model.load_adapter(folder / "adapter", AGAIN))
    except (LoraError, OSError) as error:
        if not found:
            return [_refused(str(error))]
        if isinstance(error, OSError):
            raise
        return [*found, _lost(f"it cannot be read again ({error})")]
    if not torch.isfinite(before).all():
        return [*found, Finding("what is saved is what was trained", "skipped", "outputs are not finite")]
    if not difference <= 1e-6:
        return [*found, _lost(f"outputs differ by {difference:.0e} of the largest after saving and reading")]
    found.append(Finding("what is saved is what was trained", "passed", f"outputs differ by {difference:.0e}"))
    return [*found, _effect(before, base)]


def compare(trial: Trial, write: Callable[[], object], read: Callable[[], object]) -> tuple[float, Tensor, Tensor]:
    """How far apart the outputs for a row are before the adapter is written and after it is read again, as adapter
    `AGAIN`; those before, by parameters that have an effect; and the base's."""
    model, name, prepared = trial.model, trial.name, trial.prepared
    (row,) = trial.short_rows(1)
    with _with_effect(model, name):
        before = logits_of(model, name, prepared, row)
        write()
        try:
            read()
            after = logits_of(model, AGAIN, prepared, row)
        finally:
            if AGAIN in model.adapters:
                model.remove_adapter(AGAIN)
        return apart(before, after), before, logits_of(model, BASE, prepared, row)


def _refused(said: str) -> Finding:
    return Finding(
        "the adapter can be saved", "failed", said, "Hours of training would be lost with it.",
        "Make room, or choose another output folder.",
    )  # fmt: skip


def _room(trial: Trial, size: int, folder: Path, seconds: float) -> Finding:
    keep = trial.settings.keep_checkpoints + 2  # the best and the result beside them
    needed, free = TIMES * size * keep, shutil.disk_usage(folder).free
    said = f"{gib(size)} in {seconds:.1f} s; the run needs about {gib(needed)} of the {gib(free)} free there"
    if needed > free:
        return Finding(
            "the adapter can be saved", "failed", said, "The disk would be full in the middle of the run.",
            "Make room, choose another output folder, or lower keep_checkpoints.",
        )  # fmt: skip
    return Finding("the adapter can be saved", "passed", said)


def _lost(said: str) -> Finding:
    return Finding(
        "what is saved is what was trained", "failed", said, "The saved adapter would not be the trained one.",
        "This should not happen: please report it with the model's name and these settings.",
    )  # fmt: skip


def _effect(own: Tensor, base: Tensor) -> Finding:
    name = "the adapter has an effect"
    if own.shape != base.shape or not torch.equal(own, base):
        return Finding(name, "passed", "outputs with it differ from the base's")
    return Finding(
        name, "failed", "outputs with and without it are the same", "It would be trained and served in vain.",
        "Choose other targets: those matched take no part in this task.",
    )  # fmt: skip


@contextmanager
@torch.no_grad()
def _with_effect(model: LoRA, name: str) -> Iterator[None]:
    """For the block, parameters that are all zero are not: at the start an adapter computes what the base does."""
    parameters = model.adapter_parameters(name)
    before = {key: p.detach().clone() for key, p in parameters.items() if not p.any()}
    generator = torch.Generator().manual_seed(0)
    for key in before:
        parameters[key].copy_(torch.randn(parameters[key].shape, generator=generator) * 0.02)
    try:
        yield
    finally:
        for key, value in before.items():
            parameters[key].copy_(value)


def _existing(folder: Path | None) -> Path | None:
    """The folder itself, or the nearest one above it that is there."""
    if folder is None:
        return None
    return next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), None)
