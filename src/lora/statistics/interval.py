"""Intervals from resamples, and the p-value that belongs to them.

Shapes: b resample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from lora.statistics.rows import Array


@dataclass(frozen=True)
class Bootstrap:
    """The distribution of a value over resamples, read as an interval or as a p-value.

    Ends are quantiles of the resamples: of the plain percentile interval (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13), or with bias and skewness corrected (BCa, eq. 14.9 and 14.10). Either is widened for
    small numbers as Hesterberg (2015, What teachers should know about the bootstrap) has it for the
    percentile interval: resamples vary by the factor (n - 1)/n too little, and the normal quantile stands where
    Student's should.

    Attributes:
        point: the value of all rows.
        values: (b,) those of resamples, undefined ones (nan) left out.
        units: what was drawn: rows, or groups.
        acceleration: BCa's; with 0, and ``corrected`` false, it is the percentile interval.
    """

    point: float
    values: Array
    units: int
    acceleration: float = 0.0
    corrected: bool = True

    @property
    def informative(self) -> bool:
        """Whether there is anything to be read: two units or more, whose resamples differ."""
        return self.units > 1 and len(self.values) > 1 and bool(np.ptp(self.values) > rounding(self.values))

    def interval(self, level: float) -> tuple[float, float]:
        """Ends of the interval; nan where there are no resamples or one unit."""
        if self.units < 2 or not len(self.values):
            return math.nan, math.nan
        z = float(stdtrit(self.units - 1, (1 + level) / 2)) * math.sqrt(self.units / (self.units - 1))
        low, high = np.quantile(self.values, [self._share(-z), self._share(z)])
        return float(low), float(high)

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided: one minus the largest level at which the interval leaves out ``null`` (inversion).

        Efron and Tibshirani (1993), chapter 15. It is never below 2/(b + 1), which is what b resamples can show.
        """
        if self.units < 2 or not len(self.values):
            return math.nan
        if not self.informative:
            return 1.0 if self.values[0] == null else math.nan
        many = len(self.values)
        share = (_below(self.values, null) * many + 0.5) / (many + 1)
        away = float(ndtri(share)) - self._bias
        stretched = (
            away / (1 + self.acceleration * away) if 1 + self.acceleration * away > 0 else math.copysign(8, away)
        )
        z = abs(stretched - self._bias) * math.sqrt((self.units - 1) / self.units)
        return float(min(1.0, max(2 * float(stdtr(self.units - 1, -z)), 2 / (many + 1))))

    @property
    def spread(self) -> float:
        """Standard error: the standard deviation of resamples, with the factor that they vary too little."""
        if self.units < 2 or len(self.values) < 2:
            return math.nan
        return float(self.values.std(ddof=1)) * math.sqrt(self.units / (self.units - 1))

    @property
    def _bias(self) -> float:
        """How far the median of resamples is off the value, in normal quantiles: eq. 14.14, ties counting half."""
        if not self.corrected:
            return 0.0
        found = float(ndtri(_below(self.values, self.point)))
        return found if math.isfinite(found) else 0.0

    def _share(self, z: float) -> float:
        """The share of resamples below the end that is ``z`` normal quantiles away: eq. 14.10."""
        moved = self._bias + z
        below = 1 - self.acceleration * moved
        # A pole: with skewness this strong every share up to the end belongs inside.
        return float(ndtr(self._bias + moved / below)) if below > 0 else float(z > 0)


def rounding(values: Array) -> float:
    """By how much the same value may differ where it was added up in another order."""
    return 1e-12 * float(np.abs(values).max(initial=0.0))


def _below(values: Array, point: float) -> float:
    scale = rounding(values)
    less, equal = values < point - scale, np.abs(values - point) <= scale
    return float(less.mean() + equal.mean() / 2)


def wilson(right: float, rows: float, level: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion, of ``right`` among ``rows``: Wilson (1927); eq. 4 of Brown, Cai and DasGupta (2001).

    Its coverage is near the nominal one from few rows on, also where all are right, where a bootstrap has no width.
    """
    if rows <= 0:
        return math.nan, math.nan
    z = float(ndtri((1 + level) / 2))
    share = right / rows
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return max(0.0, middle - half) if right > 0 else 0.0, min(1.0, middle + half) if right < rows else 1.0
