"""The folder of things that are kept to be used again: where it is, how large it may grow, what is in it.

Its entries are folders that are whole or not there. Any may be deleted at any time; what is in use stays readable.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lora.io.atomic import atomic_folder, sweep

VARIABLE = "LORA_CACHE"
LIMIT = 16 << 30  # bytes; a data set of 4 billion tokens takes as much, most a hundredth


@dataclass(frozen=True)
class Entry:
    """A folder in the cache: its size in bytes, and when it was last used."""

    path: Path
    size: int
    used: float


class _AlreadyThere(Exception):
    pass


class Cache:
    """Entries by key in ``folder``; making one changes nothing on the disk."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = (Path(folder) if folder is not None else default_folder()).expanduser() / "tokens"

    def place(self, key: str) -> Path:
        return self.folder / key

    def used(self, key: str) -> None:
        """Note that an entry has been of use: those that have not been for longest are the first to go."""
        with suppress(OSError):  # a folder of somebody else's, which may be read
            os.utime(self.place(key))

    def drop(self, key: str) -> None:
        shutil.rmtree(self.place(key), ignore_errors=True)

    def add(self, key: str, write: Callable[[Path], None], limit: int = LIMIT) -> None:
        """Have ``write`` fill a folder, which becomes the entry; one that another process made meanwhile stays.

        Raises SaveError as `atomic_folder`, and whatever ``write`` does; then there is no entry.
        """
        with suppress(_AlreadyThere), atomic_folder(self.place(key)) as stage:
            write(stage)
            if self.place(key).is_dir():
                raise _AlreadyThere
        self._shrink(limit, key)

    def entries(self) -> list[Entry]:
        """What is there, longest unused first."""
        return sorted(self._found(), key=lambda entry: entry.used)

    def _found(self) -> Iterator[Entry]:
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            with suppress(OSError):  # gone meanwhile
                if path.is_dir() and not path.name.startswith("."):
                    size = sum(file.stat().st_size for file in path.iterdir())
                    yield Entry(path, size, path.stat().st_mtime)

    def _shrink(self, limit: int, newest: str) -> None:
        """Remove entries until ``limit`` bytes are left; never the ``newest``. And what killed processes left."""
        with suppress(OSError):
            sweep(self.folder)
            entries = self.entries()
            size = sum(entry.size for entry in entries)
            for entry in entries:
                if size > limit and entry.path.name != newest:
                    shutil.rmtree(entry.path, ignore_errors=True)
                    size -= entry.size


def default_folder() -> Path:
    """``$LORA_CACHE``, else ``lora`` in the user's folder of caches."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lora"
