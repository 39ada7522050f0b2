"""Rows that are read again each time they are looked at, in place of a list that holds them all."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lora.data.rows import Row

SAMPLE = 2000  # rows that columns are recognised by; what labels are is seen from all rows
CHUNK, LETTERS = 1024, 1 << 22  # rows, and characters, that are held at a time
# Bytes of memory that rows take as Python's dicts for each byte of their file, and with their token ids as lists, where
# these are not kept on the disk; see benchmarks/streaming.py.
GROWTH, WITH_IDS = 5, 30


class RowStream:
    """Rows that ``make`` reads anew for every pass.

    Arguments:
        make: gives an iterator that begins at the first row; the same rows each time.
        length: how many there are, where that is known; else they are counted when it is asked for.
    """

    def __init__(self, make: Callable[[], Iterator[Row]], length: int | None = None) -> None:
        self._make = make
        self._length = length
        self._sample: list[Row] | None = None

    def __iter__(self) -> Iterator[Row]:
        return self._make()

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self)
        return self._length

    @property
    def sample(self) -> list[Row]:
        """Up to `SAMPLE` of the rows, drawn evenly from all of them, in their order; always the same."""
        if self._sample is None:
            draw, kept, count = random.Random(0), list[tuple[int, Row]](), 0
            for count, row in enumerate(self, start=1):
                if len(kept) < SAMPLE:
                    kept.append((count, row))
                elif (place := draw.randrange(count)) < SAMPLE:
                    kept[place] = (count, row)
            self._length = count
            self._sample = [row for _, row in sorted(kept, key=lambda pair: pair[0])]
        return self._sample


ListOrStream = list[Row] | RowStream


def joined(lots: Sequence[ListOrStream | None]) -> ListOrStream | None:
    """The rows of all that are there, one after another; None: none is."""
    there = [lot for lot in lots if lot is not None]
    if any(isinstance(lot, RowStream) for lot in there):
        return RowStream(lambda: itertools.chain.from_iterable(there))
    return [row for lot in there for row in lot] if there else None


def through(
    rows: ListOrStream, change: Callable[[Iterable[Row]], Iterator[Row]], length: int | None = None
) -> ListOrStream:
    """``rows`` as ``change`` gives them on: a list at once, a stream when it is read. ``length``: where it is known."""
    return RowStream(lambda: change(iter(rows)), length) if isinstance(rows, RowStream) else list(change(rows))


def looked_at(rows: ListOrStream) -> list[Row]:
    """Rows enough to see which columns there are."""
    return rows.sample if isinstance(rows, RowStream) else rows


def chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in lists of so many, or so much text, as may be held in memory."""
    chunk, letters = list[Row](), 0
    for row in rows:
        chunk.append(row)
        letters += sum(map(_letters, row.values()))
        if len(chunk) == CHUNK or letters >= LETTERS:
            yield chunk
            chunk, letters = [], 0
    if chunk:
        yield chunk


def _letters(cell: Any) -> int:
    """Characters of a cell: a text, or messages and the like."""
    if isinstance(cell, dict):
        cell = list(cell.values())
    return len(cell) if isinstance(cell, str) else sum(map(_letters, cell)) if isinstance(cell, (list, tuple)) else 0


def too_large(size: int, kept: bool = True) -> bool:
    """Whether rows of ``size`` bytes on the disk would take more than half of the memory that is free now.

    ``kept``: whether their token ids go to the disk.
    """
    import psutil

    return bool(size * (GROWTH if kept else WITH_IDS) > psutil.virtual_memory().available / 2)
