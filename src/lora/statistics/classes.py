"""Metrics of classes: one label a row, any number of them, or spans of several types in a row.

All three count by class what is right, what was said and what is true, so one layout of statistics serves them:
columns right (c), said (c), true (c), then 1 for a row that is right as a whole, then 1. Shapes: n row, c class.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lora.errors import ConfigError, DataError
from lora.statistics.metric import SumMetric, ratio
from lora.statistics.rows import Array, Places, Rows

LABELS, LABEL_SETS, SPANS = "labels", "label sets", "spans"
COUNTED = (LABELS, LABEL_SETS, SPANS)
AVERAGES = ("macro", "micro", "weighted")


def label_rows(
    true: Sequence[Hashable], said: Sequence[Hashable], *, labels: Sequence[Hashable] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Rows:  # fmt: skip
    """Rows with one label each.

    Args:
        labels: all there are, in the order of a report; default: those that occur, sorted by their text.
        groups: of each row, where rows that belong together (turns of a conversation) are to be drawn together.

    Raises:
        DataError: unlike lengths, a label that ``labels`` does not hold.
    """
    true, said = _plain(true), _plain(said)
    _same_length(LABELS, true, said)
    known = list(_plain(labels)) if labels is not None else sorted({*true, *said}, key=lambda label: str(label))
    index = {label: place for place, label in enumerate(known)}
    width = max(len(known), 1)
    codes = np.asarray([_place(index, t) * width + _place(index, s) for t, s in zip(true, said)], dtype=np.intp)

    def cells(different: Places) -> Array:
        t, s = np.divmod(different, width)
        one = np.eye(width)
        right = (t == s).astype(np.float64)
        return np.hstack([one[t] * right[:, None], one[s], one[t], right[:, None], np.ones((len(t), 1))])

    return Rows.of_codes(LABELS, codes, cells, labels=known, groups=groups)


def label_set_rows(
    true: ArrayLike, said: ArrayLike, *, labels: Sequence[Hashable] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Rows:  # fmt: skip
    """Rows with any number of labels: ``true`` and ``said`` are (n, c) of 0 and 1."""
    t, s = np.asarray(true), np.asarray(said)
    if t.shape != s.shape or t.ndim != 2:
        raise DataError(
            f"{LABEL_SETS}: true ones have shape {t.shape}, said ones {s.shape}; both must be (rows, labels)"
        )
    for name, cells in (("true", t), ("said", s)):
        if not np.isin(cells, (0, 1)).all():
            raise DataError(f"{LABEL_SETS}: {name} ones hold other values than 0 and 1")
    t, s = t.astype(np.float64), s.astype(np.float64)
    return _counted(LABEL_SETS, t * s, s, t, labels, groups)


def span_rows(
    right: ArrayLike, said: ArrayLike, true: ArrayLike, *, labels: Sequence[Hashable] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Rows:  # fmt: skip
    """Rows (sentences) with spans: how many of each type are right, were said and are true, each (n, c).

    What a span is, and when it is right, the caller says; counted as seqeval does, the metrics are seqeval's.
    """
    r, s, t = (np.asarray(counts, dtype=np.float64) for counts in (right, said, true))
    if not r.shape == s.shape == t.shape or r.ndim != 2:
        raise DataError(f"{SPANS}: counts have shapes {r.shape}, {s.shape} and {t.shape}; all must be (rows, types)")
    if (r < 0).any() or (r > s).any() or (r > t).any():
        raise DataError(f"{SPANS}: a row has more right spans of a type than said or true ones, or fewer than none")
    return _counted(SPANS, r, s, t, labels, groups)


def _counted(
    kind: str, right: Array, said: Array, true: Array, labels: Sequence[Hashable] | None,
    groups: Sequence[Hashable] | None,
) -> Rows:  # fmt: skip
    rows, classes = right.shape
    named = list(range(classes)) if labels is None else list(_plain(labels))
    if len(named) != classes:
        raise DataError(f"{kind}: {len(named)} names for {classes} columns")
    whole = ((right == said) & (right == true)).all(axis=1)
    statistics = np.hstack([right, said, true, whole[:, None], np.ones((rows, 1))])
    return Rows.of(kind, statistics, labels=named, groups=groups)


def parts(sums: Array) -> tuple[Array, Array, Array]:
    """Right, said and true ones by class, each (..., c), of sums (..., 3·c + 2)."""
    classes = (sums.shape[-1] - 2) // 3
    return sums[..., :classes], sums[..., classes : 2 * classes], sums[..., 2 * classes : 3 * classes]


def _precision(right: Array, said: Array, true: Array) -> Array:
    return ratio(right, said, 0.0)


def _recall(right: Array, said: Array, true: Array) -> Array:
    return ratio(right, true, 0.0)


def _f1(right: Array, said: Array, true: Array) -> Array:
    return ratio(2 * right, said + true, 0.0)


Rate = Callable[[Array, Array, Array], Array]
_RATES: dict[str, Rate] = {"precision": _precision, "recall": _recall, "F1": _f1}


def averaged(rate: str, average: str) -> SumMetric:
    """``rate`` (precision, recall or F1) over all classes.

    ``macro``: the mean over classes that occur, in true or in said ones. ``micro``: of all counts together.
    ``weighted``: the mean weighted with true ones. As scikit-learn (``zero_division=0``), seqeval's for spans. In a
    resample the classes are those that occur there.
    """
    if rate not in _RATES or average not in AVERAGES:
        raise ConfigError(f"{rate} {average}: there are {', '.join(_RATES)}, each {', '.join(AVERAGES)}")
    function = _RATES[rate]

    def value(sums: Array) -> Array:
        right, said, true = parts(sums)
        if average == "micro":
            pooled = [part.sum(axis=-1) for part in (right, said, true)]
            return np.where(pooled[1] + pooled[2] > 0, function(*pooled), np.nan)
        weights = true if average == "weighted" else ((said > 0) | (true > 0)).astype(np.float64)
        return ratio((function(right, said, true) * weights).sum(axis=-1), weights.sum(axis=-1))

    return SumMetric(f"{rate} {average}", COUNTED, "No label or span occurs, neither true nor said.", function=value)


def of_class(rate: str, place: int, label: Any) -> SumMetric:
    """``rate`` (precision, recall or F1) of the class at ``place`` among the labels; undefined without counts.

    Precision of what was never said is undefined, and so is recall of what is never true, here as in the sense of
    scikit-learn's ``zero_division=nan``; of F1 both must be missing.
    """
    function = _RATES[rate]
    why = {"precision": "It was never said.", "recall": "It is never true.", "F1": "It is neither true nor said."}

    def value(sums: Array) -> Array:
        classes = (sums.shape[-1] - 2) // 3
        right, said, true = (sums[..., place + step * classes] for step in range(3))
        below = {"precision": said, "recall": true, "F1": said + true}[rate]
        return np.where(below > 0, function(right, said, true), np.nan)

    return SumMetric(f"{rate} of {label}", COUNTED, why[rate], function=value)


def by_class(rate: str, rows: Rows) -> list[SumMetric]:
    """``rate`` of each class of ``rows``, in the order of their labels."""
    return [of_class(rate, place, label) for place, label in enumerate(rows.labels)]


def _mcc(sums: Array) -> Array:
    right, said, true = parts(sums)
    rows, hits = sums[..., -1], right.sum(axis=-1)
    covariance = hits * rows - (said * true).sum(axis=-1)
    of_said, of_true = rows**2 - (said**2).sum(axis=-1), rows**2 - (true**2).sum(axis=-1)
    return np.where(rows > 0, ratio(covariance, np.sqrt(of_said * of_true), 0.0), np.nan)


def _hamming(sums: Array) -> Array:
    right, said, true = parts(sums)
    cells = sums[..., -1] * right.shape[-1]
    return ratio((said + true - 2 * right).sum(axis=-1), cells)


ACCURACY = SumMetric(
    "accuracy",
    COUNTED,
    "There are no rows.",
    proportion=True,
    function=lambda sums: ratio(sums[..., -2], sums[..., -1]),
)
"""Share of rows that are right as a whole: of label sets that is scikit-learn's subset accuracy."""
F1_MACRO, F1_MICRO, F1_WEIGHTED = (averaged("F1", average) for average in AVERAGES)
PRECISION_MACRO, RECALL_MACRO = averaged("precision", "macro"), averaged("recall", "macro")
PRECISION_MICRO, RECALL_MICRO = averaged("precision", "micro"), averaged("recall", "micro")
MCC = SumMetric("MCC", (LABELS,), "There are no rows.", lowest=-1.0, function=_mcc)
"""Matthews' correlation: Gorodkin (2004); 0 where one side is constant, by convention, as in scikit-learn."""
HAMMING = SumMetric(
    "Hamming loss", (LABEL_SETS,), "There are no labels.", higher_is_better=False, function=_hamming
)  # fmt: skip
"""Share of cells, of rows times labels, that are wrong."""


def _plain(values: Any) -> Any:
    return values.tolist() if isinstance(values, np.ndarray) else values


def _place(index: dict[Hashable, int], label: Hashable) -> int:
    if label not in index:
        raise DataError(f"the label {label!r} is none of the {len(index)} labels given")
    return index[label]


def _same_length(kind: str, true: Sequence[Any], said: Sequence[Any]) -> None:
    if len(true) != len(said):
        raise DataError(f"{kind}: {len(true)} true ones beside {len(said)} said ones; every row needs both")
