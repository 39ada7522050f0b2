"""Calibration: do rows that are said to be right with 80 % turn out right in 80 % of cases?

Shapes: n row, c class, B bin.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lora.errors import ConfigError, DataError
from lora.statistics.estimate import without_nan
from lora.statistics.interval import wilson
from lora.statistics.means import mean, value_rows
from lora.statistics.rows import Array, Places, Rows

BINS = 15  # Guo et al. (2017)
WIDTH, MASS = "equal width", "equal mass"
BRIER = mean("Brier score", higher_is_better=False, lowest=0.0, highest=2.0)
NLL = mean("negative log-likelihood", higher_is_better=False, lowest=0.0)
SMALLEST = 1e-12  # probability that a logarithm is taken of: below, one row would be the whole mean


@dataclass(frozen=True)
class Bin:
    """Rows of like confidence: mean ``confidence``, share ``right`` and its Wilson interval ``low`` to ``high``.

    Confidences lie in (``start``, ``end``]; nan where the bin is empty.
    """

    start: float
    end: float
    n: int
    confidence: float
    right: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        return without_nan(asdict(self))


def reliability(
    confidence: ArrayLike, right: ArrayLike, *, bins: int = BINS, by: str = WIDTH, level: float = 0.95
) -> list[Bin]:
    """The reliability table (Guo et al., 2017, section 2) of confidences (n,) and outcomes (n,) of 0 and 1.

    Args:
        by: ``equal width``: bins of 1/``bins``. ``equal mass``: of as many rows each, as far as equal confidences,
            which stay together, allow it; then there may be fewer.

    Raises:
        DataError: unlike lengths, confidences outside 0 to 1, other outcomes. ConfigError: no bin, unknown ``by``.
    """
    p, y = checked(confidence, right)
    edges, place = _binned(p, bins, by)
    out = []
    for number, (start, end) in enumerate(pairwise(edges)):
        inside = place == number
        n, hits = int(inside.sum()), float(y[inside].sum())
        low, high = wilson(hits, n, level)
        said, share = (float(p[inside].mean()), hits / n) if n else (math.nan, math.nan)
        out.append(Bin(float(start), float(end), n, said, share, low, high))
    return out


def checked(confidence: ArrayLike, right: ArrayLike) -> tuple[Array, Array]:
    """Both as floats (n,), or a DataError."""
    p, y = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if p.shape != y.shape or p.ndim != 1:
        raise DataError(f"confidences have shape {p.shape}, outcomes {y.shape}; both must be (rows,)")
    if not ((p >= 0) & (p <= 1)).all():  # nan fails too
        place = int(np.argmin((p >= 0) & (p <= 1)))
        raise DataError(f"row {place} (from 0) has the confidence {p[place]}, which is no probability")
    if not np.isin(y, (0, 1)).all():
        raise DataError("an outcome is neither 0 nor 1")
    return p, y


def _binned(p: Array, bins: int, by: str) -> tuple[Array, Places]:
    if bins < 1:
        raise ConfigError(f"bins is {bins}; it must be at least 1")
    if by == WIDTH:
        edges = np.linspace(0, 1, bins + 1)
    elif by == MASS:
        # Ends are confidences that occur, so that equal ones never part.
        ends = np.sort(p)[np.ceil(np.arange(1, bins + 1) * len(p) / bins).astype(np.intp) - 1] if len(p) else p
        edges = np.r_[0.0, np.unique(ends)] if len(p) else np.asarray([0.0, 1.0])
    else:
        raise ConfigError(f"by is {by!r}; there are {WIDTH!r} and {MASS!r}")
    return edges, np.clip(np.searchsorted(edges, p, side="left") - 1, 0, len(edges) - 2)


def _bin_sums(confidence: ArrayLike, right: ArrayLike, bins: int, by: str) -> tuple[Array, Array, Array]:
    p, y = checked(confidence, right)
    edges, place = _binned(p, bins, by)
    size = len(edges) - 1
    n, said, hits = (np.bincount(place, weights, size).astype(np.float64) for weights in (np.ones_like(p), p, y))
    return n, said, hits


def ece(confidence: ArrayLike, right: ArrayLike, *, bins: int = BINS, by: str = WIDTH) -> float:
    """Expected calibration error Σ nᵦ/n |rightᵦ - confidenceᵦ|: Guo et al. (2017), eq. 3; nan without rows.

    With ``equal mass`` bins it is the adaptive one (Nixon et al., 2019; Nguyen and O'Connor, 2015). Both are biased
    upward, the more so the fewer rows there are: a perfectly calibrated model has one above 0. See `debiased_error`.
    """
    n, said, hits = _bin_sums(confidence, right, bins, by)
    return float(np.abs(hits - said).sum() / n.sum()) if n.sum() else math.nan


def debiased_error(confidence: ArrayLike, right: ArrayLike, *, bins: int = BINS, by: str = MASS) -> float:
    """Root of the squared calibration error without the bias of its binned estimate: Kumar, Liang and Ma (2019).

    √ max(0, Σ nᵦ/n [(rightᵦ - confidenceᵦ)² - rightᵦ(1 - rightᵦ)/(nᵦ - 1)]); bins of one row are left out. nan where
    there is none with two.
    """
    n, said, hits = _bin_sums(confidence, right, bins, by)
    kept = n > 1
    if not kept.any():
        return math.nan
    n, said, hits = n[kept], said[kept] / n[kept], hits[kept] / n[kept]
    return math.sqrt(max(0.0, float((n * ((hits - said) ** 2 - hits * (1 - hits) / (n - 1))).sum() / n.sum())))


def brier_rows(probabilities: ArrayLike, true: ArrayLike, *, groups: Sequence[Hashable] | None = None) -> Rows:
    """Rows for `BRIER`: Brier (1950).

    Args:
        probabilities: (n, c), and ``true`` the place of the true class, (n,): Σ over classes of squared differences, 0
            to 2. Or (n,) of the positive class, and ``true`` 0 or 1: the square of the one difference, 0 to 1, as
            scikit-learn's ``brier_score_loss`` has it for two classes.
    """
    p, y = _probabilities(probabilities, true)
    if p.ndim == 1:
        return value_rows((p - y) ** 2, groups=groups)
    return value_rows(((p - np.eye(p.shape[1])[y.astype(np.intp)]) ** 2).sum(axis=1), groups=groups)


def nll_rows(probabilities: ArrayLike, true: ArrayLike, *, groups: Sequence[Hashable] | None = None) -> Rows:
    """Rows for `NLL`: minus the logarithm of the true class's probability, (n,). Arguments as in `brier_rows`."""
    p, y = _probabilities(probabilities, true)
    own = np.where(y == 1, p, 1 - p) if p.ndim == 1 else p[np.arange(len(p)), y.astype(np.intp)]
    return value_rows(-np.log(np.maximum(own, SMALLEST)), groups=groups)


def confidence_and_right(probabilities: ArrayLike, true: ArrayLike) -> tuple[Array, Array]:
    """The probability of the most likely class (n,), and whether it is the true one (n,). Arguments as in `brier_rows`.

    Of one column it is the positive class's own probability and ``true`` itself: calibration of one label of several.
    """
    p, y = _probabilities(probabilities, true)
    if p.ndim == 1:
        return p, y
    return p.max(axis=1, initial=0.0), (p.argmax(axis=1) == y).astype(np.float64) if len(p) else y


def _probabilities(probabilities: ArrayLike, true: ArrayLike) -> tuple[Array, Array]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if p.ndim not in (1, 2) or y.shape != p.shape[:1]:
        raise DataError(
            f"probabilities have shape {p.shape}, true ones {y.shape}; (rows,) or (rows, classes), and (rows,)"
        )
    if p.size and not (p.min() >= 0 and p.max() <= 1 + 1e-6):
        raise DataError("a probability lies outside 0 to 1")
    if p.ndim == 2 and len(p) and np.abs(p.sum(axis=1) - 1).max() > 1e-3:
        raise DataError("the probabilities of a row do not add up to 1; are they logits, or of several labels?")
    if not np.isin(y, range(2 if p.ndim == 1 else p.shape[1])).all():
        raise DataError("a true class is none of the columns of the probabilities")
    return np.minimum(p, 1.0), y
