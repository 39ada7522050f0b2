"""The contract of a metric: a function of sums over rows, or of weights of rows.

Most metrics are functions of sums (accuracy, F1, BLEU, perplexity): then a resample is one product of weights and
statistics. What hangs on the order of rows (AUROC, Spearman) is a function of the weights themselves, prepared once by
sorting. Shapes as in `lora.statistics.rows`: m cell, k statistic, b resample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lora.errors import ConfigError
from lora.statistics.rows import Array, Rows, Units

# (b, u) weights of units -> (metrics, b) values
Evaluator = Callable[[Array], Array]


@dataclass(frozen=True)
class Metric:
    """What all metrics say of themselves.

    Attributes:
        name: as it stands in a report.
        kinds: the kinds of `Rows` that it reads.
        undefined: why it has no value, where it has none, as a sentence.
        higher_is_better: None where neither way is (a mean of something).
        lowest, highest: ends of its range.
        proportion: whether it is the share of rows in a state, each row being in it or not, so that intervals and tests
            made for proportions hold.
    """

    name: str
    kinds: tuple[str, ...]
    undefined: str
    higher_is_better: bool | None = True
    lowest: float = 0.0
    highest: float = 1.0
    proportion: bool = False

    def value(self, rows: Rows) -> float:
        """The metric of all rows; nan where it is undefined."""
        if not len(rows):
            return float("nan")
        return float(evaluator([self], rows, rows.units)(rows.units.sizes[None, :])[0, 0])

    def reason(self, rows: Rows) -> str:
        """Why it is undefined for ``rows``, given that it is."""
        return self.undefined if len(rows) else "There are no rows."


@dataclass(frozen=True)
class SumMetric(Metric):
    """``function``: sums (..., k) of the statistics of rows -> values (...). It sees no other axis than the last."""

    function: Callable[[Array], Array] = lambda sums: sums[..., 0]


@dataclass(frozen=True)
class OrderMetric(Metric):
    """``prepare``: cells (m, k) -> a function of weights (b, m) that gives values (b,)."""

    prepare: Callable[[Array], Callable[[Array], Array]] = lambda cells: lambda weights: weights @ cells[:, 0]


def evaluator(metrics: Sequence[Metric], rows: Rows, units: Units) -> Evaluator:
    """A function from weights (b, u) of units to values (metrics, b); nan where one is undefined, and no warning.

    All metrics that are functions of sums share the product of weights and statistics.
    """
    for metric in metrics:
        if rows.kind not in metric.kinds:
            known = " or ".join(repr(kind) for kind in metric.kinds)
            raise ConfigError(f"{metric.name} reads rows of the kind {known}, not {rows.kind!r}")
    statistics = units.statistics(rows.cells) if any(isinstance(metric, SumMetric) for metric in metrics) else None
    prepared = [metric.prepare(rows.cells) if isinstance(metric, OrderMetric) else None for metric in metrics]

    def values(weights: Array) -> Array:
        out = np.full((len(metrics), len(weights)), np.nan)
        sums = None if statistics is None else weights @ statistics
        cells = units.onto_cells(weights) if any(prepared) else None
        with np.errstate(all="ignore"):  # a division by nothing is what nan stands for here
            for place, (metric, ordered) in enumerate(zip(metrics, prepared, strict=True)):
                if ordered is not None and cells is not None:
                    out[place] = ordered(cells)
                elif isinstance(metric, SumMetric) and sums is not None:
                    out[place] = metric.function(sums)
        return np.where(np.isfinite(out), out, np.nan)

    return values


def ratio(above: Array, below: Array, otherwise: float = float("nan")) -> Array:
    """``above / below``, and ``otherwise`` where ``below`` is 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, otherwise), where=below != 0)
