"""Where a run lies: its folder, its paths in full, its ``config.yaml``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lora.config import RunConfig
from lora.data.naming import named_sources
from lora.errors import ConfigError
from lora.io.atomic import write_text
from lora.io.places import folder_to_write
from lora.io.run import RunFolder
from lora.overrides import save_config
from lora.workflow.tuned import adapter_folder, base_of

if TYPE_CHECKING:
    from lora.training.processes import Processes


def places(config: RunConfig, resume: bool, overwrite: bool) -> tuple[RunFolder, Path | None]:
    """The run's folder, and the adapter folder that training starts from. Paths are written in full into ``config``.

    In full: the run must be usable, and resumable, from any other folder.
    """
    if config.start and not config.model:
        config.model = base_of(adapter_folder(config.start))
    missing = [
        name
        for name, value in (("model", config.model), ("data.train", config.data.train), ("output", config.output))
        if not value
    ]
    if missing:
        raise ConfigError("\n".join(f"{name}: is needed" for name in missing))
    assert config.model and config.data.train and config.output
    folder_to_write(config.output, "output")
    run = RunFolder(config.output, resume=resume, overwrite=overwrite)
    # A checkpoint is an adapter folder too, and the one that was started from may be gone by now.
    saved = run.checkpoints() if resume else []
    start = None if not config.start else saved[-1] if saved else adapter_folder(config.start)
    if start and not resume and start.resolve().is_relative_to(run.path.resolve()):
        raise ConfigError(f"output: {run.path} holds the adapter that training starts from; name another folder")
    config.output = str(run.path.absolute())
    in_full(config)
    config.start = config.start and _absolute(config.start)
    return run, start


def in_full(config: RunConfig) -> None:
    """Write paths to base and data in full: the run must be usable, and resumable, from any other folder."""
    config.model = config.model and _absolute(config.model)
    config.data.validation = config.data.validation and _absolute(config.data.validation)
    config.probe = config.probe and _absolute(config.probe)
    if config.data.replay is not None:
        replay = config.data.replayed
        assert replay is not None
        there = replay.model_copy(update={"path": _absolute(replay.path)})
        config.data.replay = there.path if isinstance(config.data.replay, str) else there
    if isinstance(config.data.cache, str):
        config.data.cache = str(Path(config.data.cache).expanduser().absolute())
    if not config.data.train:
        return
    # A weight, or columns of its own, need a table; all else is a name as before.
    full = [
        source if source.columns or source.weight != 1 else source.path
        for source in (source.model_copy(update={"path": _absolute(source.path)})
                       for source in named_sources(config.data.train))
    ]  # fmt: skip
    config.data.train = full[0] if len(full) == 1 and isinstance(full[0], str) else full


def _absolute(place: str) -> str:
    """A local path in full, so that the run can be resumed from another folder; a hub id as it is."""
    if Path(place).expanduser().exists():
        return str(Path(place).expanduser().absolute())
    name, mark, rest = place.rpartition("#")
    path = Path(name).expanduser()
    return f"{path.absolute()}{mark}{rest}" if mark and path.exists() else place


@contextmanager
def config_file(config: RunConfig, folder: Path, processes: Processes) -> Iterator[None]:
    """Write ``config.yaml`` for the training in the block; put back what was there, or nothing, if that is refused.

    What was refused must not be what the next ``--resume`` goes by.
    """
    file, there = folder / "config.yaml", folder.is_dir()
    before = file.read_text(encoding="utf-8") if file.is_file() else None
    processes.wait()
    if processes.main:
        write_text(file, save_config(config))
    try:
        yield
    except ConfigError:
        if processes.main and before is not None:
            write_text(file, before)
        elif processes.main:
            file.unlink(missing_ok=True)
            if not there:
                with suppress(OSError):  # something else is in it by now
                    folder.rmdir()
        raise
