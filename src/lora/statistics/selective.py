"""Answering only where the model is sure: what remains wrong, by the share of rows that are answered.

Rows of equal confidence come in any order, so what is counted of them is the mean over all orders. Shapes: n row,
m cell, b resample, i tie.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lora.errors import ConfigError
from lora.statistics.calibration import checked
from lora.statistics.metric import OrderMetric, ratio
from lora.statistics.numbers import Ties
from lora.statistics.rows import Array, Rows

SURE = "confidence and outcome"
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def sure_rows(confidence: ArrayLike, right: ArrayLike, *, groups: Sequence[Hashable] | None = None) -> Rows:
    """Rows with their confidence, 0 to 1, and 1 where they are right, else 0; each (n,)."""
    p, y = checked(confidence, right)
    return Rows.of(SURE, np.column_stack([p, y]), groups=groups)


def _ties(cells: Array) -> Callable[[Array], tuple[Array, Array]]:
    """Rows and errors (b, i) of each tie, the surest first."""
    ties, wrong = Ties(-cells[:, 0]), 1 - cells[:, 1]
    return lambda weights: (ties.sums(weights), ties.sums(weights * wrong))


def _aurc(cells: Array) -> Callable[[Array], Array]:
    """Mean over k of the risk of the k surest rows.

    Inside a tie of w rows with e errors, after N rows with E errors, the risk of k rows is (E + (k - N)·e/w)/k. Its sum
    over the tie is e + (E - N·e/w)·(H(N + w) - H(N)), H being harmonic numbers.
    """
    split = _ties(cells)

    def value(weights: Array) -> Array:
        rows, errors = split(weights)
        ends, wrong = np.cumsum(rows, axis=1), np.cumsum(errors, axis=1)
        before, wrong_before = ends - rows, wrong - errors
        numbers = np.cumsum(np.r_[0.0, 1 / np.arange(1, ends[:, -1].max(initial=0) + 1)])
        harmonic = numbers[ends.astype(np.intp)] - numbers[before.astype(np.intp)]
        total = (errors + (wrong_before - before * ratio(errors, rows, 0.0)) * harmonic).sum(axis=1)
        return ratio(total, ends[:, -1])

    return value


AURC = OrderMetric("AURC", (SURE,), "There are no rows.", higher_is_better=False, prepare=_aurc)
"""Area under the risk-coverage curve: El-Yaniv and Wiener (2010); Geifman, Uziel and El-Yaniv (2019)."""


def accuracy_at(coverage: float) -> OrderMetric:
    """Accuracy of the surest rows that make up the share ``coverage``, of a part of a row rounded up."""
    if not 0 < coverage <= 1:
        raise ConfigError(f"coverage is {coverage}; it must be above 0 and at most 1")

    def prepare(cells: Array) -> Callable[[Array], Array]:
        split = _ties(cells)

        def value(weights: Array) -> Array:
            rows, errors = split(weights)
            ends = np.cumsum(rows, axis=1)
            # Rounding must not make 0.7 of 10 rows eight of them.
            wanted = np.ceil(coverage * ends[:, -1:] - 1e-9)
            taken = np.clip(wanted - (ends - rows), 0, rows)
            return 1 - ratio((taken * ratio(errors, rows, 0.0)).sum(axis=1), wanted[:, 0])

        return value

    return OrderMetric(f"accuracy at coverage {coverage:g}", (SURE,), "There are no rows.", prepare=prepare)


def risk_coverage(rows: Rows) -> tuple[Array, Array]:
    """The curve: coverages k/n and risks (n,) of the k surest rows, k from 1."""
    if not len(rows):
        return np.empty(0), np.empty(0)
    tied, errors = (part[0] for part in _ties(rows.cells)(rows.counts[None, :]))
    each = np.repeat(errors / tied, tied.astype(np.intp))  # the mean over orders: every row of a tie has its share
    places = np.arange(1, len(each) + 1)
    return places / len(each), np.cumsum(each) / places
