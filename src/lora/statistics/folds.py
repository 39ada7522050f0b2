"""Values of folds: their mean with an interval that knows that folds share their training rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from lora.errors import ConfigError, DataError
from lora.statistics.estimate import LEVEL, check_settings, without_nan
from lora.statistics.interval import rounding
from lora.statistics.metric import Metric


@dataclass(frozen=True)
class FoldMean:
    """The mean of folds.

    Attributes:
        value: nan where no fold has one.
        low, high: ends of the corrected resampled t interval; nan of a single fold.
        deviation: standard deviation between folds.
        folds: how many have a value, repeats counted.
        p_value: two-sided, that the mean is 0; of differences.
        note: what a reader must know of it, in full sentences; empty: nothing.
    """

    value: float
    low: float
    high: float
    level: float
    deviation: float
    folds: int
    p_value: float = math.nan
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is undefined is None."""
        return without_nan(asdict(self))


def mean_of_folds(
    values: Sequence[float], ratio: float, *, level: float = LEVEL, metric: Metric | None = None
) -> FoldMean:
    """The mean of ``values`` with the corrected resampled t interval of Nadeau and Bengio.

    Two folds of k share most of their training rows, so that their values vary together. The variance of the mean of J
    values is therefore not s²/J; (1/J + n_test/n_train)·s² is nearer (Nadeau and Bengio, Inference for the
    generalization error, Machine Learning 52, 2003, section 3; of repeated folds Bouckaert and Frank, 2004), with
    Student's t of J - 1 degrees of freedom. It is of the learning procedure on so many rows: other training rows
    would give other values. Undefined values (nan) are left out.

    Args:
        values: of each fold of each repeat.
        ratio: held-out rows over training rows, as a mean over folds.
        metric: whose range the ends are kept in.

    Raises:
        ConfigError: a ratio that is not above 0. DataError: no values at all.
    """
    check_settings(level, None)
    if not ratio > 0:
        raise ConfigError(f"ratio is {ratio}; it must be above 0: held-out rows over training rows")
    if not len(values):
        raise DataError("there are no folds")
    given = np.asarray(values, dtype=np.float64)
    there = given[~np.isnan(given)]
    many = len(there)
    note = "" if many == len(given) else f"In {len(given) - many} of {len(given)} folds it is undefined; left out."
    if not many:
        return FoldMean(math.nan, math.nan, math.nan, level, math.nan, 0, note=note)
    mean = float(there.mean())
    if many == 1:
        return FoldMean(mean, math.nan, math.nan, level, math.nan, 1, note=f"{note} One fold has no interval.".strip())
    deviation = float(there.std(ddof=1))
    error = deviation * math.sqrt(1 / many + ratio)
    if error <= rounding(there):
        p = 1.0 if abs(mean) <= rounding(there) else math.nan
        note = f"{note} All folds have the same value, so they say nothing of how far it may be off.".strip()
        return FoldMean(mean, math.nan, math.nan, level, 0.0, many, p, note)
    half = float(stdtrit(many - 1, (1 + level) / 2)) * error
    low, high = mean - half, mean + half
    if metric is not None:
        low, high = max(low, metric.lowest), min(high, metric.highest)
    p = 2 * float(stdtr(many - 1, -abs(mean) / error))
    return FoldMean(mean, low, high, level, deviation, many, p, note)
