"""Going on with a run, or a set of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora.config import DataConfig, RunConfig
from lora.errors import ConfigError
from lora.io.run import how_to_resume
from lora.overrides import load_config
from lora.workflow.measuring import Say
from lora.workflow.run import TrainResult, train


def resume(
    folder: str | Path, say: Say | None = None, progress: bool | None = None, overrides: dict[str, Any] | None = None
) -> TrainResult | dict[str, TrainResult]:
    """Go on with the run, or the set of runs, in ``folder`` under its own configuration.

    Args:
        overrides: of settings that do not change what the run is: where base and data lie now, and those of training
            that leave its mathematics alone.

    Raises:
        ConfigError: no run there, or other settings among ``overrides``.
    """
    from lora.training.trainee import FREE_ON_RESUME

    path = Path(folder).expanduser() / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder}: {_why_not(path.parent)}")
    free = {
        "model",
        "data.train",
        "data.validation",
        "data.replay",
        "data.cache",
        "data.streaming",
        "probe",
        "slices",
        "robustness",
        "memory_gib",
        *(f"training.{key}" for key in FREE_ON_RESUME),
    }
    then, now = load_config(path), dict(overrides or {})
    fixed = [key for key in now if key not in free and _differs(then, path, key, now[key])]
    if "data.replay" in now and not _replay_moved(then, now):
        fixed.append("data.replay (all but its path)")
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)}: a run goes on with the settings it began with, to the result of one that was never "
            f"stopped. May change: {', '.join(sorted(free))}.\n"
            f"To train its adapter further under other settings, begin a new run with it: lora train --start {folder} "
            "--data DATA --output ANOTHER_FOLDER ..."
        )
    config = load_config(path, {key: value for key, value in now.items() if key in free})
    config.output = str(folder)
    if config.adapters:
        from lora.workflow.many import train_many

        return train_many(config, resume=True, say=say, progress=progress)
    return train(config, resume=True, say=say, progress=progress)


def _why_not(folder: Path) -> str:
    """Why ``folder``, which has no ``config.yaml``, cannot be resumed, and what to do instead."""
    anew = "start it anew, by the command that it was started with, without --resume"
    if not folder.exists():
        return f"there is no such folder. If its run was stopped before training began, nothing was trained yet: {anew}"
    if not folder.is_dir():
        return "is a file; name the folder of a run"
    for above in list(folder.absolute().parents)[:2]:
        inside = folder.absolute().relative_to(above).parts[0] in ("adapter", "checkpoints")
        if inside and (above / "config.yaml").is_file():
            return f"is a part of a run; go on with that: {how_to_resume(above)}"
    if (folder / "metrics.jsonl").is_file() or any((folder / "checkpoints").glob("step-*")):
        return f"has no config.yaml, so it was trained from Python; go on with it there: {how_to_resume(folder)}"
    if any(not entry.name.startswith(".") for entry in folder.iterdir()):
        return f"holds no run: there is no config.yaml. If one was stopped here, nothing was trained yet: {anew}"
    return f"nothing was trained here yet, the run was stopped before that: {anew}"


def _differs(then: RunConfig, path: Path, key: str, value: Any) -> bool:
    """Whether setting ``key`` to ``value`` makes another run than the one that began with ``then``."""
    now = load_config(path, {key: value})
    if key == "output":
        return Path(now.output or "").expanduser().absolute() != Path(then.output or "").absolute()
    return now != then


def _replay_moved(then: RunConfig, now: dict[str, Any]) -> bool:
    """Whether ``data.replay`` names another place and nothing else; it then has the share and columns of the run."""
    before, after = then.data.replayed, DataConfig.make({"replay": now["data.replay"]}).replayed
    if before is None or after is None:
        return before == after
    now["data.replay"] = before.model_copy(update={"path": after.path}).model_dump()
    return all(getattr(after, key) == getattr(before, key) for key in after.model_fields_set - {"path"})
