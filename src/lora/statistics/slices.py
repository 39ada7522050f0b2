"""Metrics of parts of the rows, and which part is weak beyond what chance makes of many parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.special import ndtr

from lora.errors import ConfigError, DataError
from lora.statistics.compare import WORSE, row_values, verdict
from lora.statistics.estimate import LEVEL, Estimate, defined, estimate, plain_proportion, without_nan
from lora.statistics.interval import Bootstrap
from lora.statistics.metric import Metric, evaluator
from lora.statistics.multiple import corrected
from lora.statistics.resampling import affordable, resample
from lora.statistics.rows import Array, Places, Rows

SMALLEST = 20  # rows of a slice: below, nearly any value is within chance
MOST_VALUES = 20  # different ones of a column of numbers, up to which each is a slice of its own
QUANTILES = 4
FIRST = 1000  # resamples of a slice that turns out to be like the rest; others get all
_NEAR = 0.1  # p-value below which it is worth all


@dataclass(frozen=True)
class Slice:
    """A part of the rows against all others.

    Attributes:
        column, name: the rows whose value of ``column`` is ``name``, or lies in that range.
        estimate: the metric there, with its interval.
        rest: the metric of all other rows.
        p_value, p_corrected: two-sided, that slice and rest do not differ; alone, and for the number of slices.
        verdict: ``better``, ``worse`` (than the rest), ``no difference seen`` or ``not known``.
    """

    column: str
    name: str
    estimate: Estimate
    rest: float
    p_value: float
    p_corrected: float
    verdict: str

    @property
    def n(self) -> int:
        return self.estimate.n

    def to_dict(self) -> dict[str, Any]:
        return without_nan({**asdict(self), "estimate": self.estimate.to_dict(), "n": self.n})


@dataclass(frozen=True)
class Slices:
    """All slices, weakest value first, and what was left out for being too small, in full sentences."""

    slices: list[Slice]
    notes: list[str]

    @property
    def weakest(self) -> Slice | None:
        """The weakest of those that are worse than the rest after correction; None: no slice is shown to be."""
        return next((part for part in self.slices if part.verdict == WORSE), None)

    def to_dict(self) -> dict[str, Any]:
        weakest = self.weakest
        return {
            "slices": [part.to_dict() for part in self.slices],
            "weakest": None if weakest is None else {"column": weakest.column, "name": weakest.name},
            "notes": self.notes,
        }


def by_slice(
    metric: Metric, rows: Rows, columns: Mapping[str, Sequence[Any]], *, smallest: int = SMALLEST, seed: int = 0,
    level: float = LEVEL, quantiles: int = QUANTILES, resamples: int | None = None, correction: str = "holm",
) -> Slices:  # fmt: skip
    """``metric`` by the values of columns, each slice held against all rows that are not in it.

    Args:
        columns: name -> one value for each row. Numbers of more than 20 different values are cut at quantiles; of
            anything else every value is a slice. None (and nan) is in no slice.
        smallest: rows that a slice, and its rest, need; smaller ones are named in the notes alone.
        correction: for the number of all slices together, see `corrected`.

    Raises:
        DataError: a column of another length. ConfigError: a setting out of range, a metric of which neither way is
            better.
    """
    if metric.higher_is_better is None:
        raise ConfigError(f"{metric.name}: neither way is better, so no slice is weak")
    if smallest < 2 or quantiles < 2:
        raise ConfigError(f"smallest is {smallest} and quantiles {quantiles}; both must be at least 2")
    found, notes = list[Slice](), list[str]()
    for column, values in columns.items():
        if len(values) != len(rows):
            raise DataError(f"column {column!r} has {len(values)} values for {len(rows)} rows")
        parts = slices_of(values, quantiles)
        small = [(name, places) for name, places in parts if min(len(places), len(rows) - len(places)) < smallest]
        if small:
            held = sum(len(places) for _, places in small if len(places) < smallest)
            notes.append(
                f"{column}: {len(small)} of {len(parts)} slices ({held} rows) left out, as they or all other rows are "
                f"fewer than {smallest}."
            )
        for name, places in parts:
            if min(len(places), len(rows) - len(places)) >= smallest:
                found.append(_against_rest(metric, rows, places, column, name, seed, level, resamples))
    p_values = corrected([part.p_value for part in found], correction)
    found = [
        replace(
            part,
            p_corrected=float(p),
            verdict=verdict(part.estimate.value - part.rest, float(p), level, metric.higher_is_better),
        )
        for part, p in zip(found, p_values, strict=True)
    ]
    sign = 1 if metric.higher_is_better else -1
    found.sort(key=lambda part: (math.isnan(part.estimate.value), sign * part.estimate.value))
    return Slices(found, notes)


def slices_of(values: Sequence[Any], quantiles: int = QUANTILES) -> list[tuple[str, Places]]:
    """Names of slices and the places of their rows. Quantiles that fall together make fewer slices."""
    numbers = _numbers(values)
    if numbers is not None and len(np.unique(defined(numbers))) > MOST_VALUES:
        edges = np.unique(np.quantile(defined(numbers), np.linspace(0, 1, quantiles + 1)))
        bins = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
        out = []
        for number in range(len(edges) - 1):
            last = number == len(edges) - 2
            places = np.flatnonzero((bins == number) & ~np.isnan(numbers))
            out.append((f"{edges[number]:.4g} to {'' if last else 'below '}{edges[number + 1]:.4g}", places))
        return [part for part in out if len(part[1])]
    names: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        if value is not None and value == value:
            names.setdefault(str(value), []).append(place)
    return [(name, np.asarray(places, dtype=np.intp)) for name, places in sorted(names.items())]


def _numbers(values: Sequence[Any]) -> Array | None:
    plain = [value for value in values if value is not None]
    if not plain or any(isinstance(value, (bool, np.bool_, str)) for value in plain):
        return None
    try:
        return np.asarray([math.nan if value is None else float(value) for value in values])
    except (TypeError, ValueError):
        return None


def _against_rest(
    metric: Metric, rows: Rows, places: Places, column: str, name: str, seed: int, level: float, resamples: int | None
) -> Slice:
    outside = np.ones(len(rows), dtype=bool)
    outside[places] = False
    part, rest = rows.take(places), rows.take(outside)
    own, other = estimate(metric, part, seed=seed, level=level, resamples=resamples), metric.value(rest)
    if plain_proportion(metric, rows):
        p = two_proportions(_hits(metric, part), len(part), _hits(metric, rest), len(rest))
    else:
        p = _independent(metric, part, rest, own.value - other, seed, resamples)
    return Slice(column, name, own, other, p, p, "")


def _hits(metric: Metric, rows: Rows) -> float:
    return float(row_values(metric, rows) @ rows.counts)


def two_proportions(a: float, of_a: int, b: float, of_b: int) -> float:
    """Two-sided p-value that two independent proportions are one: the "N - 1" chi-squared test (Campbell, 2007), whose
    level holds down to expected counts of 1."""
    n = of_a + of_b
    pooled = (a + b) / n
    if pooled in (0, 1):
        return 1.0
    z = abs(a / of_a - b / of_b) / math.sqrt(pooled * (1 - pooled) * (1 / of_a + 1 / of_b) * n / (n - 1))
    return float(min(1.0, 2 * ndtr(-z)))


def _independent(metric: Metric, a: Rows, b: Rows, point: float, seed: int, resamples: int | None) -> float:
    """Slices are parts of one sample, of which neither side says anything of the other: each is drawn for itself.

    Groups that have rows on both sides are so taken for independent, which makes the test a little careful where they
    make both alike.
    """
    if math.isnan(point) or min(a.units.drawn, b.units.drawn) < 2:
        return math.nan
    rng = np.random.default_rng(seed)
    values = [evaluator([metric], side, side.units) for side in (a, b)]
    p = math.nan
    most = resamples or min(affordable(side.units) for side in (a, b))
    for many in (min(FIRST, most), most):
        one, other = (resample(own, side.units, many, rng)[0] for own, side in zip(values, (a, b), strict=True))
        p = Bootstrap(point, defined(one - other), min(a.units.drawn, b.units.drawn), corrected=False).p_value()
        if not p < _NEAR:
            break
    return p
