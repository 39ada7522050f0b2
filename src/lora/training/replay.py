"""Replay: general text, or rows of the task's own kind, learned beside the training rows so that less is forgotten.

Rehearsal of old data beside new ones (Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"; for
language models Scialom et al. 2022, arXiv:2205.12393, who mix in a share as here). What a base was trained on is
rarely to be had; text of that kind stands in for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, overload

from lora.config import DataConfig, Source
from lora.data.batches import rows_taken
from lora.data.columns import TEXT, Table
from lora.data.sources import Part, load_splits
from lora.data.streams import ListOrStream, through
from lora.errors import ConfigError, DataError
from lora.io.cache import Cache
from lora.tasks import Encoded, Task, from_state, running_text
from lora.tasks.agree import agree
from lora.tasks.encoding import digest_of, encode

Item = TypeVar("Item")


@dataclass
class Replayed:
    """Rows of ``data.replay`` before tokenisation.

    Attributes:
        name: of the source, as the user gave it.
        task: how they become tokens: the run's own on their columns, or plain text.
        share: part of an epoch's examples that are theirs.
        notes: what a user should know, in full sentences.
        sources: the files, with their hashes.
    """

    name: str
    rows: ListOrStream
    task: Task
    share: float
    notes: list[str] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)


def read_replay(
    settings: DataConfig, task: Task, kept_out: Sequence[ListOrStream | None], base: Any = None
) -> Replayed | None:
    """The rows of ``data.replay``, without those that are kept out of training; None: it is not set.

    Args:
        task: of the run.
        kept_out: held-out and test rows of the run.
        base: transformers' configuration of the base model.

    Raises:
        ConfigError: the task is not one that learns to write.
        DataError: nothing readable there, or rows that are neither the task's nor plain text.
    """
    asked = settings.replayed
    if asked is None:
        return None
    if not task.holds_to_base:
        raise ConfigError(
            f"data.replay: is for tasks that learn to write, and this is {task.name}; name rows of the same kind as "
            "one more source of data.train instead"
        )
    source = Source(path=asked.path, columns=asked.columns)
    splits = load_splits(settings.model_copy(update={"train": [source], "validation": None}), of=["train"])
    (part,) = splits.parts
    if part.weight != 1:
        raise ConfigError(f"data.replay: {asked.path}: how much is taken of it is its share, not a weight (#x)")
    its, said = _task_of(part, settings, task, base)
    files = [asdict(replace(file, split="replay")) for file in splits.sources]
    out = Replayed(part.name, part.train, its, asked.share, [*splits.notes, *said], files)
    there = [rows for rows in kept_out if rows is not None]
    if there and type(its) is type(task):
        _leave_out(out, there, task)
    return out


def _task_of(part: Part, settings: DataConfig, task: Task, base: Any) -> tuple[Task, list[str]]:
    """The task that makes tokens of the rows, and a sentence about it."""
    own = {f"{role}_column": None for role in task.roles if f"{role}_column" in DataConfig.model_fields}
    asked = settings.model_copy(update={**own, "columns": {}, "task": task.name})
    try:
        found, _ = agree([part], asked, None, base)
    except DataError as error:
        column = Table(part.train).get(part.columns.get("text", ""), *TEXT) if part.train else None
        reads = running_text(base, column or "")
        # Told by the kind of model where the base's configuration is not known.
        if reads is None or reads.auto_class != task.auto_class or column is None:
            raise DataError(
                f"data.replay: rows of the run's own kind ({task.name}) or a column of plain text are needed; name "
                f"columns with data.replay {{path: ..., columns: {{...}}}}. {error}"
            ) from None
        part.train = through(part.train, partial(reads.running_rows, column=column), len(part.train))
        how = f". {reads.running_note}" if reads.running_note else ", all of it learned."
        return reads, [f"Replay: {part.name}, plain text of column {column!r}{how}"]
    # Its template, its prefix and whatever else the run's task has; only the columns are its own.
    columns = {role: found.state().get(role) for role in task.roles}
    return from_state({**task.state(), **columns}), [f"Replay: {part.name}, rows like the others ({task.name})."]


def _leave_out(replayed: Replayed, kept_out: Sequence[ListOrStream], task: Task) -> None:
    """Take rows that ask what is asked in ``kept_out`` off the rows to learn, whatever they answer."""
    keys = {task.key(row) for rows in kept_out for row in rows}
    key = replayed.task.key

    def kept(rows: Any) -> Any:
        return (row for row in rows if key(row) not in keys)

    count = sum(key(row) in keys for row in replayed.rows)
    if count == len(replayed.rows):
        raise DataError(f"data.replay: {replayed.name}: all of its rows are held out of training; name others")
    if count:
        replayed.rows = through(replayed.rows, kept, len(replayed.rows) - count)
        replayed.notes.append(f"{count:,} rows of {replayed.name} are left out of replay: they are held out.")


def with_replay(
    train: Encoded, replayed: Replayed, tokenizer: Any, max_length: int, cache: Cache | None = None
) -> Encoded:
    """``train`` with the examples of ``replayed`` behind its own, of which each epoch takes their share.

    Args:
        cache: as of `lora.tasks.encoding.encode`.

    Raises DataError as `Task.encode`.
    """
    task = replayed.task.with_tokenizer(tokenizer)
    found = encode(task, replayed.rows, tokenizer, max_length, cache=cache)
    shares = [*train.shares] or [(len(train), 1.0)]
    own = sum(rows_taken(count, weight) for count, weight in shares)
    weight = replayed.share / (1 - replayed.share) * own / len(found)
    # Plain text has no answer, and of all examples it is kept or of none.
    kept = [its.answers or [""] * len(its) for its in (train, found)]
    answers: Sequence[str] = Joined(*kept) if train.answers or found.answers else []
    out = Encoded(
        Joined(train.examples, found.examples), [*train.lengths, *found.lengths],
        [*train.supervised, *found.supervised], train.truncated,
        [*train.notes, *(f"Replay: {note}" for note in found.notes)], answers=answers,
        ends=sorted({*train.ends, *found.ends}), shares=[*shares, (len(found), weight)],
        of_rows=train.rows + found.rows, replay=len(found),
    )  # fmt: skip
    # Of both digests: whether they were known already depends on streaming and cache, which may change on resume.
    out.digest = hashlib.sha256(f"{digest_of(train)} {digest_of(found)}".encode()).hexdigest()
    out.notes.append(_told(train, shares, found, weight, replayed.name))
    return out


def _told(train: Encoded, shares: Sequence[tuple[int, float]], found: Encoded, weight: float, name: str) -> str:
    """What an epoch takes of it, in examples and in tokens that are learned."""
    taken, start, own, tokens = rows_taken(len(found), weight), 0, 0, 0.0
    for count, its in shares:
        own += rows_taken(count, its)
        tokens += its * sum(train.supervised[start : start + count])
        start += count
    learned = weight * sum(found.supervised)
    again = f", each {weight:.1f} times" if weight > 1.05 else ""
    return (
        f"Replay: an epoch takes {taken:,} examples of the {len(found):,} of {name}{again}: "
        f"{taken / (taken + own):.0%} of all examples, {learned / (learned + tokens):.0%} of the learned tokens."
    )


class Joined(Sequence[Item]):
    """What stands in two sequences, one behind the other, wherever they are kept."""

    def __init__(self, first: Sequence[Item], second: Sequence[Item]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self.first[place] if place < len(self.first) else self.second[place - len(self.first)]
