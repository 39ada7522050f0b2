"""``estimate``: the value of a metric with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora.errors import ConfigError
from lora.statistics.interval import Bootstrap, wilson
from lora.statistics.metric import Metric, evaluator
from lora.statistics.resampling import affordable, left_out, resample, skewness
from lora.statistics.rows import Array, Rows

LEVEL = 0.95
FEW_UNITS = 10  # below this many, resamples are too alike for an interval that can be relied on
METHODS = ("auto", "bca", "percentile")


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its interval.

    Attributes:
        value: nan where it is undefined; ``note`` then says why.
        low, high: ends of the interval; nan where none can be had.
        level: of the interval.
        n: rows.
        units: what was drawn independently: rows, or groups of them.
        method: how the interval was made: ``wilson``, ``bca`` or ``percentile``.
        note: what a reader must know of it, in full sentences; empty: nothing.
        higher_is_better: None where neither way is.
    """

    metric: str
    value: float
    low: float
    high: float
    level: float
    n: int
    units: int
    method: str
    note: str = ""
    higher_is_better: bool | None = True

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is undefined is None."""
        return without_nan(asdict(self))

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"{self.metric} undefined (n={self.n}): {self.note}"
        ends = "no interval" if math.isnan(self.low) else f"{self.level:.0%} {self.low:.4g} to {self.high:.4g}"
        return f"{self.metric} {self.value:.4g} ({ends}, n={self.n})"


def estimate(
    metric: Metric,
    rows: Rows,
    *,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int | None = None,
    method: str = "auto",
) -> Estimate:
    """``metric`` of ``rows`` with its interval. The same rows and seed give the same interval.

    >>> rows = label_rows(true, said)
    >>> print(estimate(F1_MACRO, rows))
    F1 macro 0.7891 (95% 0.7123 to 0.8514, n=126)

    Args:
        resamples: default: 10,000, of more than 20,000 rows fewer, at least 2,000.
        method: ``auto``: Wilson's interval for a proportion of single rows, else BCa. ``bca`` and ``percentile``:
            that one. Where rows have groups, whole groups are drawn.

    Raises:
        ConfigError: rows of a kind that the metric does not read, a setting out of range.
    """
    return estimates([metric], rows, seed=seed, level=level, resamples=resamples, method=method)[0]


def estimates(
    metrics: Sequence[Metric], rows: Rows, *, seed: int = 0, level: float = LEVEL, resamples: int | None = None,
    method: str = "auto",
) -> list[Estimate]:  # fmt: skip
    """As `estimate`, of several metrics from the same resamples: hardly slower than one of them."""
    check_settings(level, resamples)
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; there are {', '.join(METHODS)}")
    values = evaluator(metrics, rows, rows.units)
    units = rows.units
    if not len(rows):
        return [_undefined(metric, rows, level) for metric in metrics]
    points = values(units.sizes[None, :])[:, 0]
    drawn = [not (method == "auto" and plain_proportion(metric, rows)) for metric in metrics]
    sampled = np.full((len(metrics), 1), np.nan)
    accelerations = np.zeros(len(metrics))
    if any(drawn) and units.drawn > 1:
        sampled = resample(values, units, resamples or affordable(units), np.random.default_rng(seed))
        if method != "percentile":
            accelerations = skewness(*left_out(values, units))
    out = []
    for place, metric in enumerate(metrics):
        if math.isnan(points[place]):
            out.append(_undefined(metric, rows, level))
        elif not drawn[place]:
            out.append(_proportion(metric, rows, float(points[place]), level))
        else:
            own = Bootstrap(
                float(points[place]), defined(sampled[place]), units.drawn, accelerations[place], method != "percentile"
            )
            how = "percentile" if method == "percentile" else "bca"
            out.append(_resampled(metric, rows, own, sampled.shape[1], level, how))
    return out


def plain_proportion(metric: Metric, rows: Rows) -> bool:
    """Whether the metric is the share of independent rows that are in a state."""
    return metric.proportion and rows.groups is None


def defined(values: Array) -> Array:
    return values[~np.isnan(values)]


def check_settings(level: float, resamples: int | None) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}; it must lie between 0 and 1, such as 0.95")
    if resamples is not None and resamples < 100:
        raise ConfigError(f"resamples is {resamples}; an interval needs at least 100")


def few(units: int, rows: Rows) -> str:
    """A remark where too little was drawn for an interval that can be relied on."""
    if units >= FEW_UNITS:
        return ""
    return f"Of {units} {rows.unit}{'' if units == 1 else 's'} alone the interval says nothing that can be relied on."


def without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with None for floats that JSON has not."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _undefined(metric: Metric, rows: Rows, level: float) -> Estimate:
    nan, count = math.nan, rows.units.drawn if len(rows) else 0
    return Estimate(
        metric.name, nan, nan, nan, level, len(rows), count, "none", metric.reason(rows), metric.higher_is_better
    )  # fmt: skip


def _proportion(metric: Metric, rows: Rows, value: float, level: float) -> Estimate:
    n = len(rows)
    low, high = wilson(round(value * n), n, level)
    return Estimate(metric.name, value, low, high, level, n, n, "wilson", few(n, rows), metric.higher_is_better)


def _resampled(metric: Metric, rows: Rows, own: Bootstrap, drawn: int, level: float, how: str) -> Estimate:
    low, high = own.interval(level)
    notes = [few(own.units, rows)]
    if own.units > 1 and not own.informative:
        low = high = math.nan
        notes.append(f"{metric.name}: all resamples have the same value, so they say nothing of how far it may be off.")
    elif own.units > 1 and len(own.values) < drawn:
        share = 1 - len(own.values) / drawn
        notes.append(f"In {share:.1%} of the resamples it is undefined; these are left out of the interval.")
    return Estimate(
        metric.name, own.point, low, high, level, len(rows), own.units, how, " ".join(filter(None, notes)),
        metric.higher_is_better,
    )  # fmt: skip
