"""Rows that know where they came from, so that whatever is wrong with one is said with its file and its number there.

A place must survive the held-out split, slices and shards; so it is with the row and not with the list.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

Row = dict[str, Any]
SHOWN = 5  # rows named of each kind of problem; the rest is counted


@dataclass(frozen=True)
class Origin:
    """Where rows came from.

    Attributes:
        name: a file, a hub id, or what the caller's rows are called; empty: nothing is known.
        unit: what its rows are counted in: lines where an editor shows them, else rows.
    """

    name: str = ""
    unit: str = "row"


class SourceRow(Row):
    """A row and its place; equal to the plain dict of the same cells. Numbers count from 1."""

    __slots__ = ("number", "origin")

    def __init__(self, cells: Mapping[str, Any], origin: Origin, number: int) -> None:
        super().__init__(cells)
        self.origin = origin
        self.number = number


def located(rows: Iterable[Row], name: str, unit: str = "row", first: int = 1) -> list[Row]:
    """``rows`` numbered from ``first`` in the order in which they stand in ``name``; those that know their place keep
    it."""
    origin = Origin(name, unit)
    return [row if isinstance(row, SourceRow) else SourceRow(row, origin, n) for n, row in enumerate(rows, start=first)]


def as_python(row: Row) -> Row:
    """``row`` with numbers of numpy, torch or decimal as Python's own, and vectors as lists: by its type it is told
    what a label is."""
    changed = {
        key: float(value) if isinstance(value, Decimal) else value.tolist()
        for key, value in row.items()
        if isinstance(value, Decimal) or (hasattr(value, "tolist") and getattr(value, "ndim", None) in (0, 1))
    }
    if changed:
        row = copy.copy(row)
        row.update(changed)
    return row


def origins(rows: Iterable[Row]) -> list[Origin]:
    """Every origin of ``rows``, each once, in their order."""
    return list(dict.fromkeys(_origin(row) for row in rows))


def named(rows: Iterable[Row]) -> str:
    """What to put before a message about ``rows`` as a whole: ``data.jsonl: ``; nothing where no origin is known."""
    names = list(dict.fromkeys(origin.name for origin in origins(rows) if origin.name))
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}: " if names else ""


def places(rows: Sequence[Row], indices: Sequence[int], with_names: bool = True) -> str:
    """Where the rows at the 0-based ``indices`` stand, as in ``data.jsonl lines 2, 3 and 4 more``."""
    numbers: dict[Origin, list[int]] = {}
    for index in indices[:SHOWN]:
        row = rows[index]
        numbers.setdefault(_origin(row), []).append(row.number if isinstance(row, SourceRow) else index + 1)
    parts = [
        (f"{origin.name} " if with_names and origin.name else "")
        + f"{origin.unit}{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
        for origin, found in numbers.items()
    ]
    more = len(indices) - SHOWN
    return "; ".join(parts) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Places:
    """Where some rows stand; those of several parts can be added.

    Attributes:
        first: the first of them, as many as are named.
        count: of all.
    """

    first: tuple[Row, ...]
    count: int

    @classmethod
    def of(cls, rows: Sequence[Row], indices: Sequence[int]) -> Places:
        """Of the rows at the 0-based ``indices``."""
        its = [located([rows[index]], "", first=index + 1)[0] for index in indices[:SHOWN]]
        return cls(tuple(its), len(indices))

    def __add__(self, other: Places) -> Places:
        return Places((self.first + other.first)[:SHOWN], self.count + other.count)

    def __str__(self) -> str:
        return places(self.first, range(self.count))


def _origin(row: Row) -> Origin:
    return row.origin if isinstance(row, SourceRow) else Origin()
