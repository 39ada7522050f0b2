"""From whatever the caller calls data to token ids: rows, task, tokenizer, held-out split, what happened to them."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora.config import DataConfig
from lora.data.sources import load_rows, load_splits
from lora.data.splits import hold_out, hold_out_text
from lora.model.base import pad_token_id
from lora.tasks import Encoded, Row, Task
from lora.tasks.inputs import Data, as_rows, length_for, task_for, tokenizer_of, with_columns
from lora.tasks.sequence import require_columns

if TYPE_CHECKING:
    from lora.model.lora import LoRA


@dataclass
class Rows:
    """Rows before tokenisation, and how they were understood."""

    train: list[Row]
    held: list[Row] | None
    task: Task
    test: list[Row] | None = None  # rows that neither train nor pick a checkpoint, where the source has them
    notes: list[str] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Prepared:
    """Everything the loop needs to know of the data."""

    task: Task
    tokenizer: Any
    train: Encoded
    held: Encoded | None
    test: Encoded | None
    max_length: int
    pad_token_id: int
    padding_side: str
    notes: list[str]
    digest: str  # of the training token ids: a resumed run must see the same data


def read_rows(
    train: Data, held: Data | bool | None, settings: DataConfig, seed: int, task: Task | None = None, base: Any = None
) -> Rows:
    """Read and understand the data; a held-out part is split off where none is given (``held=False``: none at all).

    Args:
        task: default: what the settings name, else what the columns are for on this kind of base.
        base: transformers' configuration of the base model.

    Raises:
        DataError: files or rows that cannot be used, with file, line or row numbers.
    """
    notes: list[str] = []
    sources: list[dict[str, Any]] = []
    if isinstance(train, (str, Path)):
        given = {"validation": str(held)} if isinstance(held, (str, Path)) else {}
        splits = load_splits(settings.model_copy(update={"train": str(train), **given}))
        rows, notes, sources = splits.train, list(splits.notes), [asdict(source) for source in splits.sources]
        held_rows, test_rows = splits.validation, splits.test
    else:
        rows, held_rows, test_rows = as_rows(train, "training data"), None, None
    if held is not None and not isinstance(held, (bool, str, Path)):
        held_rows = as_rows(held, "validation data")
    elif isinstance(held, (str, Path)) and held_rows is None:
        held_rows = load_rows(str(held), "validation" if Path(held).is_dir() else None)
    # Before the split: what is wrong with a row is said of all rows at once.
    if task is None:
        task, how = task_for(rows, settings, base)
        notes.append(how)
    else:
        task = with_columns(task, settings)
        require_columns(rows, [given.column for given in task.inputs() if not given.optional])
    if held is False:
        held_rows = None
    elif held_rows is None and settings.held_out == 0:
        notes.append("No rows are held out: the last step is the result.")
    elif held_rows is None:
        inputs = task.inputs()
        if inputs[0].divisible:
            rows, held_rows, note = hold_out_text(rows, inputs[0].column, settings.held_out, seed)
        else:
            columns = [given.column for given in inputs]
            kept, out, note = hold_out(rows, columns, settings.held_out, seed, task.classes())
            rows, held_rows = [rows[i] for i in kept], [rows[i] for i in out]
        notes.append(note)
    return Rows(rows, held_rows, task, test_rows, notes, sources)


def prepare(model: LoRA, rows: Rows, tokenizer: Any = None, max_length: int | None = None) -> Prepared:
    """Tokenise ``rows`` for ``model``."""
    tokenizer = tokenizer or tokenizer_of(model)
    pad = pad_token_id(tokenizer, model.base)
    length = length_for(model, [], tokenizer, max_length)
    task = rows.task.with_tokenizer(tokenizer)
    train = task.encode(rows.train, tokenizer, length)
    held = task.encode(rows.held, tokenizer, length) if rows.held else None
    test = task.encode(rows.test, tokenizer, length) if rows.test else None
    notes = [*rows.notes, *(note for note in task.remarks() if note not in rows.task.remarks()), *train.notes]
    for name, part in (("held-out", held), ("test", test)):
        notes += [f"{name} data: {note}" for note in (part.notes if part else [])]
    return Prepared(task, tokenizer, train, held, test, length, pad, "right", notes, digest(train))


def digest(encoded: Encoded) -> str:
    """A short hash over the token ids and labels of all rows in order."""
    out = hashlib.sha256()
    for example in encoded.examples:
        for key in sorted(example):
            out.update(key.encode())
            out.update(np.asarray(example[key]).tobytes())
    return out.hexdigest()[:16]
