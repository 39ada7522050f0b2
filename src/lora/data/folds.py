"""Folds for cross-validation: stratified, grouped, or by time; rows that belong together are never on both sides.

Rows come as numbers from 0, in the order of the data. What belongs together is a *unit*: rows of one group, and rows
that ask the same. Shapes: n row, u unit, s stratum.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from lora.data.rows import Row, named, places
from lora.errors import DataError
from lora.plural import number_of

Places = NDArray[np.intp]
BINS = 10  # of a number, by which it is stratified; fewer where a bin would not reach every fold


@dataclass(frozen=True, eq=False)
class Fold:
    """One division of the rows.

    Attributes:
        repeat, number: which one, from 1.
        train, held: ascending numbers of rows. By time some of the earlier rows may be in neither.
    """

    repeat: int
    number: int
    train: Places
    held: Places

    @property
    def name(self) -> str:
        return f"repeat{self.repeat}-fold{self.number}"


def together(*keys: Sequence[Hashable]) -> Places:
    """The unit (n,) of each row, numbered as they appear: rows that share any of ``keys``, directly or by others."""
    count = len(keys[0])
    row, node, after = list[Places](), list[Places](), count
    for values in keys:
        numbers: dict[Hashable, int] = {}
        own = np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), dtype=np.intp, count=count)
        row.append(np.arange(count))
        node.append(own + after)
        after += len(numbers)
    ends = np.concatenate(row), np.concatenate(node)
    graph = sparse.coo_matrix((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(after, after))
    found = connected_components(graph, directed=False)[1][:count]
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.intp)
    place[np.argsort(first)] = np.arange(len(first))
    return place[inverse.reshape(-1)]


def bins(values: Sequence[float], folds: int) -> list[list[int]]:
    """The stratum of each of ``values``: equal shares of them by size, at most `BINS`, each with a row for every fold.

    Equal values are of one stratum.
    """
    numbers = np.asarray(values, dtype=np.float64)
    many = max(1, min(BINS, len(numbers) // folds))
    edges = np.unique(np.quantile(numbers, np.arange(1, many) / many)) if many > 1 else np.empty(0)
    return [[int(place)] for place in np.searchsorted(edges, numbers, side="right")]


def spread(
    units: Places, strata: Sequence[Sequence[Hashable]] | None, parts: Sequence[float], seed: int
) -> Places:  # fmt: skip
    """Deal units out to ``parts`` (shares that add up to 1), so that each has its share of rows and of every stratum.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, On the stratification of multi-label data, 2011,
    algorithm 1), of units in place of rows: the rarest stratum first, each of its units to the part that lacks most of
    it, of equal ones to that which lacks most rows, then by lot. With one stratum per row and units of one row the
    numbers of a stratum differ between equal parts by one at most.

    Args:
        units: (n,) as `together` gives them.
        strata: of each row those that it belongs to (none, one, several); None: there are none.

    Returns:
        the part (n,) of each row. The same arguments give the same.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(units).astype(np.float64)
    share = np.asarray(parts, dtype=np.float64)
    counts = _counts(units, strata, len(sizes))
    lacks = share[:, None] * np.asarray(counts.sum(axis=0)).reshape(1, -1)  # (parts, s) rows
    lacks_rows = share * sizes.sum()
    out = np.full(len(sizes), -1, dtype=np.intp)
    # Large ones first: what is left is small enough to even out.
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    by_column = counts.tocsc()

    def deal(unit: int, stratum: int | None) -> None:
        best = np.arange(len(share))
        for want in ([] if stratum is None else [lacks[:, stratum]]) + [lacks_rows]:
            best = best[want[best] >= want[best].max() - 1e-9]
        part = int(best[0] if len(best) == 1 else rng.choice(best))
        out[unit] = part
        row = slice(counts.indptr[unit], counts.indptr[unit + 1])
        lacks[part, counts.indices[row]] -= counts.data[row]
        lacks_rows[part] -= sizes[unit]

    open_units = np.ones(len(sizes), dtype=bool)
    rank = np.empty(len(sizes), dtype=np.intp)
    rank[order] = np.arange(len(sizes))
    has = (counts > 0).astype(np.int64)
    while open_units.any() and counts.shape[1]:
        left = np.asarray(has.T @ open_units.astype(np.int64)).reshape(-1)
        if not left.any():
            break
        stratum = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        its = by_column.indices[by_column.indptr[stratum] : by_column.indptr[stratum + 1]]
        its = its[open_units[its]]
        for unit in its[np.argsort(rank[its])]:
            deal(int(unit), stratum)
        open_units[its] = False
    for unit in order[open_units[order]]:
        deal(int(unit), None)
    return out[units]


def _counts(units: Places, strata: Sequence[Sequence[Hashable]] | None, number: int) -> sparse.csr_matrix:
    """(u, s) how many rows of each stratum a unit has."""
    names: dict[Hashable, int] = {}
    row, column = list[int](), list[int]()
    for unit, own in zip(units.tolist(), strata or [], strict=False):
        for name in dict.fromkeys(own):
            row.append(unit)
            column.append(names.setdefault(name, len(names)))
    ones = np.ones(len(row))
    return sparse.csr_matrix((ones, (row, column)), shape=(number, len(names)))  # adds up what is there twice


def k_folds(
    units: Places, strata: Sequence[Sequence[Hashable]] | None, folds: int, repeats: int, seed: int
) -> list[Fold]:
    """``folds`` of about equal size, in each of ``repeats`` drawn anew; in a repeat each row is held out once.

    Raises DataError where there are fewer units than folds.
    """
    number = int(units.max(initial=-1)) + 1
    if number < folds:
        raise DataError(
            f"{number_of(folds, 'fold')} of {number_of(number, 'group')} of rows (equal inputs are one): each fold "
            "holds out one at least; take fewer folds, or give more rows"
        )
    out = []
    for repeat in range(repeats):
        part = spread(units, strata, [1 / folds] * folds, seed + repeat)
        for place in range(folds):
            held = part == place
            out.append(Fold(repeat + 1, place + 1, np.flatnonzero(~held), np.flatnonzero(held)))
    return out


def time_folds(times: Sequence[Any], units: Places, folds: int) -> list[Fold]:
    """An expanding window: the rows in order of time fall into ``folds`` + 1 parts, and each but the first is held out
    once, with all that is earlier to train on.

    Rows of one time are of one part. An earlier row of a unit that is held out (the same group, the same input) is not
    trained on.

    Raises DataError where there are too few different times, or nothing is left to train on.
    """
    order = np.asarray(times)
    different, counts = np.unique(order, return_counts=True)
    if len(different) <= folds:
        raise DataError(
            f"{number_of(folds, 'fold')} by time need {folds + 1} different times, and there are {len(different)}; "
            "take fewer folds, or a finer column"
        )
    before = np.concatenate([[0], np.cumsum(counts)])  # rows before each of the times
    cuts = list[int]()  # places among the times, at which a part begins
    for place in range(1, folds + 1):
        wanted = int(np.argmin(np.abs(before - place * len(order) / (folds + 1))))
        wanted = max(wanted, cuts[-1] + 1 if cuts else 1)
        cuts.append(min(wanted, len(different) - 1 - (folds - place)))
    out = []
    for place, cut in enumerate(cuts):
        until = cuts[place + 1] if place + 1 < folds else len(different)
        held = (order >= different[cut]) & (order <= different[until - 1])
        train = (order < different[cut]) & ~np.isin(units, units[held])
        if not train.any():
            raise DataError(
                f"fold {place + 1} by time: all earlier rows share a group or an input with those held out, so nothing "
                "is left to train on; take fewer folds, or leave the group column out"
            )
        out.append(Fold(1, place + 1, np.flatnonzero(train), np.flatnonzero(held)))
    return out


def latest(times: Sequence[Any], units: Places, share: float) -> tuple[Places, Places]:
    """What of some rows trains and what validates: about the last ``share`` of them by time.

    Raises DataError where nothing is left on a side.
    """
    order = np.asarray(times)
    different, counts = np.unique(order, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])[:-1]
    cut = int(np.argmin(np.abs(before - (1 - share) * len(order))))
    held = order >= different[max(cut, min(1, len(different) - 1))]
    train = ~held & ~np.isin(units, units[held])
    if held.all() or not train.any():
        raise DataError("the training rows of a fold cannot be divided by time to choose a checkpoint; use fewer folds")
    return np.flatnonzero(train), np.flatnonzero(held)


def read_column(rows: Sequence[Row], column: str, setting: str) -> list[Any]:
    """The values in ``column``, none of them blank. Raises DataError naming ``setting`` and the rows that lack it."""
    if not any(column in row for row in rows):
        known = ", ".join(dict.fromkeys(key for row in rows[:100] for key in row))
        raise DataError(f"{named(rows)}{setting}: there is no column {column!r}; there are {known}")
    blank = [place for place, row in enumerate(rows) if row.get(column) is None or str(row[column]).strip() == ""]
    if blank:
        raise DataError(f"{setting}: column {column!r} is empty in {places(rows, blank)}; fill it in, or remove these")
    return [row[column] for row in rows]


def read_times(rows: Sequence[Row], column: str, setting: str) -> list[float] | list[int]:
    """The times in ``column``: numbers, or dates by ISO 8601 (as microseconds; without a zone they are UTC's).

    Raises DataError naming the rows whose cell is neither, or that are of two kinds.
    """
    values = read_column(rows, column, setting)
    read = [_time(value) for value in values]
    bad = [place for place, value in enumerate(read) if value is None]
    if bad:
        raise DataError(
            f"{setting}: column {column!r} holds no number and no date such as 2024-05-31 or 2024-05-31T12:00:00 in "
            f"{places(rows, bad)} (given: {values[bad[0]]!r})"
        )
    dates = [place for place, value in enumerate(read) if isinstance(value, int)]
    if 0 < len(dates) < len(read):
        raise DataError(f"{setting}: column {column!r} holds dates in {places(rows, dates)} and numbers elsewhere")
    return read  # type: ignore[return-value]


EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def _time(value: Any) -> float | int | None:
    """A number as float, a date as int microseconds; None: neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            try:
                value = datetime.datetime.fromisoformat(value.strip())
            except ValueError:
                return None
    if isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if isinstance(value, datetime.datetime):
        there = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        return (there - EPOCH) // datetime.timedelta(microseconds=1)
    return None
