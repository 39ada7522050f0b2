"""Labels that are probably wrong: where a model that has not seen the row disagrees with confidence.

Confident learning (Northcutt, Jiang and Chuang, Confident learning: estimating uncertainty in dataset labels, 2021,
arXiv:1911.00068). Shapes: n row, c class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lora.errors import DataError
from lora.statistics.rows import Array


@dataclass(frozen=True)
class Doubt:
    """A label in doubt.

    Attributes:
        row: its place.
        given, suggested: places of classes.
        p_given, p_suggested: their probabilities.
    """

    row: int
    given: int
    suggested: int
    p_given: float
    p_suggested: float

    @property
    def margin(self) -> float:
        """By how much the other class is held to be more probable."""
        return self.p_suggested - self.p_given


def thresholds(probabilities: ArrayLike, given: ArrayLike) -> Array:
    """(c,) the mean self-confidence of each class: how sure the model is of it on rows that have its label (eq. 2).

    nan of a class that no row has: nothing can be suggested by it.
    """
    p, labels = _checked(probabilities, given)
    sums = np.bincount(labels, weights=p[np.arange(len(p)), labels], minlength=p.shape[1])
    counts = np.bincount(labels, minlength=p.shape[1])
    return np.divide(sums, counts, out=np.full(p.shape[1], np.nan), where=counts > 0)


def confident_disagreement(probabilities: ArrayLike, given: ArrayLike) -> list[Doubt]:
    """Rows off the diagonal of the confident joint (eq. 1), the largest margin first.

    A row counts as of the most probable among the classes whose probability reaches the class's own threshold; where
    that is another class than its label, the label is in doubt. By thresholds of their own, classes of which the model
    is never sure are not accused, nor do those of which it is always sure accuse all others.

    Args:
        probabilities: (n, c) of models that were not trained on the row.
        given: (n,) the place of each row's label.

    Raises:
        DataError: shapes that do not fit, a label that is no class, a probability that is no finite number.
    """
    p, labels = _checked(probabilities, given)
    bar = thresholds(p, labels)
    sure = p >= np.where(np.isnan(bar), np.inf, bar) - 1e-12
    said = np.where(sure, p, -1.0).argmax(axis=1)
    found = np.flatnonzero(sure.any(axis=1) & (said != labels))
    doubts = [
        Doubt(int(row), int(labels[row]), int(said[row]), float(p[row, labels[row]]), float(p[row, said[row]]))
        for row in found
    ]
    # Confident in the other class, and yet more so in the given one (whose bar is high): no disagreement.
    return sorted((its for its in doubts if its.margin > 0), key=lambda its: (-its.margin, its.row))


def _checked(probabilities: ArrayLike, given: ArrayLike) -> tuple[Array, Any]:
    p, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(given)
    if p.ndim != 2 or labels.shape != p.shape[:1]:
        raise DataError(f"probabilities of the shape {p.shape} beside labels of the shape {labels.shape}")
    labels = labels.astype(np.intp)
    if len(labels) and not (labels.min() >= 0 and labels.max() < p.shape[1]):
        raise DataError(f"a label is none of the {p.shape[1]} classes")
    if not np.isfinite(p).all():
        raise DataError("a probability is no finite number")
    return p, labels
