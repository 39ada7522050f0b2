"""The rows of a cross-validation, tokenised once, and what of them each run trains on.

Tokens of a row and the names of labels are known of all rows. Whatever is *estimated* from rows (mean and spread of a
number, `Task.for_training`) is estimated from the training rows of the fold. Shapes: n row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np

from lora.config import CrossValidationConfig, RunConfig
from lora.data.folds import (
    Fold,
    Places,
    bins,
    k_folds,
    latest,
    read_column,
    read_times,
    spread,
    time_folds,
    together,
)
from lora.data.rows import Row
from lora.errors import ConfigError, DataError
from lora.plural import number_of
from lora.tasks import Encoded, Task
from lora.training.prepare import Prepared, digest

UNLIKE = 1.5  # times the usual size, from which a fold is told of
INNER = 0.1  # of a fold's training rows, to choose its checkpoint where that is asked for


class _Taken(Sequence[dict[str, Any]]):
    """Some of the examples, each read when it is asked for: all may lie on disk."""

    def __init__(self, examples: Sequence[dict[str, Any]], places: Places) -> None:
        self._examples, self._places = examples, places.tolist()

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._examples[place] for place in self._places[index]]
        return self._examples[self._places[index]]


def take(encoded: Encoded, places: Places) -> Encoded:
    """The examples at ``places`` (ascending), with what is known of each, and of each source so many."""
    ends = np.cumsum([count for count, _ in encoded.shares])
    counts = np.diff(np.searchsorted(places, ends), prepend=0)
    shares = [(int(count), weight) for count, (_, weight) in zip(counts, encoded.shares, strict=True)]
    if any(count == 0 for count, _ in shares):
        raise DataError("a fold has no training rows of one of the sources; take fewer folds, or a single source")
    return Encoded(
        _Taken(encoded.examples, places), [encoded.lengths[place] for place in places],
        [encoded.supervised[place] for place in places],
        answers=[encoded.answers[place] for place in places] if len(encoded.answers) else [],
        ends=encoded.ends, shares=shares,
    )  # fmt: skip


@dataclass(eq=False)
class Material:
    """All rows of a cross-validation.

    Attributes:
        rows: as they were read.
        prepared: all of them tokenised.
        numbers: (n,) of the rows that have become examples, their place in ``rows``; folds count these.
        units: (n,) what belongs together.
        strata: of each its labels, or the bin of its number; None: they are divided at random, or by time.
        times: (n,) of each; None: time does not divide them.
        inner: share of a fold's training rows that choose its checkpoint; 0: the last step is taken.
        folds: the divisions.
        notes: sentences.
    """

    rows: list[Row]
    prepared: Prepared
    numbers: Places
    units: Places
    strata: list[list[Any]] | None
    times: Sequence[float] | None
    inner: float
    seed: int
    folds: list[Fold] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def task(self) -> Task:
        return self.prepared.task

    @cached_property
    def example_rows(self) -> Places:
        """Of each example its row, as a place among ``numbers``."""
        found = np.asarray([its.get("row", place) for place, its in enumerate(self.prepared.train.examples)])
        return np.searchsorted(self.numbers, found)

    @property
    def tied(self) -> bool:
        """Whether rows belong together, so that they are drawn together."""
        return int(self.units.max(initial=-1)) + 1 < len(self.units)

    def examples(self, rows: Places) -> Places:
        """Places of the examples that come of ``rows``."""
        return np.flatnonzero(np.isin(self.example_rows, rows))

    def training_rows(self, fold: Fold, share: float, shares: Sequence[float]) -> Places:
        """The training rows of ``fold``, or ``share`` of them: the smaller of ``shares`` lie within the larger."""
        rows, before = fold.train, 1.0
        for its in sorted((its for its in {*shares, share} if its < 1 and its >= share), reverse=True):
            rows = self._part(rows, its / before, self.seed)
            before = its
        if not len(rows):
            raise DataError(f"shares: {share:g} of the {len(fold.train):,} training rows of {fold.name} are none")
        return rows

    def _part(self, rows: Places, share: float, seed: int) -> Places:
        strata = None if self.strata is None else [self.strata[place] for place in rows]
        return rows[spread(self.units[rows], strata, [share, 1 - share], seed) == 0]

    def part(self, fold: Fold, share: float = 1.0, shares: Sequence[float] = ()) -> Prepared:
        """What a run on ``fold`` trains on (``train``), chooses its checkpoint on (``held``), and answers (``test``).

        Raises DataError where too little is left.
        """
        train, held = self.training_rows(fold, share, shares), np.empty(0, dtype=np.intp)
        if self.inner:
            if self.times is not None:
                its_times = [self.times[place] for place in train]
                first, last = latest(its_times, self.units[train], self.inner)
                train, held = train[first], train[last]
            else:
                held = self._part(train, self.inner, self.seed + 1)
                train = np.setdiff1d(train, held)
            if not len(train) or not len(held):
                raise DataError(
                    f"{fold.name}: {number_of(len(train) + len(held), 'training row')} cannot be divided to choose a "
                    "checkpoint; leave training.patience and training.best_metric out, or give more rows"
                )
        of_all = self.prepared.train
        task = self.task.for_training([self.rows[place] for place in self.numbers[train]])
        encoded = take(of_all, self.examples(train))
        return Prepared(
            task, self.prepared.tokenizer, encoded, _plain(of_all, self.examples(held)) if len(held) else None,
            _plain(of_all, self.examples(fold.held)), self.prepared.max_length, self.prepared.pad_token_id,
            self.prepared.padding_side, [], digest(encoded),
        )  # fmt: skip


def _plain(encoded: Encoded, places: Places) -> Encoded:
    """As `take`, each example once, whatever source it comes of."""
    taken = Encoded(encoded.examples, encoded.lengths, encoded.supervised, answers=encoded.answers, ends=encoded.ends)
    return take(taken, places)


def inner_share(config: RunConfig) -> float:
    """The share of a fold's training rows that choose its checkpoint. Raises ConfigError where settings disagree."""
    training, held_out = config.training, config.data.held_out
    wanted = training.patience is not None or training.best_metric is not None
    share = held_out if held_out is not None else INNER if wanted else 0.0
    if training.patience is not None and not share:
        raise ConfigError("data.held_out: with 0 of a fold's training rows nothing tells patience when to stop")
    if share and training.eval_every is None:
        raise ConfigError("training.eval_every: without evaluations nothing chooses a checkpoint; leave it out")
    return share


def divide(rows: list[Row], prepared: Prepared, config: RunConfig, asked: CrossValidationConfig) -> Material:
    """The rows with their folds.

    Raises:
        ConfigError, DataError: a column that is missing, times that cannot be read, too few rows of a class or too few
            groups for so many folds.
    """
    task, examples = prepared.task, prepared.train.examples
    origin = [its.get("row", place) for place, its in enumerate(examples)]
    numbers = np.unique(np.asarray(origin, dtype=np.intp))
    kept = [rows[place] for place in numbers]
    keys: list[Sequence[Any]] = [[task.key(row) for row in kept]]
    notes = []
    if repeated := len(kept) - len(set(keys[0])):
        notes.append(f"Rows of the same input stay on one side ({repeated:,} repeated).")
    if asked.group_column:
        keys.append(read_column(kept, asked.group_column, "group_column"))
    times = read_times(kept, asked.time_column, "time_column") if asked.time_column else None
    units = together(*keys)
    strata = _strata(prepared, origin, numbers, asked) if asked.stratify and times is None else None
    out = Material(rows, prepared, numbers, units, strata, times, inner_share(config), config.training.seed, [], notes)
    if times is not None:
        out.folds = time_folds(times, units, asked.folds)
        left = sum(
            int((np.asarray(times) < min(times[p] for p in its.held)).sum()) - len(its.train) for its in out.folds
        )
        if left:
            notes.append(
                f"Earlier rows that share a group or an input with held-out ones are not trained on: {left:,}."
            )
        return out
    if asked.group_column and (groups := int(units.max()) + 1) < asked.folds:
        raise DataError(
            f"group_column: {asked.group_column!r} divides the rows into {number_of(groups, 'group')}, too few for "
            f"{asked.folds} folds; take fewer folds, or another column"
        )
    if strata is not None and task.learns == "label":
        _check_classes(units, strata, asked, notes)
    out.folds = k_folds(units, strata, asked.folds, asked.repeats, config.training.seed)
    sizes = [len(its.held) for its in out.folds]
    if max(sizes) > UNLIKE * len(kept) / asked.folds:
        notes.append(
            f"Folds hold out {min(sizes):,} to {max(sizes):,} rows: {int(np.bincount(units).max()):,} of {len(kept):,} "
            "rows hang together by groups and equal inputs. Their mean counts each fold alike; see the pooled values."
        )
    return out


def _strata(prepared: Prepared, origin: Sequence[int], numbers: Places, asked: CrossValidationConfig) -> Any:
    """Labels of each row, or the bin of its number; None of what has neither."""
    task = prepared.task
    if task.learns not in ("label", "labels", "number"):
        return None
    targets = task.targets(prepared.train.examples)
    found: dict[int, list[Any]] = {int(place): [] for place in numbers}
    for row, target in zip(origin, targets, strict=True):
        found[row] += task.labels_in(target) if task.learns != "number" else [float(target)]
    values = list(found.values())
    return bins([own[0] for own in values], asked.folds) if task.learns == "number" else values


def _check_classes(units: Places, strata: list[list[Any]], asked: CrossValidationConfig, notes: list[str]) -> None:
    """Raise DataError where a class cannot be on both sides of every fold; of groups, which decide, say it."""
    pairs = {(int(unit), label) for unit, own in zip(units, strata, strict=True) for label in own}
    counts = Counter(label for _, label in pairs)
    few = sorted((count, str(label)) for label, count in counts.items() if count < asked.folds)
    if not few:
        return
    named = ", ".join(f"{label!r} ({count})" for count, label in few[:5]) + (" ..." if len(few) > 5 else "")
    what = "group" if asked.group_column else "different input"
    said = f"{number_of(len(few), 'class', 'classes')} with fewer {what}s than folds ({asked.folds}): {named}"
    if not asked.group_column:
        raise DataError(
            f"{said}. Each fold needs one to hold out: take fewer folds, give more rows of them, or say "
            "--no-stratify (stratify=False) to measure without"
        )
    notes.append(f"{said}. Some folds hold none of them out, or train on none.")
