"""JSON lines that are written one by one and can be gone on with after a kill.

They stand in ``FILE.part`` until all are there; only then is there a ``FILE``. ``FILE.part.json`` says what they are
of: data, adapters, base, settings. One who goes on with anything else would mix two results, and is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from lora.errors import ConfigError
from lora.io.atomic import saving, write_text
from lora.io.places import file_to_write


class LinesFile:
    """A file to be written line by line.

    Arguments:
        place: the file. Nothing is written before `open`.
        resume: go on with what a killed process left.
        overwrite: replace what is there, finished or not.
        reads: what the work reads, which is never replaced.

    Raises:
        ConfigError: the place cannot be written to, or what is there is not to be replaced.
    """

    def __init__(
        self, place: str | Path, *, resume: bool = False, overwrite: bool = False, reads: str | None = None
    ) -> None:
        if resume and overwrite:
            raise ConfigError("--resume goes on with a file and --overwrite replaces it; give one of the two")
        path = Path(place).expanduser()
        self.part, self.job_file = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
        self._given = (place, resume, overwrite, reads)
        self._look()

    def _look(self) -> None:
        """Whether the place may be written to, as things are. Raises ConfigError."""
        place, resume, overwrite, reads = self._given
        path = Path(place).expanduser()
        begun = self.part.exists()
        if resume and path.is_file() and not begun:
            raise ConfigError(f"--output: {place} is finished already; --overwrite makes it anew")
        self.path = file_to_write(place, "--output", overwrite or (resume and begun), reads)
        if begun and not resume and not overwrite:
            raise ConfigError(
                f"--output: {self.part} is there, which was not finished; go on with it (--resume), or begin anew "
                "(--overwrite)"
            )
        self.resume = resume and begun

    @contextmanager
    def open(self, job: Mapping[str, Any], at_once: int) -> Iterator[Appender]:
        """Append lines in the block; at its end the file takes its place. An error leaves what there is to go on with.

        Args:
            job: what the lines are of, by names that a user knows.
            at_once: lines that are always computed together; one goes on behind the last that are all there.

        Raises:
            ConfigError: what is there is of another job, or another process is writing it.
            SaveError: writing failed; what was written can be gone on with.
        """
        with saving(self.path, "nothing was written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            yield from self._opened(job, at_once)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process writes the file in the block; a lock of one that was killed is none. Raises ConfigError."""
        lock = FileLock(self.part.with_name(self.part.name + ".lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ConfigError(
                f"--output: {self.path} is being written by another process; wait for it, or name another file"
            ) from None
        except (NotImplementedError, OSError):  # a file system without locks
            pass
        try:
            self._look()  # the other may have finished since
            yield
        finally:
            if lock.is_locked:
                Path(lock.lock_file).unlink(missing_ok=True)
                lock.release()

    def _opened(self, job: Mapping[str, Any], at_once: int) -> Iterator[Appender]:
        done, size = 0, 0
        if self.resume:
            self._check(job)
            done, size = complete_lines(self.part, at_once)
        comfort = f"what was written stays in {self.part}: go on with --resume"
        with saving(self.path, comfort):
            if not self.resume:
                self.part.unlink(missing_ok=True)
                write_text(self.job_file, json.dumps(job, indent=2, ensure_ascii=False) + "\n")
            file = self.part.open("a", encoding="utf-8")
        with file:
            file.truncate(size)
            yield Appender(file, done, comfort)
            with saving(self.path, comfort):
                os.fsync(file.fileno())
        with saving(self.path, comfort):
            self.part.replace(self.path)
            self.job_file.unlink(missing_ok=True)

    def _check(self, job: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self.job_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ConfigError(
                f"--resume: {self.job_file} is missing or damaged, so nothing says what {self.part} is of; begin anew "
                "(--overwrite)"
            ) from None
        now = json.loads(json.dumps(job))
        changed = [
            f"  {name}: {before.get(name, 'none')} then, {now.get(name, 'none')} now"
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise ConfigError(
                f"--resume: {self.part} was begun with something else:\n" + "\n".join(changed) + "\n"
                "give the same as then, or begin anew (--overwrite)"
            )


class Appender:
    """An open `LinesFile`.

    Attributes:
        done: lines that are in the file.
    """

    def __init__(self, file: IO[str], done: int, comfort: str) -> None:
        self._file, self.done, self._comfort = file, done, comfort

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; a kill from here on does not lose it."""
        with saving(self._file.name, self._comfort):
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
        self.done += 1


def complete_lines(path: Path, at_once: int) -> tuple[int, int]:
    """How many lines of ``path`` are whole, in full groups of ``at_once``, and where in bytes the last of them ends."""
    done, size, place = 0, 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            place += len(line)
            if number % at_once == 0:
                done, size = number, place
    return done, size
