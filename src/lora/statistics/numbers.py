"""Metrics of numbers: errors, R², correlations.

Shapes: n row, m cell, b resample; ... any leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lora.errors import DataError
from lora.statistics.metric import OrderMetric, SumMetric, ratio
from lora.statistics.rows import Array, Places, Rows

NUMBERS = "numbers"
_VARIED = "It needs rows that differ, on both sides."
_ROUNDING = 1e-12  # of a sum of squares: what is left of a variance below it is rounding


def number_rows(true: ArrayLike, said: ArrayLike, *, groups: Sequence[Hashable] | None = None) -> Rows:
    """Rows with a true and a said number, each (n,). Raises DataError: one is not finite, or has no finite square."""
    y, x = np.asarray(true, dtype=np.float64), np.asarray(said, dtype=np.float64)
    if y.shape != x.shape or y.ndim != 1:
        raise DataError(f"{NUMBERS}: true ones have shape {y.shape}, said ones {x.shape}; both must be (rows,)")
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused below, with its row
        # Not centred, the sums of squares of large numbers would drown their variance.
        error, plain, x, y = x - y, (x, y), _centred(x), _centred(y)
        # Values as they are too: of values far smaller than the mean, centring leaves one, and their order is lost.
        columns = np.column_stack([np.ones_like(x), np.abs(error), error**2, x, y, x * x, y * y, x * y, *plain])
        sums = columns[:, :-2].sum(axis=0)
    if np.isfinite(plain).all() and not np.isfinite(sums).all():
        row = int(np.argmax(np.abs(plain).max(axis=0)))
        value = max((float(side[row]) for side in plain), key=abs)
        raise DataError(
            f"{NUMBERS}: row {row} (from 0) holds {value:g}, and its square is beyond what a 64-bit number holds "
            f"({np.finfo(np.float64).max:.2g}), so there is no error or variance; leave it out, or use another unit"
        )
    return Rows.of(NUMBERS, columns, groups=groups)


def _centred(values: Array) -> Array:
    return values - values.mean() if len(values) and np.ptp(values) > 0 else np.zeros_like(values)


def _variance(sums: Array, linear: int, square: int) -> Array:
    """n times the variance, and 0 where only rounding is left of it."""
    found: Array = sums[..., square] - ratio(sums[..., linear] ** 2, sums[..., 0], 0.0)
    return np.where(found > _ROUNDING * sums[..., square], found, 0.0)


def _r2(sums: Array) -> Array:
    return 1 - ratio(sums[..., 2], _variance(sums, 4, 6))


def _pearson(sums: Array) -> Array:
    covariance = sums[..., 7] - ratio(sums[..., 3] * sums[..., 4], sums[..., 0], 0.0)
    both = np.sqrt(_variance(sums, 3, 5)) * np.sqrt(_variance(sums, 4, 6))
    return np.clip(ratio(covariance, both), -1, 1)


MAE = SumMetric(
    "MAE", (NUMBERS,), "There are no rows.", False, 0.0, math.inf,
    function=lambda sums: ratio(sums[..., 1], sums[..., 0]),
)  # fmt: skip
MSE = SumMetric(
    "MSE", (NUMBERS,), "There are no rows.", False, 0.0, math.inf,
    function=lambda sums: ratio(sums[..., 2], sums[..., 0]),
)  # fmt: skip
RMSE = SumMetric(
    "RMSE", (NUMBERS,), "There are no rows.", False, 0.0, math.inf,
    function=lambda sums: np.sqrt(ratio(sums[..., 2], sums[..., 0])),
)  # fmt: skip
R2 = SumMetric("R²", (NUMBERS,), "It needs rows whose true values differ.", True, -math.inf, 1.0, function=_r2)
PEARSON = SumMetric("Pearson", (NUMBERS,), _VARIED, True, -1.0, 1.0, function=_pearson)


class Ties:
    """Cells in the order of a value, equal ones together; weights may then be added up tie by tie."""

    def __init__(self, values: Array) -> None:
        self.order: Places = np.argsort(values, kind="stable")
        ordered = values[self.order]
        new = np.r_[True, ordered[1:] != ordered[:-1]] if len(values) else np.zeros(0, dtype=bool)
        self.starts: Places = np.flatnonzero(new)
        self.tie: Places = np.cumsum(new) - 1  # (m,) of each ordered cell
        self.single = len(self.starts) == len(values)

    def sums(self, weights: Array) -> Array:
        """Weights (b, m) of cells -> (b, ties), lowest value first."""
        ordered = weights[:, self.order]
        return ordered if self.single else np.add.reduceat(ordered, self.starts, axis=1)

    def ranks(self, weights: Array) -> Array:
        """Mean ranks (b, m) of cells in their own order, each cell being there as often as its weight says."""
        tied = self.sums(weights)
        middles = np.cumsum(tied, axis=1) - (tied - 1) / 2
        out = np.empty_like(weights)
        out[:, self.order] = middles[:, self.tie]
        return out


def _spearman(cells: Array) -> Callable[[Array], Array]:
    of_said, of_true = Ties(cells[:, 8]), Ties(cells[:, 9])

    def value(weights: Array) -> Array:
        rows = weights.sum(axis=1, keepdims=True)
        x, y = of_said.ranks(weights) - (rows + 1) / 2, of_true.ranks(weights) - (rows + 1) / 2
        first = x * weights
        xx, xy = np.einsum("bm,bm->b", first, x), np.einsum("bm,bm->b", first, y)
        yy = np.einsum("bm,bm,bm->b", weights, y, y)
        return ratio(xy, np.sqrt(xx * yy))

    return value


SPEARMAN = OrderMetric("Spearman", (NUMBERS,), _VARIED, True, -1.0, 1.0, prepare=_spearman)
"""Pearson's correlation of mean ranks."""
