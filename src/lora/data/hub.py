"""Data sets of the Hugging Face hub, and folders that its library saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora.data.readers import SPLIT_NAMES, name_classes
from lora.data.rows import Row, located
from lora.errors import DataError
from lora.hub import offline_unless_reachable


def load_hub(name: str, wanted: list[str], must: str, limit: int | None = None) -> dict[str, list[Row]]:
    """Rows of the ``wanted`` splits of the hub's data set ``name`` (``owner/name`` or ``owner/name:config``).

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
    return _rows(name, found, wanted, must, limit)


def is_saved(path: Path) -> bool:
    """Whether ``datasets`` wrote this folder with ``save_to_disk``."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def load_saved(path: Path, wanted: list[str], must: str, limit: int | None = None) -> dict[str, list[Row]]:
    """Rows of a folder that ``save_to_disk`` wrote; a single data set serves as ``must``."""
    import datasets

    found = _guarded(
        f"{path}: not readable as a saved data set", lambda: datasets.load_from_disk(str(path)), "save it anew"
    )
    return _rows(str(path), found, wanted, must, limit)


def _guarded(what: str, load: Callable[[], Any], remedy: str, with_reason: bool = True) -> Any:
    try:
        return load()
    except Exception as error:  # the library raises whatever its file systems, parsers and HTTP clients raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        # Of a hub that was not even asked, the library says that someone switched it off.
        reason = f" ({type(error).__name__}: {first})" if with_reason else ""
        raise DataError(f"{what}{reason}; {remedy}") from error


def _rows(name: str, found: Any, wanted: list[str], must: str, limit: int | None) -> dict[str, list[Row]]:
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
    rows: dict[str, list[Row]] = {}
    for split in [split for split in wanted if split in parts]:
        part = parts[split]
        some = part.select(range(min(limit or len(part), len(part)))).to_list()
        name_classes(some, part.features.to_dict())
        if not some:
            raise DataError(f"{name}: its {split} split is empty")
        rows[split] = located(some, f"{name} ({split})")
    return rows
