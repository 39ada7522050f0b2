"""What is reached without looking at the text: the constant answer that fits the true ones best.

The base of a classifier usually has an untrained head, and beating that proves nothing; this is what must be beaten.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from lora.tasks.base import Task


def constant_answer(task: Task, predictions: list[Any], targets: list[Any]) -> dict[str, Any] | None:
    """``{"name": in words, "metrics": ...}``; None for tasks that have no such answer.

    The answer is picked on the evaluated rows themselves, so no constant one can be better on them. Its form is that of
    the task's own predictions: ``{"label": ...}``, ``{"labels": [...]}`` or a number.
    """
    first = predictions[0]
    guess: Any
    if isinstance(first, dict) and "label" in first:
        label, count = Counter(targets).most_common(1)[0]
        guess, name = {"label": label}, f"always {label!r}, the most frequent class ({count} of {len(targets)} rows)"
    elif isinstance(first, dict) and "labels" in first:
        labels, count = Counter(tuple(target) for target in targets).most_common(1)[0]
        said = " + ".join(map(repr, labels)) or "no label"
        guess, name = (
            {"labels": list(labels)},
            f"always {said}, the most frequent answer ({count} of {len(targets)} rows)",
        )
    elif isinstance(first, float):
        guess = sum(targets) / len(targets)
        name = f"always {guess:.4g}, the mean of the true values"
    else:
        return None
    metrics = task.metrics([guess] * len(targets), targets, 0.0, 1)
    # No loss: a constant answer gives no probabilities.
    kept = {key: value for key, value in metrics.items() if isinstance(value, (int, float)) and key != "loss"}
    return {"name": name, "metrics": kept}
