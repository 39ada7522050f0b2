"""What metrics need to know of each row, and what is drawn when rows are drawn anew.

Shapes: n row, m different row (cell), k statistic, u unit of resampling, b resample.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from lora.errors import DataError

Array = NDArray[np.float64]
Places = NDArray[np.intp]

SEARCHED = 64  # statistics of a row, up to which equal rows are looked for; beyond, sorting costs more than it saves


@dataclass(frozen=True, eq=False)
class Rows:
    """Sufficient statistics of rows: all that a metric needs to know of them.

    A metric of a resample is then a function of weights times statistics, and no text, label or score is looked at
    again. Equal rows share one cell, so that as many numbers are drawn as there are different rows: with C classes the
    occupied cells of the confusion table, at most C².

    Attributes:
        kind: which metrics can read it.
        cells: (m, k) statistics of the different rows.
        which: (n,) the cell of each row.
        labels: names of what the statistics count, where they count by class.
        groups: (n,) number of the group of each row, from 0; None: every row is for itself.
        unit: what is drawn as a whole, in a word for a reader; default: ``row``, or ``group`` where there are groups.
    """

    kind: str
    cells: Array
    which: Places
    labels: tuple[Any, ...] = ()
    groups: Places | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if not self.unit:
            object.__setattr__(self, "unit", "row" if self.groups is None else "group")

    def __len__(self) -> int:
        return len(self.which)

    @classmethod
    def of(
        cls, kind: str, statistics: ArrayLike, *, labels: Sequence[Any] = (), groups: Sequence[Hashable] | None = None
    ) -> Rows:
        """Rows from statistics (n, k) of each. Raises DataError where one is no finite number."""
        matrix = np.asarray(statistics, dtype=np.float64)
        if matrix.ndim != 2:
            raise DataError(f"{kind}: statistics have {matrix.ndim} dimensions; they need two, rows by statistics")
        finite = np.isfinite(matrix).all(axis=1)
        if not finite.all():
            raise DataError(f"{kind}: row {int(np.argmin(finite))} (from 0) holds a value that is no finite number")
        count, width = matrix.shape
        if 0 < width <= SEARCHED and count:
            cells, which = np.unique(matrix, axis=0, return_inverse=True)
            which = which.reshape(-1)
        else:
            cells, which = matrix, np.arange(count)
        return cls(kind, cells, which, tuple(labels), group_numbers(groups, count))

    @classmethod
    def of_codes(
        cls, kind: str, codes: Places, cells_of: Any, *, labels: Sequence[Any], groups: Sequence[Hashable] | None
    ) -> Rows:
        """Rows that a number ``codes`` (n,) tells apart; ``cells_of``: different codes (m,) -> statistics (m, k)."""
        different, which = np.unique(codes, return_inverse=True)
        return cls(kind, cells_of(different), which.reshape(-1), tuple(labels), group_numbers(groups, len(codes)))

    def take(self, kept: ArrayLike) -> Rows:
        """The rows at ``kept`` (places, or a mask), in that order. Cells that none of them has are dropped."""
        which = self.which[np.asarray(kept)]
        used, renamed = np.unique(which, return_inverse=True)
        groups = None
        if self.groups is not None:
            groups = np.unique(self.groups[np.asarray(kept)], return_inverse=True)[1].reshape(-1)
        return replace(self, cells=self.cells[used], which=renamed.reshape(-1), groups=groups)

    @cached_property
    def counts(self) -> Array:
        """(m,) how many rows have each cell."""
        return np.bincount(self.which, minlength=len(self.cells)).astype(np.float64)

    @cached_property
    def units(self) -> Units:
        return units_of(self)


@dataclass(frozen=True, eq=False)
class Units:
    """What is drawn as a whole: single rows, or groups of rows that belong together.

    Attributes:
        sizes: (u,) how many equal units each stands for. Single rows that share a cell are such; groups are not merged.
        spread: (u, m) how many rows of each cell a unit brings; None: a unit is a row of its cell.
        which: (drawn units,) the entry of ``sizes`` that each of them belongs to.
    """

    sizes: Array
    spread: sparse.csr_matrix | None
    which: Places

    @property
    def drawn(self) -> int:
        """How many are drawn for a resample: rows, or groups."""
        return len(self.which)

    def onto_cells(self, weights: Array) -> Array:
        """Weights (b, u) of units as weights (b, m) of cells."""
        if self.spread is None:
            return weights
        return np.ascontiguousarray((self.spread.T @ weights.T).T)

    def statistics(self, cells: Array) -> Array:
        """(u, k) what each unit adds to the sums; ``cells`` (m, k)."""
        return cells if self.spread is None else np.asarray(self.spread @ cells)


def pooled(runs: Sequence[Rows]) -> Rows:
    """Several runs over the same rows as one: the figures of a row are drawn together, whichever run they are of.

    A metric of it is that of all runs' answers taken together, and its interval that of other rows, the runs being
    given. Raises DataError where they cannot be of the same rows.
    """
    first = runs[0]
    if len(runs) == 1:
        return first
    for other in runs[1:]:
        aligned(first, other)
    row = np.arange(len(first)) if first.groups is None else first.groups
    starts = np.cumsum([0, *(len(rows.cells) for rows in runs[:-1])])
    which = np.concatenate([rows.which + start for rows, start in zip(runs, starts, strict=True)])
    cells = np.vstack([rows.cells for rows in runs])
    if cells.shape[1] <= SEARCHED and len(cells):
        cells, same = np.unique(cells, axis=0, return_inverse=True)
        which = same.reshape(-1)[which]
    return Rows(first.kind, cells, which, first.labels, np.tile(row, len(runs)), first.unit)


def units_of(rows: Rows) -> Units:
    if rows.groups is None:
        return Units(rows.counts, None, rows.which)
    number = int(rows.groups.max(initial=-1)) + 1
    ones = np.ones(len(rows))
    spread = sparse.csr_matrix((ones, (rows.groups, rows.which)), shape=(number, len(rows.cells)))
    return Units(np.ones(number), spread, np.arange(number))


def group_numbers(groups: Sequence[Hashable] | None, count: int) -> Places | None:
    """Groups named by anything hashable as numbers from 0, in the order in which they are met."""
    if groups is None:
        return None
    if len(groups) != count:
        raise DataError(f"groups: {len(groups)} of them for {count} rows; every row needs one")
    numbers: dict[Hashable, int] = {}
    named = groups.tolist() if isinstance(groups, np.ndarray) else groups
    return np.asarray([numbers.setdefault(group, len(numbers)) for group in named], dtype=np.intp)


def aligned(a: Rows, b: Rows) -> tuple[Rows, Rows]:
    """Two sets of statistics of the same rows, over the cells that they have together: weights then serve both.

    Raises DataError where they cannot be of the same rows.
    """
    if len(a) != len(b):
        raise DataError(f"{len(a)} rows beside {len(b)}: a paired comparison needs both on the same rows, in one order")
    if a.kind != b.kind or a.labels != b.labels:
        raise DataError(
            f"the two sides are not of one sort: {a.kind!r} with {len(a.labels)} labels beside {b.kind!r} with "
            f"{len(b.labels)}; name the same labels for both"
        )
    groups = [np.arange(len(rows)) if rows.groups is None else rows.groups for rows in (a, b)]
    if (a.groups is None) != (b.groups is None) or not np.array_equal(groups[0], groups[1]):
        raise DataError("the two sides have unlike groups; the rows are the same, so their groups are")
    codes = a.which * max(len(b.cells), 1) + b.which
    different, which = np.unique(codes, return_inverse=True)
    of_a, of_b = np.divmod(different, max(len(b.cells), 1))
    which = which.reshape(-1)
    return replace(a, cells=a.cells[of_a], which=which), replace(b, cells=b.cells[of_b], which=which)
