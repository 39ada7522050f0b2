"""How well scores order rows: area under the ROC curve, average precision.

Shapes: n row, c class, m cell, b resample.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lora.errors import DataError
from lora.statistics.metric import OrderMetric, ratio
from lora.statistics.numbers import Ties
from lora.statistics.rows import Array, Rows

SCORES = "scores"
Area = Callable[[Array, Array], Array]  # (b, ties) positives and negatives, lowest score first -> (b,)


def score_rows(
    true: ArrayLike, scores: ArrayLike, *, labels: Sequence[Hashable] = (), groups: Sequence[Hashable] | None = None
) -> Rows:
    """Rows with a score for each class, both (n,) for two classes, or (n, c).

    Args:
        true: 0 and 1, by class; for one label out of c its place among them, (n,), does as well.
        labels: names of the classes.
    """
    s, t = np.asarray(scores, dtype=np.float64), np.asarray(true)
    s = s[:, None] if s.ndim == 1 else s
    if t.ndim == 1 and s.ndim == 2 and s.shape[1] > 1:
        if len(t) and (t.min() < 0 or t.max() >= s.shape[1]):
            raise DataError(f"{SCORES}: a true class lies outside 0 to {s.shape[1] - 1}, the columns of the scores")
        t = np.eye(s.shape[1])[t.astype(np.intp)] if len(t) else np.zeros(s.shape)
    t = t[:, None] if t.ndim == 1 else t
    if t.shape != s.shape:
        raise DataError(f"{SCORES}: true ones have shape {t.shape}, scores {s.shape}; both must be (rows, classes)")
    if not np.isin(t, (0, 1)).all():
        raise DataError(f"{SCORES}: true ones hold other values than 0 and 1")
    return Rows.of(SCORES, np.hstack([t.astype(np.float64), s]), labels=labels, groups=groups)


def _auroc(positive: Array, negative: Array) -> Array:
    """Share of pairs in the right order, ties counting half: Hanley and McNeil (1982)."""
    below = np.cumsum(negative, axis=1)
    pairs = positive.sum(axis=1) * below[:, -1]
    below -= negative / 2
    return ratio(np.einsum("bt,bt->b", positive, below), pairs)


def _average_precision(positive: Array, negative: Array) -> Array:
    """Σ (Rₙ - Rₙ₋₁) Pₙ over thresholds, as scikit-learn's, without interpolation."""
    hits = np.cumsum(positive[:, ::-1], axis=1)
    precision = ratio(hits, hits + np.cumsum(negative[:, ::-1], axis=1), 0.0)
    return ratio(np.einsum("bt,bt->b", positive[:, ::-1], precision), hits[:, -1])


def _prepared(area: Area, only: int | None) -> Callable[[Array], Callable[[Array], Array]]:
    def prepare(cells: Array) -> Callable[[Array], Array]:
        classes = cells.shape[1] // 2
        chosen = range(classes) if only is None else [only]
        columns = [(cells[:, place], Ties(cells[:, classes + place])) for place in chosen]

        def value(weights: Array) -> Array:
            found = []
            for true, ties in columns:
                everything = ties.sums(weights)
                positive = ties.sums(weights * true)
                found.append(area(positive, everything - positive))
            values = np.stack(found)
            there = ~np.isnan(values)
            return ratio(np.where(there, values, 0.0).sum(axis=0), there.sum(axis=0).astype(np.float64))

        return value

    return prepare


_BOTH = "It needs rows of the class and rows of another."
AUROC = OrderMetric("AUROC", (SCORES,), _BOTH, lowest=0.0, prepare=_prepared(_auroc, None))
"""Of two classes; of more the mean over classes, each against the rest, that have rows of both sorts."""
AVERAGE_PRECISION = OrderMetric(
    "average precision", (SCORES,), "It needs rows of the class.", prepare=_prepared(_average_precision, None)
)
"""Of two classes; of more the mean over classes that have rows."""


def auroc_of(place: int, label: Any) -> OrderMetric:
    """Area under the ROC curve of the class at ``place`` against the rest."""
    return OrderMetric(f"AUROC of {label}", (SCORES,), _BOTH, prepare=_prepared(_auroc, place))


def average_precision_of(place: int, label: Any) -> OrderMetric:
    """Average precision of the class at ``place``."""
    return OrderMetric(
        f"average precision of {label}", (SCORES,), "It needs rows of the class.",
        prepare=_prepared(_average_precision, place),
    )  # fmt: skip
