"""Rows to token ids, in parts that are put together as if they had been one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lora.tasks.base import Encoded, NoneLeft, Row, Task
from lora.tasks.sequence import CutNote


def encode(
    task: Task, rows: list[Row], tokenizer: Any, max_length: int, shares: Sequence[tuple[int, float]] = ()
) -> Encoded:
    """`Task.encode` of training rows, and what each source came to.

    Args:
        shares: rows and weight of each source, one after another; empty: one source.
    """
    if not shares:
        return task.encode(rows, tokenizer, max_length)
    whole = Encoded([], [], [])
    notes, start = list[list[str]](), 0
    for number, weight in shares:
        part = _encoded(task, rows[start : start + number], tokenizer, max_length)
        for example in part.examples:
            example["row"] += start
        whole.examples += part.examples
        whole.lengths += part.lengths
        whole.supervised += part.supervised
        whole.truncated += part.truncated
        whole.shares.append((len(part), weight))
        notes.append(part.notes)
        start += number
    whole.notes = joined_notes(notes, len(rows))
    if not whole.examples:
        raise NoneLeft(f"{whole.notes[0]} None is left; raise data.max_length", whole.notes)
    return whole


def _encoded(task: Task, rows: list[Row], tokenizer: Any, max_length: int) -> Encoded:
    """`Task.encode`, where no example may be left."""
    try:
        return task.encode(rows, tokenizer, max_length)
    except NoneLeft as nothing:
        return Encoded([], [], [], notes=nothing.notes)


def joined_notes(lots: Iterable[list[str]], total: int) -> list[str]:
    """The notes about parts of ``total`` rows as those about all: each once, numbers added up."""
    cut: dict[tuple[int, str], list[CutNote]] = {}
    order: dict[Any, str | None] = {}
    for note in _all(lots):
        if isinstance(note, CutNote):
            cut.setdefault((note.max_length, note.then), []).append(note)
            order.setdefault((note.max_length, note.then), None)
        else:
            order.setdefault(note, note)
    return [CutNote.of(cut[key], total) if note is None else note for key, note in order.items()]


def _all(lots: Iterable[list[str]]) -> Iterator[str]:
    for notes in lots:
        yield from notes
