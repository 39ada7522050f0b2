"""Rows kept for evaluation whose input is trained on too."""

from __future__ import annotations

from collections.abc import Iterable

from lora.data.rows import Row, places
from lora.data.streams import ListOrStream
from lora.plural import noun, number_of
from lora.tasks import Task


def trained_too(task: Task, train: Iterable[Row], kept: Iterable[Row]) -> list[int]:
    """Indices of the rows of ``kept`` that ask what a row of ``train`` asks, whatever they answer (see `Task.key`)."""
    keys = [task.key(row) for row in kept]
    wanted = set(keys)  # of the few rows, not of the many: training rows may be read in parts
    both = {key for row in train if (key := task.key(row)) in wanted}
    return [index for index, key in enumerate(keys) if key in both]


def overlap_notes(task: Task, train: ListOrStream, kept: Iterable[tuple[str, ListOrStream | None]]) -> list[str]:
    """A sentence about each of the named ``kept`` rows that are trained on too."""
    notes = []
    for name, rows in kept:
        if rows and (seen := trained_too(task, train, rows)):
            # Rows that are read in parts know their own places.
            at = places(rows, seen) if isinstance(rows, list) else places(_at(rows, seen), range(len(seen)))
            has = noun(len(seen), "has", "have")
            notes.append(
                f"{len(seen):,} of {number_of(len(rows), f'{name} row')} {has} an input that "
                f"is trained on too ({at}): they measure what was learned by heart; remove them from "
                "training."
            )
    return notes


def _at(rows: Iterable[Row], indices: Iterable[int]) -> list[Row]:
    wanted = set(indices)
    return [row for index, row in enumerate(rows) if index in wanted]
