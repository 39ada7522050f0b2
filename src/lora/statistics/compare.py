"""``compare``: is one system better than another on the same rows, and could the data have shown it?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.special import ndtri

from lora.errors import ConfigError
from lora.statistics.estimate import LEVEL, check_settings, defined, few, plain_proportion, without_nan
from lora.statistics.interval import Bootstrap, rounding
from lora.statistics.metric import Metric, SumMetric, evaluator
from lora.statistics.multiple import corrected
from lora.statistics.paired import bonett_price, exchange_test, mcnemar
from lora.statistics.resampling import affordable, weights
from lora.statistics.rows import Array, Rows, aligned

TESTS = ("auto", "bootstrap", "permutation", "mcnemar", "mcnemar exact")
POWER = 0.8  # with which the smallest difference is told: Cohen's (1988) convention
BETTER, WORSE, ALIKE, UNKNOWN = "better", "worse", "no difference seen", "not known"


@dataclass(frozen=True)
class Comparison:
    """What two systems differ by on the same rows.

    Attributes:
        a, b: their values; ``difference`` is a - b.
        low, high: ends of the interval of the difference, at ``level``; nan where none can be had.
        p_value: two-sided, that there is no difference; nan where no test can be had.
        p_corrected: for the number of comparisons that it is one of; alone the same.
        test: how it was had: ``bootstrap``, ``permutation``, ``mcnemar`` (mid-p) or ``mcnemar exact``.
        effect: the difference in standard deviations of what rows contribute to it: of a mean Cohen's d for pairs
            (1988, section 2.3.5).
        detectable: the smallest difference that such data show with a probability of 80 %.
        n, units: rows; what was drawn independently: rows, or groups.
        comparisons: how many were corrected for.
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    level: float
    p_value: float
    p_corrected: float
    test: str
    effect: float
    detectable: float
    n: int
    units: int
    higher_is_better: bool | None = True
    comparisons: int = 1
    note: str = ""

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` (a than b), ``no difference seen``, or ``not known`` where there is no p-value."""
        return verdict(self.difference, self.p_corrected, self.level, self.higher_is_better)

    def not_worse(self, margin: float) -> bool:
        """Whether a is shown to be worse than b by less than ``margin``, if at all (non-inferiority).

        The end of the two-sided interval must lie inside the margin, which at 95 % is a one-sided test at 2.5 %
        (ICH E9, section 3.3.2). To find no difference shows no such thing.

        Raises:
            ConfigError: a margin that is not above 0, or a metric of which neither way is better.
        """
        if not margin > 0:
            raise ConfigError(f"margin is {margin}; it must be above 0, in the metric's own unit")
        if self.higher_is_better is None:
            raise ConfigError(f"{self.metric}: neither way is better, so nothing is worse")
        return bool(self.low > -margin if self.higher_is_better else self.high < margin)

    def not_worse_sentence(self, margin: float) -> str:
        """The same in words."""
        if self.not_worse(margin):
            return f"not worse by {margin:g} or more (with {self.level:.0%} confidence)"
        return f"not shown to be within {margin:g} of the other (with {self.level:.0%} confidence)"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is undefined is None."""
        return without_nan({**asdict(self), "verdict": self.verdict})

    def __str__(self) -> str:
        said = f"{self.metric} {self.a:.4g} against {self.b:.4g}: {self.verdict}"
        if math.isnan(self.p_corrected):
            return f"{said}. {self.note}"
        said += f", difference {self.difference:+.4g} ({self.level:.0%} {self.low:+.4g} to {self.high:+.4g}, "
        said += f"p={self.p_corrected:.3g}, n={self.n})"
        if self.verdict == ALIKE and not math.isnan(self.detectable):
            said += f"; these rows would show one of {self.detectable:.2g} or more in {POWER:.0%} of cases"
        return said


def verdict(difference: float, p_value: float, level: float = LEVEL, higher_is_better: bool | None = True) -> str:
    """A word for a difference and its (corrected) p-value. Where neither way is better: ``higher`` or ``lower``."""
    if math.isnan(p_value) or math.isnan(difference):
        return UNKNOWN
    if p_value > 1 - level or difference == 0:
        return ALIKE
    if higher_is_better is None:
        return "higher" if difference > 0 else "lower"
    return BETTER if (difference > 0) == higher_is_better else WORSE


def compare(
    metric: Metric, a: Rows, b: Rows, *, seed: int = 0, level: float = LEVEL, resamples: int | None = None,
    test: str = "auto",
) -> Comparison:  # fmt: skip
    """``metric`` of ``a`` against that of ``b``, both on the same rows in the same order.

    Rows (or groups) are drawn once and serve both sides, so what makes a row hard for both cancels out.

    Args:
        resamples: default: 10,000, of more than 20,000 rows fewer, at least 2,000.
        test: ``auto``: McNemar's mid-p test for a proportion of single rows, else the bootstrap (the level at which the
            interval of the difference just leaves out 0). ``permutation``: systems exchanged by row, see
            `exchange_test`. ``mcnemar`` and ``mcnemar exact`` are for proportions of single rows alone.

    Raises:
        DataError: rows that cannot be the same. ConfigError: a test that does not fit, a setting out of range.
    """
    check_settings(level, resamples)
    if test not in TESTS:
        raise ConfigError(f"test is {test!r}; there are {', '.join(TESTS)}")
    a, b = aligned(a, b)
    plain = plain_proportion(metric, a)
    if test.startswith("mcnemar") and not plain:
        raise ConfigError(f"{test} is for shares of single rows; {metric.name} of these rows is none")
    if not len(a):
        return _unknown(metric, a, math.nan, math.nan, level)
    if plain and test != "bootstrap":
        found = _proportions(metric, a, b, level, "mcnemar" if test == "auto" else test)
    else:
        found = _resampled([metric], a, b, level, resamples, seed)[0]
    if test == "permutation" and not math.isnan(found.difference):
        p = exchange_test(metric, a, b, seed=seed, draws=resamples)
        found = replace(found, p_value=p, p_corrected=p, test="permutation")
    return found


def compare_each(
    metrics: Sequence[Metric], a: Rows, b: Rows, *, seed: int = 0, level: float = LEVEL, resamples: int | None = None
) -> list[Comparison]:
    """As `compare`, of several metrics of the same rows from the same resamples: hardly slower than one of them."""
    check_settings(level, resamples)
    a, b = aligned(a, b)
    drawn = [metric for metric in metrics if not (len(a) and plain_proportion(metric, a))]
    if not len(a):
        return [_unknown(metric, a, math.nan, math.nan, level) for metric in metrics]
    found = dict(zip(drawn, _resampled(drawn, a, b, level, resamples, seed), strict=True))
    return [found.get(metric) or _proportions(metric, a, b, level, "mcnemar") for metric in metrics]


def compare_all(
    metric: Metric, systems: Mapping[str, Rows], against: str, *, correction: str = "holm", **settings: Any
) -> dict[str, Comparison]:
    """Every other system against the one named ``against``, p-values corrected for their number.

    Args:
        correction: ``holm``, ``bh`` or ``none``, see `corrected`.
        settings: those of `compare`.
    """
    if against not in systems:
        raise ConfigError(f"against is {against!r}; there are {', '.join(systems)}")
    found = {
        name: compare(metric, rows, systems[against], **settings) for name, rows in systems.items() if name != against
    }
    return correct(found, correction)


def correct(found: Mapping[str, Comparison], correction: str = "holm") -> dict[str, Comparison]:
    """Comparisons of any sort as one family: their p-values corrected for the number of those that have one."""
    p_values = corrected([its.p_value for its in found.values()], correction)
    many = 1 if correction == "none" else max(1, sum(not math.isnan(its.p_value) for its in found.values()))
    return {
        name: replace(its, p_corrected=float(p), comparisons=many)
        for (name, its), p in zip(found.items(), p_values, strict=True)
    }


def _proportions(metric: Metric, a: Rows, b: Rows, level: float, test: str) -> Comparison:
    """Of 0 and 1 by row everything follows from the rows that only one side has right."""
    right_a, right_b = row_values(metric, a), row_values(metric, b)
    only_a, only_b = int(a.counts @ (right_a > right_b)), int(a.counts @ (right_a < right_b))
    n = len(a)
    low, high, error = bonett_price(only_a, only_b, n, level)
    p = mcnemar(only_a, only_b, mid=test != "mcnemar exact")
    difference = (only_a - only_b) / n
    return Comparison(
        metric.name, metric.value(a), metric.value(b), difference, low, high, level, p, p, test,
        _effect(difference, math.sqrt(max((only_a + only_b) / n - difference**2, 0.0))), detectable(error, level), n, n,
        metric.higher_is_better, note=few(n, a),
    )  # fmt: skip


def row_values(metric: Metric, rows: Rows) -> Array:
    """(m,) a metric of sums, of a single row of each cell."""
    assert isinstance(metric, SumMetric), "a proportion is one"
    return metric.function(rows.cells)


def _resampled(
    metrics: Sequence[Metric], a: Rows, b: Rows, level: float, resamples: int | None, seed: int
) -> list[Comparison]:
    units, rng = a.units, np.random.default_rng(seed)
    of_a, of_b = evaluator(metrics, a, units), evaluator(metrics, b, units)
    ones = units.sizes[None, :]
    points = np.stack([of_a(ones)[:, 0], of_b(ones)[:, 0]], axis=1)
    sampled = np.empty((len(metrics), 0))
    if units.drawn > 1 and not np.isnan(points[:, 0] - points[:, 1]).all():
        drawn = weights(units, resamples or affordable(units), rng)
        sampled = np.concatenate([of_a(part) - of_b(part) for part in drawn], axis=1)
    return [
        _of_resamples(
            metric, a, b, float(points[place, 0]), float(points[place, 1]), sampled[place], level, resamples, seed
        )
        for place, metric in enumerate(metrics)
    ]


def _of_resamples(
    metric: Metric,
    a: Rows,
    b: Rows,
    value_a: float,
    value_b: float,
    sampled: Array,
    level: float,
    resamples: int | None,
    seed: int,
) -> Comparison:
    point, units = value_a - value_b, a.units
    if math.isnan(point) or units.drawn < 2:
        return _unknown(metric, a, value_a, value_b, level)
    # Where a and b are large, a difference that is the same everywhere still comes with their rounding.
    sampled = np.where(np.abs(sampled - point) <= rounding(np.asarray([value_a, value_b])), point, sampled)
    # No correction for bias and skewness: a difference of two of a kind has little of either, and where its tails are
    # heavy the estimated correction finds 8 % instead of 5 % of differences that are none.
    own = Bootstrap(point, defined(sampled), units.drawn, corrected=False)
    low, high = own.interval(level)
    notes = [few(units.drawn, a)]
    if not own.informative:
        low = high = math.nan
        notes.append(
            f"{metric.name}: all resamples have the same difference, so they say nothing of how far it may be off."
        )
    p, error, test = own.p_value(), own.spread, "bootstrap"
    if math.isnan(p):  # the difference is alike in all rows: no interval, but it is surely there
        p, test = exchange_test(metric, a, b, seed=seed, draws=resamples), "permutation"
    return Comparison(
        metric.name, value_a, value_b, point, low, high, level, p, p, test,
        _effect(point, error * math.sqrt(units.drawn)), detectable(error, level), len(a), units.drawn,
        metric.higher_is_better, note=" ".join(filter(None, notes)),
    )  # fmt: skip


def _unknown(metric: Metric, rows: Rows, a: float, b: float, level: float) -> Comparison:
    nan, units = math.nan, rows.units.drawn if len(rows) else 0
    why = metric.reason(rows) if math.isnan(a - b) else few(units, rows)
    return Comparison(
        metric.name, a, b, a - b, nan, nan, level, nan, nan, "none", nan, nan, len(rows), units,
        metric.higher_is_better, note=why,
    )  # fmt: skip


def detectable(error: float, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest difference that is found with probability ``power``: (z₁ + z₂) standard errors (Cohen, 1988)."""
    return error * float(ndtri((1 + level) / 2) + ndtri(power)) if error > 0 else math.nan


def _effect(difference: float, deviation: float) -> float:
    return difference / deviation if deviation > 0 else (0.0 if difference == 0 else math.nan)
