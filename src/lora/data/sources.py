"""A source, as the user names it, to rows: a file, a folder, a hub id; ``#500`` behind it takes the first 500 rows.

Of several, ``#x2`` is a weight: an epoch takes each row twice; ``#500x0.5`` is half of the first 500. A ``#`` in the
name of a file that is there is part of its name.

A folder is read by the names of its files: ``train``, ``validation`` (or ``valid``, ``dev``, ``val``, ``eval``) and
``test``, also as ``train-00000-of-00003.parquet``, or folders of these names. A folder without such names is training
data if it holds one readable file, numbered parts of one, or plain text files only.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from lora.config import DataConfig, Source
from lora.data.hub import is_saved, load_hub, load_saved
from lora.data.readers import READERS, SPLIT_NAMES, STREAMED, read_file, stream_file
from lora.data.rows import Row
from lora.data.streams import ListOrStream, joined, through, too_large
from lora.errors import DataError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SourceFile:
    """Where rows of a split came from: a file and the SHA-256 of its bytes, or a hub id and that of its rows.

    ``weight``: how often an epoch takes each of them, where rows are trained on.
    """

    name: str
    split: str
    sha256: str
    weight: float | None = None


@dataclass
class Part:
    """The rows of one source, by split; None where there is no such split.

    Attributes:
        name: as the user gave it, without its marks.
        weight: how often an epoch takes each training row.
        columns: role -> column, where the source has names of its own.
    """

    name: str
    train: ListOrStream
    validation: ListOrStream | None = None
    test: ListOrStream | None = None
    weight: float = 1.0
    columns: dict[str, str] = field(default_factory=dict)


@dataclass
class Splits:
    """Rows by source and split.

    Attributes:
        given: validation rows that the settings name, which win over those of the sources.
        notes: what a user should know, in full sentences.
        sources: every file that was read, for the lineage of a result.
    """

    parts: list[Part]
    given: list[Row] | None = None
    notes: list[str] = field(default_factory=list)
    sources: list[SourceFile] = field(default_factory=list)

    @property
    def train(self) -> ListOrStream:
        return joined([part.train for part in self.parts]) or []

    @property
    def validation(self) -> ListOrStream | None:
        return self.given if self.given is not None else joined([part.validation for part in self.parts])

    @property
    def test(self) -> ListOrStream | None:
        return joined([part.test for part in self.parts])


def load_rows(source: str, split: str | None = None) -> list[Row]:
    """The rows of ``source``; ``split`` (default: train) picks one where the source holds several.

    Raises DataError: nothing there, nothing readable, no such split, or whatever is wrong inside a file.
    """
    return list(_load(source, [_split_name(split)], must=_split_name(split))[0][_split_name(split)])


def named_sources(train: str | Sequence[str | Source] | None) -> list[Source]:
    """The sources that ``data.train`` names, each with the weight of its ``#x`` mark.

    Raises DataError: none, one that is named twice, or that has two weights.
    """
    if train is None:
        raise DataError("no training data is named; give it as data.train: a file, a folder or a hub id")
    entries = _listed(train) if isinstance(train, str) else train
    out: dict[str, Source] = {}
    for entry in entries:
        source = Source(path=entry) if isinstance(entry, str) else entry
        mark = _parse(source.path)
        if mark.weight is not None and source.weight not in (1.0, mark.weight):
            raise DataError(f"{source.path}: has the weight {source.weight:g} too; keep one of the two")
        if mark.weight is not None and not 0 < mark.weight <= 100:
            raise DataError(f"{source.path}: the weight must be above 0 and at most 100")
        name = str(mark.path)
        if name in out:
            raise DataError(f"{name}: is named twice as training data; give it a weight instead: {name}#x2")
        path = name if mark.limit is None else f"{name}#{mark.limit}"
        out[name] = source.model_copy(update={"path": path, "weight": mark.weight or source.weight})
    return list(out.values())


def _listed(text: str) -> list[str]:
    """``a.jsonl, b.jsonl`` as two; what is there as it stands is one, comma and all."""
    parts = [part.strip() for part in text.split(",")]
    # Path.exists() raises for names that no file can have.
    return parts if len(parts) > 1 and all(parts) and not os.path.exists(_parse(text).path) else [text]


def load_splits(config: DataConfig) -> Splits:
    """Training rows of every source, and validation and test rows where a source has them too.

    ``config.validation`` wins over validation rows found beside the training rows. Raises DataError as ``load_rows``.
    """
    named = named_sources(config.train)
    wanted = [name for name in SPLITS if not (name == "validation" and config.validation is not None)]
    splits = Splits([])
    stream = config.streaming
    size = sum(_bytes(_parse(source.path).path) for source in named)
    if stream is None and too_large(size, kept=config.cache is not False):
        stream = True
    for source in named:
        rows, files, notes = _load(source.path, wanted, must="train", stream=stream)
        splits.parts.append(Part(str(_parse(source.path).path), **rows, weight=source.weight, columns=source.columns))
        splits.sources += [replace(file, weight=source.weight) if file.split == "train" else file for file in files]
        splits.notes += notes
    if config.validation is not None:
        # The same folder for both means its validation split; the same file would mean evaluating on training data.
        same = any(_parse(config.validation)[:2] == _parse(source.path)[:2] for source in named)
        more, files, notes = _load(config.validation, ["validation"], must="validation", strict=same)
        splits.given = list(more["validation"])
        splits.sources += files
        splits.notes += notes
    return splits


def _bytes(path: Path) -> int:
    """The size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*") if path.is_dir() else []
    return sum(file.stat().st_size for file in files if file.suffix.lower() in READERS)


Loaded = tuple[dict[str, ListOrStream], list[SourceFile], list[str]]


def _load(source: str, wanted: list[str], must: str, strict: bool = False, stream: bool | None = False) -> Loaded:
    """The ``wanted`` splits that ``source`` has; ``must`` has to be among them.

    A source with a single split serves as whatever is asked for (a file named as validation data is validation data),
    unless ``strict``. ``stream``: training rows are not to be held in memory; None: those of a hub's if they are large.
    """
    path, limit, weight = _parse(source)
    if weight is not None:
        raise DataError(f"{source}: a weight (#x{weight:g}) is for training data; leave it out here")
    if not path.exists() and _is_hub_id(str(path)):
        return _from_hub(str(path), load_hub(str(path), wanted, must, limit, stream))
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder{_nearest(path)}")
    if path.is_dir() and is_saved(path):
        return _from_hub(str(path), load_saved(path, wanted, must, limit, stream))
    files, notes = _folder(path) if path.is_dir() else ({None: [path]}, [])
    lots: dict[str, list[ListOrStream]] = {}
    sources: list[SourceFile] = []
    # One unnamed lot of files is the split that was asked for.
    plan = {must: files[None]} if None in files else {name: files[name] for name in wanted if name in files}
    if must not in plan or (strict and None in files):
        if path.is_file():
            raise DataError(f"{path}: is the training data too; name other rows for the {must} split, or leave it out")
        have = ", ".join(name for name in files if name) or "rows without the name of a split"
        raise DataError(
            f"{path}: has no {must} split (it has: {have}); name the file or folder to use, as in {path}/<name>"
        )
    for split, paths in plan.items():
        for file in paths:
            if stream and split == "train" and file.suffix.lower() in STREAMED:
                kept: dict[str, ListOrStream] = {split: stream_file(file, limit)}
            else:
                kept = _of_file(file, read_file(file, limit), split, wanted if None in files else [split], must)
                if stream and split == "train":
                    notes.append(f"{file} is held in memory: only {', '.join(STREAMED)} are read in parts.")
            for name, some in kept.items():
                lots.setdefault(name, []).append(some)
                sources.append(SourceFile(str(file), name, sha256(file)))
    rows = {name: joined(some) or [] for name, some in lots.items()}
    return {name: through(some, lambda it: islice(it, limit)) for name, some in rows.items()}, sources, notes


def _of_file(
    file: Path, part: list[Row] | dict[str, list[Row]], split: str, wanted: list[str], must: str
) -> dict[str, ListOrStream]:
    """Rows per split of what one file held: usually one lot; a .json file may hold several."""
    if isinstance(part, list):
        return {split: part}
    if len(part) == 1:
        return {split: next(iter(part.values()))}
    if must in wanted and must not in part:
        raise DataError(f"{file}: has no {must} split (it has: {', '.join(part)})")
    return {name: part[name] for name in wanted if name in part}


def _from_hub(name: str, rows: dict[str, ListOrStream]) -> Loaded:
    sources = [SourceFile(name, split, rows_sha256(some)) for split, some in rows.items()]
    return rows, sources, []


def _split_name(split: str | None) -> str:
    name = SPLIT_NAMES.get((split or "train").lower())
    if name is None:
        raise DataError(f"split {split!r} is unknown; known: {', '.join(SPLIT_NAMES)}")
    return name


class Mark(NamedTuple):
    """A source's path, how many rows are taken of it (None: all), and its weight where it says one."""

    path: Path
    limit: int | None = None
    weight: float | None = None


def _parse(source: str) -> Mark:
    """What ``source`` says; a path that exists as it stands wins over the reading of ``#`` as a mark."""
    match = re.fullmatch(r"(.+)#(?=.)(\d+)?(?:x(\d+\.?\d*|\.\d+))?", source, re.DOTALL)
    if match is None or os.path.exists(os.path.expanduser(source)):
        return Mark(Path(source).expanduser())
    if match[2] and int(match[2]) == 0:
        raise DataError(f"{source}: '#0' takes no row; give at least 1, or leave it out for all rows")
    return Mark(Path(match[1]).expanduser(), int(match[2]) if match[2] else None, float(match[3]) if match[3] else None)


def _is_hub_id(name: str) -> bool:
    """``name``, ``owner/name`` or either with ``:config``; anything that looks like a file is none."""
    part = r"[A-Za-z0-9][\w.\-]*"
    return Path(name).suffix.lower() not in READERS and re.fullmatch(rf"{part}(/{part})?(:[\w.\-]+)?", name) is not None


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; its folder {path.parent} is not there either"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else "; check the name"


def _folder(path: Path) -> tuple[dict[str | None, list[Path]], list[str]]:
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


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rows_sha256(rows: Iterable[Row]) -> str:
    """SHA-256 of rows that come from no file of ours: of their JSON, keys sorted."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(
            json.dumps(row, sort_keys=True, default=str, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        )
    return digest.hexdigest()
