"""A source, as the user names it (`lora.data.naming`), to rows: a file, a folder (`lora.data.folders`), a hub id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from lora.config import DataConfig
from lora.data.folders import by_split
from lora.data.hub import is_saved, load_hub, load_saved
from lora.data.naming import is_hub_id, named_sources, nearest, parse
from lora.data.readers import READERS, STREAMED, read_file, stream_file
from lora.data.rows import Row
from lora.data.split_names import SPLITS, split_name
from lora.data.streams import ListOrStream, joined, through, too_large
from lora.errors import DataError


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
    return load_rows_and_files(source, split)[0]


def load_rows_and_files(source: str, split: str | None = None) -> tuple[list[Row], list[SourceFile]]:
    """As `load_rows`, and the files (or the hub's data set) that the rows are from."""
    wanted = split_name(split)
    rows, files, _ = _load(source, [wanted], must=wanted)
    return list(rows[wanted]), files


def load_splits(config: DataConfig, of: Sequence[str] = SPLITS) -> Splits:
    """Training rows of every source, and validation and test rows where a source has them too and ``of`` names them.

    ``config.validation`` wins over validation rows found beside the training rows. Raises DataError as ``load_rows``.
    """
    named = named_sources(config.train)
    wanted = [name for name in of if not (name == "validation" and config.validation is not None)]
    splits = Splits([])
    stream = config.streaming
    size = sum(_bytes(parse(source.path).path) for source in named)
    if stream is None and too_large(size, kept=config.cache is not False):
        stream = True
    for source in named:
        rows, files, notes = _load(source.path, wanted, must="train", stream=stream)
        splits.parts.append(Part(str(parse(source.path).path), **rows, weight=source.weight, columns=source.columns))
        splits.sources += [replace(file, weight=source.weight) if file.split == "train" else file for file in files]
        splits.notes += notes
    if config.validation is not None:
        # The same folder for both means its validation split; the same file would mean evaluating on training data.
        same = any(parse(config.validation)[:2] == parse(source.path)[:2] for source in named)
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
    path, limit, weight = parse(source)
    if weight is not None:
        raise DataError(f"{source}: a weight (#x{weight:g}) is for training data; leave it out here")
    if not path.exists() and is_hub_id(str(path)):
        return _from_hub(str(path), load_hub(str(path), wanted, must, limit, stream))
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder{nearest(path)}")
    if path.is_dir() and is_saved(path):
        return _from_hub(str(path), load_saved(path, wanted, must, limit, stream))
    files, notes = by_split(path) if path.is_dir() else ({None: [path]}, [])
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
