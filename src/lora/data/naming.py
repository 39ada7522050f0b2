"""How a user names sources of rows: paths and hub ids, with a number of rows and a weight behind ``#``.

``#500`` takes the first 500 rows. Of several sources, ``#x2`` is a weight: an epoch takes each row twice; ``#500x0.5``
is half of the first 500. A ``#`` in the name of a file that is there is part of its name.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lora.config import Source
from lora.data.readers import READERS
from lora.errors import DataError


class Mark(NamedTuple):
    """A source's path, how many rows are taken of it (None: all), and its weight where it says one."""

    path: Path
    limit: int | None = None
    weight: float | None = None


def parse(source: str) -> Mark:
    """What ``source`` says; a path that exists as it stands wins over the reading of ``#`` as a mark."""
    match = re.fullmatch(r"(.+)#(?=.)(\d+)?(?:x(\d+\.?\d*|\.\d+))?", source, re.DOTALL)
    if match is None or os.path.exists(os.path.expanduser(source)):
        return Mark(Path(source).expanduser())
    if match[2] and int(match[2]) == 0:
        raise DataError(f"{source}: '#0' takes no row; give at least 1, or leave it out for all rows")
    return Mark(Path(match[1]).expanduser(), int(match[2]) if match[2] else None, float(match[3]) if match[3] else None)


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
        mark = parse(source.path)
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
    return parts if len(parts) > 1 and all(parts) and not os.path.exists(parse(text).path) else [text]


def is_hub_id(name: str) -> bool:
    """``name``, ``owner/name`` or either with ``:config``; anything that looks like a file is none."""
    part = r"[A-Za-z0-9][\w.\-]*"
    return Path(name).suffix.lower() not in READERS and re.fullmatch(rf"{part}(/{part})?(:[\w.\-]+)?", name) is not None


def nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; its folder {path.parent} is not there either"
    before, mark, behind = path.name.rpartition("#")
    if mark and (path.parent / before).exists():
        return f"; behind # stands a number of rows (#500), a weight (#x2) or both (#500x2), and not {behind!r}"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else "; check the name"
