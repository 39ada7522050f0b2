"""Before a search: settings, its folder, the rows, and what a short probe makes of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lora.comparison.protocol import read
from lora.config import RunConfig
from lora.config.tuning import TuningConfig
from lora.errors import ConfigError, DataError
from lora.io.places import folder_to_write
from lora.model.base import load_base_config
from lora.plural import number_of
from lora.training.prepare import Rows, read_rows
from lora.tuning.final import BEST, FINAL
from lora.tuning.result import FILES, SETTINGS, load_settings
from lora.tuning.search import TRIALS
from lora.tuning.study import FILE
from lora.workflow.places import in_full

LOCK = ".tune.lock"
# A probe: rates half a decade apart over four decades, each for a tenth of the run's steps and 30 at least.
QUICK_RATES, QUICK_STEPS, QUICK_SHARE = 9, 30, 0.1


def settings_of(
    config: RunConfig | str | Path | None, tuning: TuningConfig | None, settings: dict[str, Any], resume: bool
) -> tuple[RunConfig, TuningConfig]:
    """Both kinds of settings, checked; of a search that is gone on with, its own. Raises ConfigError."""
    if tuning is not None and settings:
        raise ConfigError("give either a TuningConfig or keyword settings, not both")
    if resume:
        place = config.output if isinstance(config, RunConfig) else config
        if not place:
            raise ConfigError("resume needs the folder of the search to go on with")
        if tuning is not None or settings:
            raise ConfigError("resume goes on under the search's own settings; leave others out")
        return load_settings(Path(place).expanduser().absolute())
    if not isinstance(config, RunConfig):
        raise ConfigError("config: a RunConfig with model, data and output is needed")
    config = config.model_copy(deep=True)
    if tuning is None:
        own = config.tune.model_dump(exclude_unset=True) if config.tune is not None else {}
        tuning = TuningConfig.make({**own, **settings}, "tune")
    config.tune, training = None, config.training
    missing = [
        key for key, value in (("model", config.model), ("data.train", config.data.train), ("output", config.output))
        if not value
    ]  # fmt: skip
    problems = [f"{key}: is needed" for key in missing]
    if config.adapters:
        problems.append("adapters: a search makes its own; leave the entry out")
    if config.start:
        problems.append("start: all trials begin anew; leave it out")
    if training.eval_every is None:
        problems.append("training.eval_every: without evaluations trials cannot be compared; leave it out")
    if config.data.held_out == 0 and not config.data.validation:
        problems.append("data.held_out: with 0 there are no rows to compare trials on; leave it out")
    if tuning.quick:
        named = [key for key in ("space", "sampler", "pruner", "trials", "objectives", "storage", "seeds")
                 if key in tuning.model_fields_set]  # fmt: skip
        problems += [f"tune.{key}: a quick probe tries learning rates alone; leave it out" for key in named]
    if tuning.sampler == "cmaes" and len(tuning.objectives) > 1:
        problems.append("tune.sampler: cmaes follows a single objective; name one, or take tpe")
    if problems:
        raise ConfigError("\n".join(problems))
    if tuning.sampler != "grid" and not (tuning.trials or tuning.minutes or tuning.tokens):
        tuning = tuning.model_copy(update={"trials": 20})
    if tuning.test:
        named_test = RunConfig.make({"data": tuning.test})
        in_full(named_test)
        tuning = tuning.model_copy(update={"test": named_test.data.train})
    return config, tuning


def as_probe(config: RunConfig, tuning: TuningConfig, rate: float, rows: int) -> TuningConfig:
    """Make ``config`` the short run of a probe around ``rate``; the search that it is."""
    training = config.training
    per_epoch = -(-rows // (training.batch_size * training.accumulation))
    whole = training.max_steps or max(1, round(training.epochs * per_epoch))
    steps = min(whole, max(QUICK_STEPS, round(QUICK_SHARE * whole)))
    config.training = training.model_copy(
        update={"max_steps": steps, "schedule": "constant", "eval_every": steps, "best_metric": "loss"}
    )
    low, high = (float(f"{end:.3g}") for end in (rate / 100, rate * 100))
    space = {"learning_rate": {"low": low, "high": high, "log": True, "points": QUICK_RATES}}
    return tuning.model_copy(update={"space": space, "sampler": "grid", "pruner": "none", "seeds": 0,
                                     "objectives": ["loss"]})  # fmt: skip


def own_folder(config: RunConfig, resume: bool, overwrite: bool) -> Path:
    """The folder to write to; paths are written in full into ``config``. Raises ConfigError: it is not a search's own,
    or holds one and neither ``resume`` nor ``overwrite`` says what to do with it."""
    folder = folder_to_write(config.output or "", "output").absolute()
    ours = (folder / SETTINGS).is_file()
    if ours and not resume and not overwrite:
        raise ConfigError(
            f"output: {folder} already holds a search. Go on with it (--resume, resume=True), replace it (--overwrite, "
            "overwrite=True), or name another folder"
        )
    taken = (*FILES, FILE, TRIALS, FINAL, BEST, "adapter", "checkpoints", "config.yaml")
    others = [name for name in taken if (folder / name).exists()]
    if others and not ours:
        raise ConfigError(f"output: {folder} holds {others[0]}, which no search made; name another folder")
    config.output = str(folder)
    in_full(config)
    return folder


def clear(folder: Path) -> None:
    """Delete the search that ``folder`` holds."""
    for name in (TRIALS, FINAL, BEST):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (*FILES, FILE):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else searches into ``folder`` for the block; a kill lets go of it. Raises ConfigError.

    A folder in which nothing was written, since something was refused, is gone afterwards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"output: a search is writing into {folder} at this moment; wait for its end, or give this one a folder of "
            "its own (several can share one study: --storage)"
        ) from None
    try:
        yield
    finally:
        if {its.name for its in folder.iterdir()} <= {LOCK}:
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def rows_of(config: RunConfig, tuning: TuningConfig) -> tuple[Rows, list[str]]:
    """The rows, and sentences about who does what with which. Raises DataError."""
    assert config.model and config.data.train, "checked"
    if tuning.seeds and not tuning.quick:
        rows, said, _ = read(config, tuning.test)
        seen = number_of(len(rows.test or ()), "test row")
        return rows, [
            f"{len(rows.train):,} rows train; {len(rows.held or ()):,} validation rows choose settings and "
            f"checkpoints. The search never sees the {seen}, which measure what was chosen.",
            *said,
        ]
    kind = load_base_config(config.model, config.trust_remote_code)
    rows = read_rows(config.data.train, config.data.validation, config.data, config.training.seed, base=kind)
    config.data.streaming = rows.streamed
    rows.test = None
    if rows.held is None or not len(rows.held):
        raise DataError("no validation rows: trials are compared on them. Name some (--validation)")
    return rows, [f"{len(rows.train):,} rows train; {len(rows.held):,} validation rows choose. Nothing is tested."]
