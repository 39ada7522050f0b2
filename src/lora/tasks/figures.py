"""What predictions are to `lora.statistics`: by the key of `Task.metrics`, a metric and the rows it is a figure of.

`Task.figures` says it for each kind of task; here is what they share. `Task.metrics` has its values from them, and from
rows come intervals and paired tests as well. Shapes: n row, c class.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lora.statistics.classes import parts
from lora.statistics.means import LOSS, mean, token_rows, value_rows
from lora.statistics.metric import Metric
from lora.statistics.ranking import AUROC, AVERAGE_PRECISION, score_rows
from lora.statistics.rows import Array, Rows

if TYPE_CHECKING:
    from lora.tasks.base import Task
    from lora.tasks.inference import Outcome

Figures = dict[str, tuple[Metric, Rows]]
Groups = Sequence[Hashable] | None

TOKEN_SHARE = replace(LOSS, name="token accuracy", higher_is_better=True, highest=1.0)
"""A mean over tokens as `LOSS` is: right ones, in place of nats, over their number."""


def figures(task: Task, outcome: Outcome, examples: Sequence[dict[str, Any]]) -> Figures:
    """Metrics of ``outcome`` with their rows, by the keys of `Task.metrics`, the loss among them.

    Examples that come of one row are drawn together. Raises DataError where a prediction is no finite number.
    """
    groups = groups_of(examples)
    own = task.figures(outcome.predictions, task.targets(examples), groups)  # says more of what is wrong than a loss
    losses = token_rows(outcome.losses, outcome.counts, groups=groups)
    return {"loss": (LOSS, losses), **own}


def groups_of(examples: Sequence[dict[str, Any]]) -> list[Any] | None:
    """The row of each example, where one has become several; None: every example is a row."""
    rows = [example.get("row", place) for place, example in enumerate(examples)]
    return rows if len(set(rows)) < len(rows) else None


def values(found: Figures) -> dict[str, float | None]:
    """The value of each figure; None where it is undefined."""
    each = {key: metric.value(rows) for key, (metric, rows) in found.items()}
    return {key: None if math.isnan(value) else value for key, value in each.items()}


def ranked(true: Any, scores: Any, groups: Groups = None) -> Figures:
    """How well scores (n, c) put rows of a class before others: the mean over classes that have rows of both sorts.

    Args:
        true: the place of each row's class, (n,), or 0 and 1 by class, (n, c).
    """
    rows = score_rows(true, scores, groups=groups)
    return {"auroc": (AUROC, rows), "average_precision": (AVERAGE_PRECISION, rows)}


def finite(predictions: Sequence[Mapping[str, Any]], key: str) -> Array | None:
    """What ``predictions`` have under ``key``, as an array; None where one lacks it, or has no finite number there."""
    if not predictions or not all(key in row for row in predictions):
        return None
    found = np.asarray([row[key] for row in predictions], dtype=np.float64)
    return found if np.isfinite(found).all() else None


def averages(predictions: Sequence[Mapping[str, Any]], names: Mapping[str, str], groups: Groups = None) -> Figures:
    """The mean of each of the keys of ``names``, of which neither way is better; the names are those of a report."""
    return {
        key: (mean(name, higher_is_better=None), value_rows([row[key] for row in predictions], groups=groups))
        for key, name in names.items()
    }


def by_label(rows: Rows) -> dict[str, dict[str, float | int]]:
    """Precision, recall, F1 (0 where undefined) and support of every class that the statistics of ``rows`` count."""
    sums = rows.counts @ rows.cells
    return {
        str(name): {
            "precision": float(right / said) if said else 0.0,
            "recall": float(right / true) if true else 0.0,
            "f1": float(2 * right / (said + true)) if said + true else 0.0,
            "support": int(true),
        }
        for name, right, said, true in zip(rows.labels, *parts(sums), strict=True)
    }
