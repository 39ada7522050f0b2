"""Whether something can be written at a place: told before the work, not after it."""

from __future__ import annotations

import os
from pathlib import Path

from lora.errors import ConfigError


def file_to_write(place: str | Path, said: str) -> Path:
    """``place`` as a file that can be written, its folder made if need be. Raises ConfigError, led by ``said``."""
    path = Path(place).expanduser()
    if path.is_dir():
        raise ConfigError(f"{said}: {place} is a folder; name a file")
    _check_above(path, said)
    return path


def folder_to_write(place: str | Path, said: str) -> Path:
    """``place`` as a folder that can be written to, or made. Raises ConfigError, led by ``said``."""
    path = Path(place).expanduser()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{said}: {place} is a file; name a folder")
    _check_above(path / "file in it", said)
    return path


def _check_above(path: Path, said: str) -> None:
    """Look at the nearest folder above ``path`` that is there."""
    above = next(folder for folder in path.absolute().parents if folder.exists() or folder.is_symlink())
    if not above.is_dir():
        raise ConfigError(f"{said}: {above} is no folder, so nothing can be written in it; name another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{said}: nothing may be written in {above}; name another place, or change its permissions")
