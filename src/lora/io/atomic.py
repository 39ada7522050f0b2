"""Files that are either whole or not there: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lora.errors import SaveError

NOTHING_LOST = "nothing saved before was touched"
NOTHING_LEFT = f"nothing half-written is left, and {NOTHING_LOST}"


@contextmanager
def atomic_folder(folder: str | Path, keep_others: bool = False) -> Iterator[Path]:
    """A new folder to write to, which takes the place of ``folder`` when the block ends without an error.

    On an error, or a kill at any moment, what was at ``folder`` before is still there (after a kill between the two
    renames under its ``.old`` name, which `recover` puts back).

    Args:
        folder: where the new folder is to stand.
        keep_others: files of the old folder that the block did not write stay.

    Raises:
        SaveError: disk full, no permission, or a file of that name in the way; in the block too.
    """
    named, folder = folder, Path(os.path.realpath(folder))  # a link stays a link: what it leads to is replaced
    stage, old = _beside(folder, f"tmp-{os.getpid()}"), _beside(folder, "old")
    try:
        with saving(named, NOTHING_LEFT):
            folder.parent.mkdir(parents=True, exist_ok=True)
            _check_no_file(folder)
            if folder == Path.cwd():
                raise SaveError(f"{folder}: is the working folder, which cannot be replaced; name a folder inside it")
            recover(folder)
            sweep(folder.parent, folder.name)
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
            yield stage
            if keep_others and folder.is_dir():
                _carry_over(folder, stage)
            for path in stage.rglob("*"):
                if path.is_file():
                    _flush(path)
            _flush(stage)
            _put(stage, folder, old)
            _flush(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        recover(folder)


@contextmanager
def atomic_files(folder: str | Path) -> Iterator[Path]:
    """Files to put into ``folder``, each of which is whole or not there, when the block ends without an error.

    For a folder that others write to meanwhile: `atomic_folder` would take away what they have just written. A kill
    may leave some of the files new and others old.

    Raises:
        SaveError: as `atomic_folder`.
    """
    folder = Path(folder)
    stage, new = folder / f".tmp-{os.getpid()}", not folder.exists()
    try:
        with saving(folder, NOTHING_LEFT):
            _check_no_file(folder)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
            yield stage
            for path in stage.iterdir():
                _flush(path)
            for path in stage.iterdir():
                path.replace(folder / path.name)
            _flush(folder)
            new = False
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if new:
            with suppress(OSError):  # not there, or something else lies in it by now
                folder.rmdir()


def _check_no_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SaveError(f"{folder}: is a file; a folder is to be written there. Name another place")


def _carry_over(old: Path, new: Path) -> None:
    """Give ``new`` what ``old`` has and it has not; by hard links, so that large files cost nothing."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    for entry in old.iterdir():
        if (new / entry.name).exists():
            continue
        if entry.is_dir():
            shutil.copytree(entry, new / entry.name, copy_function=link)
        else:
            link(str(entry), str(new / entry.name))


def _put(stage: Path, folder: Path, old: Path) -> None:
    """Rename ``stage`` to ``folder``, and what was there to ``old``."""
    for last in (False, False, True):
        if folder.exists():
            folder.rename(old)
        try:
            stage.rename(folder)
        except OSError:
            # Between the two renames a reader may have taken this for a kill and put the old folder back.
            if last or not folder.exists():
                raise
        else:
            return


def recover(folder: str | Path) -> None:
    """Finish or undo an `atomic_folder` that a kill cut short."""
    folder = Path(os.path.realpath(folder))
    old = _beside(folder, "old")
    if old.is_dir():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):  # another process was faster
                old.rename(folder)


def is_there(folder: str | Path) -> bool:
    """Whether `atomic_folder` has left a folder there, now or as soon as one who is at it has renamed it."""
    folder = Path(os.path.realpath(folder))
    old = _beside(folder, "old")
    for _ in range(100):  # not for ever: where one may not write, what a kill left under the other name stays there
        if folder.is_dir():
            return True
        if not old.is_dir() and not folder.is_dir():  # in this order: the one goes only after the other came
            return False
        recover(folder)
    return False


ABANDONED = 600  # seconds: a stage of a process that is not here may be one of another machine, still at work


def sweep(parent: Path, name: str = "") -> None:
    """Delete stages that killed processes left in ``parent``: a merged model would fill the disk unseen.

    ``name``: of the folder that was to be written; empty: of any.
    """
    for stage in parent.iterdir():
        match = re.fullmatch(rf"\.{re.escape(name) if name else '.+'}\.tmp-(\d+)", stage.name)
        if match is None or _runs(int(match[1])):
            continue
        with suppress(OSError):
            newest = max(path.stat().st_mtime for path in [stage, *stage.rglob("*")])
            if time.time() - newest > ABANDONED:
                shutil.rmtree(stage, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # there, but another user's
        return True
    return True


def write_text(path: str | Path, text: str) -> None:
    """Replace the file at ``path`` in one step. Raises SaveError; the old file is then still there."""
    path = Path(path)
    stage = _beside(path, f"tmp-{os.getpid()}")
    try:
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stage.write_text(text, encoding="utf-8")
            _flush(stage)
            stage.replace(path)
    finally:
        with suppress(OSError):  # it may never have come to be: its folder may be a file
            stage.unlink()


@contextmanager
def saving(what: str | Path, comfort: str = NOTHING_LOST) -> Iterator[None]:
    """Turn the errors of writing into SaveError: what could not be written, why, what is left, what to do."""
    try:
        yield
    except SaveError:
        raise
    except Exception as error:
        code, reason = _cause(error)
        if reason is None:
            raise
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise SaveError(
                f"{what}: no space left on the disk; {comfort}. Free some space, or name another place"
            ) from error
        raise SaveError(f"{what}: cannot be written ({reason}); {comfort}") from error


def _cause(error: Exception) -> tuple[int | None, str | None]:
    """Number and words of a failure of the operating system; no words where it is none."""
    if isinstance(error, OSError):
        return error.errno, error.strerror or str(error)
    # safetensors and tokenizers are written in Rust and report such failures as exceptions of their own.
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number:
        return int(number.group(1)), os.strerror(int(number.group(1)))
    return None, str(error) if type(error).__name__ == "SafetensorError" else None


def _beside(path: Path, suffix: str) -> Path:
    """A sibling, so that a rename stays on one file system."""
    return path.parent / f".{path.name}.{suffix}"


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders cannot be flushed everywhere
            raise
    finally:
        os.close(handle)
