"""Which files of a folder are which split, by their names.

``train``, ``validation`` (or ``valid``, ``dev``, ``val``, ``eval``) and ``test``, also as
``train-00000-of-00003.parquet``, or folders of these names. A folder without such names is training data if it holds
one readable file, numbered parts of one, or plain text files only.
"""

from __future__ import annotations

import re
from pathlib import Path

from lora.data.readers import READERS
from lora.data.split_names import SPLIT_NAMES
from lora.errors import DataError


def by_split(path: Path) -> tuple[dict[str | None, list[Path]], list[str]]:
    """Files of each split in the folder ``path`` (key None: files that name no split), and notes."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    readable = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in READERS]
    named: dict[str | None, list[Path]] = {}
    spelled: dict[str, set[str]] = {}
    for entry in [*readable, *(entry for entry in entries if entry.is_dir())]:
        match = re.fullmatch(r"([A-Za-z]+)([-_.]?\d[-_.\w]*)?", entry.stem if entry.is_file() else entry.name)
        split = SPLIT_NAMES.get(match[1].lower()) if match else None
        if match is not None and split is not None:
            files = [entry] if entry.is_file() else _unnamed(entry)
            named.setdefault(split, []).extend(files)
            spelled.setdefault(split, set()).add(f"{match[1]}{entry.suffix if entry.is_file() else '/'}")
    double = [f"{split}: {', '.join(sorted(names))}" for split, names in spelled.items() if len(names) > 1]
    if double:
        raise DataError(f"{path}: more than one candidate for a split ({'; '.join(double)}); name the file to use")
    if not named:
        return {None: _unnamed(path)}, []
    left = [entry.name for entry in readable if entry not in [file for files in named.values() for file in files]]
    return named, [f"Not read in {path}: {', '.join(left)} (the names are no split's)."] if left else []


def _unnamed(path: Path) -> list[Path]:
    """The files of a folder that names no splits: one file, numbered parts of one, or plain texts only."""
    readable = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.suffix.lower() in READERS)
    readable = [entry for entry in readable if not entry.name.startswith(".")]
    if not readable:
        raise DataError(f"{path}: no readable file in this folder; readable: {', '.join(READERS)}")
    if len({re.sub(r"\d+", "0", entry.name) for entry in readable}) == 1:
        return readable
    # Folders of plain text often carry a README.txt; it is text like the others and no one can tell.
    if all(entry.suffix.lower() == ".txt" for entry in readable):
        return readable
    names = ", ".join(entry.name for entry in readable[:8]) + (" …" if len(readable) > 8 else "")
    raise DataError(f"{path}: several files and none named train ({names}); name the one to use, as in {readable[0]}")
