"""From whatever the caller calls data to token ids: rows, task, tokenizer, held-out split, what happened to them."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora.config import DataConfig, Source
from lora.data.sources import Part, Splits, load_rows, load_splits
from lora.data.streams import ListOrStream, RowStream, joined
from lora.io.cache import Cache
from lora.model.base import pad_token_id
from lora.tasks import Encoded, Task
from lora.tasks.agree import agree
from lora.tasks.encoding import digest_of, encode
from lora.tasks.inputs import Data, as_rows, is_sources, length_for, tokenizer_of
from lora.training.mixture import split_off, told
from lora.training.overlap import overlap_notes
from lora.training.replay import Replayed, read_replay, with_replay

if TYPE_CHECKING:
    from lora.model.lora import LoRA


@dataclass
class Rows:
    """Rows before tokenisation, and how they were understood."""

    train: ListOrStream
    held: ListOrStream | None
    task: Task
    test: ListOrStream | None = None  # rows that neither train nor pick a checkpoint, where the source has them
    notes: list[str] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    shares: list[tuple[int, float]] = field(default_factory=list)  # training rows and weight of each source, if several
    cache: Cache | None = None  # where their tokens are kept
    replay: Replayed | None = None  # what is learned beside them, against forgetting

    @property
    def streamed(self) -> bool:
        """Whether training rows are read in parts."""
        return isinstance(self.train, RowStream)


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
    splits, given = _read(train, held, settings)
    parts = splits.parts
    # Before the split: what is wrong with a row is said of all rows at once.
    task, notes = agree(parts, settings, task, base)
    notes = [*splits.notes, *notes]
    held_rows, test_rows = given, joined([part.test for part in parts])
    if held is False:
        held_rows = None
    elif held_rows is None:
        held_rows, said = split_off(parts, task, settings, seed)
        notes += said
    several = len(parts) > 1 or parts[0].weight != 1
    if several:
        notes += told(parts, task)
    train_rows = joined([part.train for part in parts]) or []
    # A part that was split off holds no input of those left.
    kept_out = [("validation", given if held is not False else None), ("test", test_rows)]
    notes += overlap_notes(task, train_rows, kept_out)
    replay = read_replay(settings, task, [held_rows, test_rows], base)
    if replay is not None:
        notes += replay.notes
    return Rows(
        train_rows, held_rows, task, test_rows, notes,
        [*(asdict(source) for source in splits.sources), *(replay.sources if replay else [])],
        [(len(part.train), part.weight) for part in parts] if several else [],
        None if settings.cache is False else Cache(None if settings.cache is True else settings.cache),
        replay,
    )  # fmt: skip


def _read(train: Data, held: Data | bool | None, settings: DataConfig) -> tuple[Splits, ListOrStream | None]:
    """The training rows by source, and the held-out rows where some are named."""
    named = isinstance(held, (str, Path))
    if is_sources(train):
        named_here = [train] if isinstance(train, Source) else train
        own = {"validation": str(held)} if named else {}
        update = {"train": list(map(_source, named_here)) if not isinstance(named_here, (str, Path)) else str(train)}
        splits = load_splits(settings.model_copy(update={**update, **own}))
    else:
        splits = Splits([Part("training data", as_rows(train, "training data", settings.streaming))])
    if held is not None and not isinstance(held, (bool, str, Path)):
        return splits, as_rows(held, "validation data")
    if named and splits.given is None:
        return splits, load_rows(str(held), "validation" if Path(str(held)).is_dir() else None)
    return splits, splits.given


def _source(entry: str | Path | Source) -> str | Source:
    return entry if isinstance(entry, Source) else str(entry)


def prepare(model: LoRA, rows: Rows, tokenizer: Any = None, max_length: int | None = None) -> Prepared:
    """Tokenise ``rows`` for ``model``."""
    tokenizer = tokenizer or tokenizer_of(model)
    pad = pad_token_id(tokenizer, model.base)
    length = length_for(model, [], tokenizer, max_length)
    task = rows.task.with_tokenizer(tokenizer)
    train = encode(task, rows.train, tokenizer, length, rows.shares, rows.cache)
    if rows.replay is not None:
        train = with_replay(train, rows.replay, tokenizer, length, rows.cache)
        task.met(train.ends)
    held, test = (
        encode(task, part, tokenizer, length, cache=rows.cache) if part else None for part in (rows.held, rows.test)
    )
    notes = [*rows.notes, *(note for note in task.remarks() if note not in rows.task.remarks()), *train.notes]
    for name, part in (("held-out", held), ("test", test)):
        notes += [f"{name} data: {note}" for note in (part.notes if part else [])]
    return Prepared(task, tokenizer, train, held, test, length, pad, "right", notes, digest(train))


def digest(encoded: Encoded) -> str:
    """A short hash over the token ids and labels of all rows in order, and how often each source is taken."""
    own = digest_of(encoded)
    if all(weight == 1 for _, weight in encoded.shares):
        return own[:16]
    return hashlib.sha256(f"{own} {encoded.shares}".encode()).hexdigest()[:16]
