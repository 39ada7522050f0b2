"""Files that are either whole or not there: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lora.errors import SaveError


@contextmanager
def atomic_folder(folder: str | Path, keep_others: bool = False) -> Iterator[Path]:
    """A new folder to write to, which takes the place of ``folder`` when the block ends without an error.

    On an error, or a kill at any moment, what was at ``folder`` before is still there (after a kill between the two
    renames under its ``.old`` name, which `recover` puts back).

    Args:
        folder: where the new folder is to stand.
        keep_others: files of the old folder that the block did not write stay.

    Raises:
        SaveError: disk full, no permission, or a file of that name in the way.
    """
    folder = Path(os.path.realpath(folder))  # a link stays a link: what it leads to is replaced
    stage, old = _beside(folder, f"tmp-{os.getpid()}"), _beside(folder, "old")
    try:
        with saving(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists() and not folder.is_dir():
                raise SaveError(f"{folder}: is a file; a folder is to be written there. Name another place")
            if folder == Path.cwd():
                raise SaveError(f"{folder}: is the working folder, which cannot be replaced; name a folder inside it")
            recover(folder)
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
        yield stage
        with saving(folder):
            if keep_others and folder.is_dir():
                _carry_over(folder, stage)
            for path in stage.rglob("*"):
                if path.is_file():
                    _flush(path)
            _flush(stage)
            if folder.exists():
                folder.rename(old)
            stage.rename(folder)
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
        SaveError: disk full, no permission, or a file of that name in the way.
    """
    folder = Path(folder)
    stage, new = folder / f".tmp-{os.getpid()}", not folder.exists()
    try:
        with saving(folder):
            if folder.exists() and not folder.is_dir():
                raise SaveError(f"{folder}: is a file; a folder is to be written there. Name another place")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
        yield stage
        with saving(folder):
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


def recover(folder: str | Path) -> None:
    """Finish or undo an `atomic_folder` that a kill cut short."""
    folder = Path(folder)
    old = _beside(folder, "old")
    if old.is_dir():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)


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
        stage.unlink(missing_ok=True)


@contextmanager
def saving(what: str | Path) -> Iterator[None]:
    """Turn the errors of writing into SaveError with what to do about it."""
    try:
        yield
    except SaveError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SaveError(
                f"{what}: no space left on the disk; nothing saved before was touched. "
                "Free some space, or name another place"
            ) from error
        raise SaveError(
            f"{what}: cannot be written ({error.strerror or error}); nothing saved before was touched"
        ) from error
    except Exception as error:
        # safetensors reports failures of the operating system as an exception of its own.
        if type(error).__name__ != "SafetensorError":
            raise
        hint = "no space left on the disk" if "os error 28" in str(error) or "No space" in str(error) else str(error)
        raise SaveError(f"{what}: cannot be written ({hint}); nothing saved before was touched") from error


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
