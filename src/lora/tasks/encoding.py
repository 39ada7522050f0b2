"""Rows to token ids, in parts that are put together as if they had been one: in memory, or on disk to be used again."""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lora.data.rows import located, named
from lora.data.stored import Broken, Unstorable, Writer, read, update
from lora.data.streams import ListOrStream, RowStream, chunks
from lora.errors import DataError, SaveError
from lora.io.atomic import saving
from lora.io.cache import VARIABLE, Cache
from lora.tasks.base import Encoded, NoneLeft, Row, Task
from lora.tasks.cache_key import key_of, rows_sha256
from lora.tasks.sequence import Counted

FEWEST = 2000  # rows from which on the disk is used: fewer are tokenised in less time than it takes to say so
SAMPLE = 8  # rows that are tokenised anew to see that what was kept is what they give

Shares = Sequence[tuple[int, float]]


def encode(
    task: Task, rows: ListOrStream, tokenizer: Any, max_length: int, shares: Shares = (), cache: Cache | None = None
) -> Encoded:
    """`Task.encode` of labelled rows, and what each source came to. The examples of a stream are on the disk.

    Args:
        shares: rows and weight of each source, one after another; empty: one source.
        cache: where many rows are kept, and read from if they are there; None: nothing is.

    Raises:
        DataError: as `Task.encode`; or examples of a stream that cannot be put on the disk.
        SaveError: there is no room on the disk for those of a stream.
    """
    why = ""
    try:
        if cache is not None and len(rows) >= FEWEST:
            return _cached(task, rows, tokenizer, max_length, shares, cache)
    except (Unstorable, SaveError) as error:
        why = f"Token ids are not kept for another time: {error}."
    if isinstance(rows, RowStream):
        encoded = _aside(task, rows, tokenizer, max_length, shares)
    else:
        encoded = _in_memory(task, rows, tokenizer, max_length, shares)
    encoded.notes += [why] if why else []
    return encoded


def digest_of(encoded: Encoded) -> str:
    """SHA-256 of all examples: the same wherever they are kept."""
    if encoded.digest is None:
        digest = hashlib.sha256()
        update(digest, encoded.examples)
        encoded.digest = digest.hexdigest()
    return encoded.digest


def _in_memory(task: Task, rows: list[Row], tokenizer: Any, max_length: int, shares: Shares) -> Encoded:
    if not shares:
        return task.encode(rows, tokenizer, max_length)
    examples, lengths, supervised, answers = list[dict[str, Any]](), list[int](), list[int](), list[str]()
    notes, counts, ends, truncated, start = list[list[str]](), list[int](), set[int](), 0, 0
    for number, _ in shares:
        part = encode_part(task, rows[start : start + number], tokenizer, max_length, start)
        examples += part.examples
        lengths += part.lengths
        supervised += part.supervised
        answers += part.answers
        ends |= set(part.ends)
        truncated += part.truncated
        counts.append(len(part))
        notes.append(part.notes)
        start += number
    told = joined_notes(notes, len(rows))
    _refuse_nothing(rows, len(examples), told, truncated)
    weighed = _weighed(counts, shares)
    return Encoded(examples, lengths, supervised, truncated, told, answers, sorted(ends), weighed)


def encode_part(task: Task, rows: list[Row], tokenizer: Any, max_length: int, start: int = 0) -> Encoded:
    """`Task.encode` of some of the rows, the first of them number ``start``; no example may be left."""
    try:
        part = task.encode(located(rows, "", first=start + 1), tokenizer, max_length)
    except NoneLeft as nothing:
        return Encoded([], [], [], nothing.truncated, nothing.notes)
    for example in part.examples:
        example["row"] += start
    return part


def _weighed(counts: Sequence[int], shares: Shares) -> list[tuple[int, float]]:
    return [(count, weight) for count, (_, weight) in zip(counts, shares, strict=True)]


def _refuse_nothing(rows: Iterable[Row], examples: int, notes: list[str], truncated: int) -> None:
    if not examples:
        raise NoneLeft(f"{named(rows)}{notes[-1]} None is left; raise data.max_length", notes, truncated)


# -- on disk -----------------------------------------------------------------------------------------------------------


def _cached(task: Task, rows: ListOrStream, tokenizer: Any, max_length: int, shares: Shares, cache: Cache) -> Encoded:
    """The examples of ``cache``, made now where it does not have them.

    Raises Unstorable, SaveError: they cannot be kept.
    """
    key, parts = key_of(task, rows_sha256(rows), tokenizer, max_length, [number for number, _ in shares])
    notes = []
    try:
        found = _opened(cache.place(key), shares)
        first = encode_part(task, list(islice(rows, SAMPLE)), tokenizer, max_length).examples
        if list(found.examples[: len(first)]) != first:
            raise Broken("the first rows give other tokens now")
        cache.used(key)
        task.met(found.ends)
        found.notes.append(f"Token ids were read from {cache.place(key)}.")
        return found
    except FileNotFoundError:
        pass
    except Broken as error:
        cache.drop(key)
        notes.append(f"Token ids kept in {cache.place(key)} were of no use ({error}) and have been made anew.")
    cache.add(key, lambda folder: write(folder, task, rows, tokenizer, max_length, shares, parts))
    try:
        made = _opened(cache.place(key), shares, check=False)
    except (Broken, FileNotFoundError) as error:  # removed by another process in this very moment
        raise Unstorable(f"{cache.place(key)} has gone ({error})") from error
    made.notes += notes
    return made


def _aside(task: Task, rows: RowStream, tokenizer: Any, max_length: int, shares: Shares) -> Encoded:
    """The examples in a folder of their own, which goes when they are no longer used."""
    folder = tempfile.TemporaryDirectory(prefix="lora-", ignore_cleanup_errors=True)
    try:
        with saving(folder.name, f"name a folder with more room in TMPDIR, or let them be kept ({VARIABLE})"):
            write(Path(folder.name), task, rows, tokenizer, max_length, shares)
    except Unstorable as error:
        raise DataError(
            f"{named(rows)}{error}: these rows cannot be read in parts; set data.streaming false"
        ) from error
    encoded = _opened(Path(folder.name), shares, check=False)
    weakref.finalize(encoded.examples, folder.cleanup)
    return encoded


def write(
    folder: Path, task: Task, rows: Iterable[Row], tokenizer: Any, max_length: int, shares: Shares,
    key: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Tokenise ``rows``, some at a time, into ``folder``. ``key``: what it was made of, for a person who looks.

    Raises DataError as `Task.encode`; Unstorable.
    """
    writer = Writer(folder)
    notes, counts, ends = list[list[str]](), [0] * max(len(shares), 1), set[int]()
    truncated = of_rows = start = 0
    try:
        for place, chunk in _chunks(rows, shares):
            part = encode_part(task, chunk, tokenizer, max_length, start)
            writer.add(part.examples, part.lengths, part.supervised, part.answers)
            counts[place] += len(part)
            ends |= set(part.ends)
            of_rows += part.rows
            truncated += part.truncated
            notes.append(part.notes)
            start += len(chunk)
        told = joined_notes(notes, start)
        _refuse_nothing(rows, sum(counts), told, truncated)
        writer.finish(
            truncated=truncated, notes=told, counts=counts, digest=writer.digest.hexdigest(), rows=start,
            of_rows=of_rows, ends=sorted(ends), key=key,
        )  # fmt: skip
    finally:
        writer.close()


def _opened(folder: Path, shares: Shares, check: bool = True) -> Encoded:
    """Raises Broken, FileNotFoundError."""
    examples, counts, facts = read(folder, check)
    return Encoded(
        examples, counts["lengths"], counts["supervised"], facts["truncated"], facts["notes"],
        answers=examples.answers, ends=facts["ends"], digest=facts["digest"], of_rows=facts["of_rows"],
        shares=_weighed(facts["counts"], shares) if shares else [],
    )  # fmt: skip


def _chunks(rows: Iterable[Row], shares: Shares) -> Iterator[tuple[int, list[Row]]]:
    """The rows in lists that hold those of one source alone, whose number comes with them."""
    rest = iter(rows)
    for place, number in enumerate([number for number, _ in shares] or [None]):
        for chunk in chunks(islice(rest, number)):
            yield place, chunk


def joined_notes(lots: Iterable[list[str]], total: int) -> list[str]:
    """The notes about parts of ``total`` rows as those about all: each once, numbers added up."""
    found: dict[Any, list[str]] = {}
    for note in chain.from_iterable(lots):
        found.setdefault(note.what if isinstance(note, Counted) else note, []).append(note)
    return [
        Counted.of(counted, total) if (counted := [note for note in notes if isinstance(note, Counted)]) else notes[0]
        for notes in found.values()
    ]
