"""The rows that a plan is made for: tokenised ones of the data, of their own length or of another, or made-up ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from lora.config import DataConfig, RunConfig, TrainingConfig
from lora.data.batches import rows_taken
from lora.data.streams import ListOrStream
from lora.errors import ConfigError
from lora.io.describe import auto_class_of
from lora.model.base import load_base_config, longest_row
from lora.model.vocabulary import tokenizer_for
from lora.tasks import TASKS, Encoded, Row, Task, task_class
from lora.tasks.inputs import with_options
from lora.training.prepare import Prepared, read_rows
from lora.training.replay import with_replay

LARGE = 4000  # rows; of more, the longest and as many others are tokenised as make this number
LONGEST = 500
WHOLE = 10**9  # a max_length that cuts nothing


@dataclass(frozen=True)
class Rows:
    """What is known of one adapter's rows.

    Attributes:
        prepared: tokenised rows.
        length: tokens of the longest, as ``max_length`` limits them.
        steps: of a run, in all; None: not known without data.
        tokens: of an average batch.
        note: what a reader should know of where they come from.
    """

    prepared: Prepared
    length: int
    steps: int | None
    tokens: float
    note: str


def made_up(
    kind: str | Task, length: int, rows: int, held: int = 0, labels: int = 2, data: DataConfig | None = None,
    end: Any = None,
) -> Prepared:  # fmt: skip
    """Rows of ``length`` tokens of which all is learned that can be.

    Args:
        kind: name of a task, or one that an adapter was trained for.
        labels: of the task, where it has labels.
        data: with options of the task.
        end: id of the token that ends a text, which some models look for (T5 with a head for classes).
    """
    known = () if isinstance(kind, str) else kind.labels
    task, example = (task_class(kind) if isinstance(kind, str) else type(kind)).made_up(
        len(known) or labels, end if isinstance(end, int) else 1
    )
    if not isinstance(kind, str) and not known:
        task = kind
    if data is not None:
        task = with_options(task, data)
    example = task.of_length(example, length)
    train, evaluated = times(task, example, rows), times(task, example, held) if held else None
    return Prepared(task, None, train, evaluated, None, length, 0, "right", [], "")


def longer(prepared: Prepared, length: int, training: TrainingConfig) -> Prepared:
    """``prepared`` with rows of ``length`` tokens, made of its longest, in place of its own, held-out ones included: as
    many as steps and evaluations take at a time."""
    task = prepared.task
    longest = max(prepared.train.examples, key=lambda example: task.size(example)[2])
    example = task.of_length(longest, length)
    held = times(task, example, training.evaluation_rows) if prepared.held else None
    train = times(task, example, training.batch_size * min(2, training.accumulation))
    if prepared.train.replay:
        train.replay = len(train)  # a batch may be of nothing else
    return replace(prepared, train=train, held=held, max_length=length)


def longest(prepared: Prepared) -> int:
    """Tokens of the longest row, as ``max_length`` limits them."""
    return max(prepared.task.size(example)[2] for example in prepared.train.examples)


def times(task: Task, example: dict[str, Any], count: int) -> Encoded:
    """``example`` so many times."""
    tokens, supervised, _ = task.size(example)
    return Encoded([example] * count, [tokens] * count, [supervised] * count)


def task_of(config: RunConfig) -> str:
    """The task that is meant where no data say it: the one named, else the first that its base was made for."""
    if config.data.task != "auto":
        return config.data.task
    made_for = auto_class_of(load_base_config(config.model or "", config.trust_remote_code))
    return next((name for name, task in TASKS.items() if task.auto_class == made_for), next(iter(TASKS)))


def rows_for(config: RunConfig, length: int | None, task: Task | None = None, start: Path | None = None) -> Rows:
    """Rows of the data of ``config``, those of them with ``length`` tokens, or made-up ones.

    Args:
        task: of an adapter that training goes on from; ``start`` is its folder.

    Raises:
        ConfigError: neither data nor a length.
        DataError, ModelError: as training would.
    """
    if config.data.train is None and (length := length or config.data.max_length) is None:
        raise ConfigError("length: is needed where there are no data (--length 512), or give --data")
    kind = load_base_config(config.model or "", config.trust_remote_code)
    stand_in: Any = SimpleNamespace(config=kind)
    if length is not None:
        longest_row(None, stand_in, length)  # complains where the model has fewer positions
    if config.data.train is not None:
        return _of_data(config, length, task, kind, start)
    assert length is not None, "checked"
    training = config.training
    held = 0 if config.data.held_out == 0 or training.eval_every is None else training.evaluation_rows
    labels = max(2, getattr(kind, "num_labels", None) or 2)
    rows = training.batch_size * min(2, training.accumulation)
    made = made_up(
        task or task_of(config), length, rows, held, labels, config.data, getattr(kind, "eos_token_id", None)
    )
    if config.data.replay is not None:
        made.train.replay = len(made.train)  # a batch may be of nothing else
    tokens = training.batch_size * made.train.lengths[0]
    return Rows(made, length, training.max_steps, tokens, f"made-up rows of {length:,} tokens, {_what(made.task)}")


def _what(task: Task) -> str:
    return f"for the task {task.name}"


def _of_data(config: RunConfig, length: int | None, task: Task | None, kind: Any, start: Path | None) -> Rows:
    training, data = config.training, config.data
    rows = read_rows(data.train or "", data.validation, data, training.seed, task, kind)
    tokenizer: Any = tokenizer_for(config.model or "", config.new_tokens, start, config.trust_remote_code)
    stand_in: Any = SimpleNamespace(config=kind)
    most = WHOLE if length else longest_row(tokenizer, stand_in, data.max_length)
    task = rows.task.with_tokenizer(tokenizer)
    chosen, share = _sample(rows.train)
    train = task.encode(chosen, tokenizer, most)
    held_rows = _sample(rows.held)[0] if rows.held else None
    held = task.encode(held_rows, tokenizer, most) if held_rows else None
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    prepared = Prepared(task, tokenizer, train, held, None, most, pad, "right", [], "")
    tokens = _average(train.lengths, share == 1)
    count = len(rows.train)
    replayed = 1.0
    if rows.replay is not None:
        some, part = _sample(rows.replay.rows)
        prepared.train = with_replay(train, replace(rows.replay, rows=some), tokenizer, most)
        replayed = 1 / (1 - rows.replay.share)
        its = _average(prepared.train.lengths[prepared.train.own :], part == 1)
        tokens = (1 - rows.replay.share) * tokens + rows.replay.share * its
    own = longest(prepared)
    taken = sum(rows_taken(number, weight) for number, weight in rows.shares or [(count, 1.0)])
    batch = training.batch_size * training.accumulation
    per_epoch = -(-round(taken * len(train) / len(chosen) * replayed) // batch)
    steps = training.max_steps or max(1, round(training.epochs * per_epoch))
    seen = "" if share == 1 else f", {len(chosen):,} of them tokenised, the longest among them"
    note = f"{count:,} rows{seen}; at most {own:,} tokens, {_what(task)}"
    if length:
        prepared = longer(prepared, length, training)
        tokens, note = prepared.train.lengths[0], f"{note}; planned as if each had {length:,}"
    return Rows(prepared, length or own, steps, training.batch_size * tokens, note)


def _average(lengths: Sequence[int], all_of_them: bool) -> float:
    """Tokens of an average example, of rows as `_sample` gives them: the longest were taken on purpose."""
    usual = lengths if all_of_them else lengths[LONGEST:] or lengths
    return sum(usual) / len(usual)


def _sample(rows: ListOrStream) -> tuple[list[Row], float]:
    """Rows to tokenise, the longest first, and which share of all they are."""
    if len(rows) <= LARGE:
        return list(rows), 1
    sizes = np.fromiter((sum(len(str(value)) for value in row.values()) for row in rows), dtype=np.int64)
    order = np.argsort(-sizes, kind="stable").tolist()
    step = (len(order) - LONGEST) / (LARGE - LONGEST)
    chosen = [*order[:LONGEST], *(order[LONGEST + int(place * step)] for place in range(LARGE - LONGEST))]
    wanted = set(chosen)
    picked = {i: row for i, row in enumerate(rows) if i in wanted}
    return [picked[i] for i in chosen], LARGE / len(rows)
