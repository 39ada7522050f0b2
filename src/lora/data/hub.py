"""Data sets of the Hugging Face hub, and folders that its library saved."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora.data.rows import Origin, Row, SourceRow, as_python, located
from lora.data.split_names import SPLIT_NAMES
from lora.data.streams import ListOrStream, RowStream, too_large
from lora.data.tables import BATCH, name_classes
from lora.errors import DataError
from lora.hub import offline_unless_reachable


def load_hub(
    name: str, wanted: list[str], must: str, limit: int | None = None, stream: bool | None = False
) -> dict[str, ListOrStream]:
    """Rows of the ``wanted`` splits of the hub's data set ``name`` (``owner/name`` or ``owner/name:config``).

    ``stream``: the training rows are not to be held in memory; None: if they are large.

    Raises DataError where it cannot be loaded or has no split ``must``.
    """
    import datasets

    path, _, subset = name.partition(":")
    with offline_unless_reachable(path) as reachable:
        found = _guarded(
            f"{name}: no such file or folder here, and "
            + ("not loadable from the hub either" if reachable else "the hub cannot be reached"),
            lambda: datasets.load_dataset(path, subset or None),
            "check the name and the network, or give a local file",
            with_reason=reachable,
        )
    return _rows(name, found, wanted, must, limit, stream)


def is_saved(path: Path) -> bool:
    """Whether ``datasets`` wrote this folder with ``save_to_disk``."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def load_saved(
    path: Path, wanted: list[str], must: str, limit: int | None = None, stream: bool | None = False
) -> dict[str, ListOrStream]:
    """Rows of a folder that ``save_to_disk`` wrote; a single data set serves as ``must``."""
    import datasets

    found = _guarded(
        f"{path}: not readable as a saved data set", lambda: datasets.load_from_disk(str(path)), "save it anew"
    )
    return _rows(str(path), found, wanted, must, limit, stream)


def _guarded(what: str, load: Callable[[], Any], remedy: str, with_reason: bool = True) -> Any:
    try:
        return load()
    except Exception as error:  # the library raises whatever its file systems, parsers and HTTP clients raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        # Of a hub that was not even asked, the library says that someone switched it off.
        reason = f" ({type(error).__name__}: {first})" if with_reason else ""
        raise DataError(f"{what}{reason}; {remedy}") from error


def _rows(
    name: str, found: Any, wanted: list[str], must: str, limit: int | None, stream: bool | None
) -> dict[str, ListOrStream]:
    """``found``: a Dataset or a DatasetDict."""
    if not isinstance(found, dict):
        found = {must: found}
    elif len(found) == 1:
        found = {must: next(iter(found.values()))}
    parts: dict[str, Any] = {}
    for split, part in found.items():
        parts.setdefault(SPLIT_NAMES.get(str(split).lower(), str(split)), part)
    if must not in parts:
        raise DataError(f"{name}: has no {must} split (it has: {', '.join(map(str, found))})")
    rows: dict[str, ListOrStream] = {}
    for split in [split for split in wanted if split in parts]:
        part = parts[split]
        part = part.select(range(min(limit or len(part), len(part))))
        if not len(part):
            raise DataError(f"{name}: its {split} split is empty")
        if split == "train" and (too_large(part.data.nbytes) if stream is None else stream):
            rows[split] = stream_dataset(part, f"{name} ({split})")
        else:
            some = part.to_list()
            name_classes(some, part.features.to_dict())
            rows[split] = located(some, f"{name} ({split})")
    return rows


def stream_dataset(data: Any, name: str) -> RowStream:
    """The rows of a ``datasets.Dataset``, which is a file that is mapped into memory, or of an ``IterableDataset``."""
    features = data.features.to_dict() if getattr(data, "features", None) is not None else {}

    def rows() -> Iterator[Row]:
        origin, numbers = Origin(name), itertools.count(1)
        for batch in data.iter(BATCH):
            cells = zip(*batch.values(), strict=True)
            some = [as_python(dict(zip(batch, row, strict=True))) for row in cells]
            name_classes(some, features)
            yield from (SourceRow(row, origin, number) for row, number in zip(some, numbers, strict=False))

    return RowStream(rows, len(data) if hasattr(data, "__len__") else None)
