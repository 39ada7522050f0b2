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
    the task's own predictions: ``{"label": ...}``, ``{"labels": [...]}``, ``{"tags": [...]}`` or a number.
    """
    first = predictions[0]
    guesses: list[Any]
    if isinstance(first, dict) and "label" in first:
        label, count = Counter(targets).most_common(1)[0]
        guesses = [{"label": label}] * len(targets)
        name = f"always {label!r}, the most frequent class ({count} of {len(targets)} rows)"
    elif isinstance(first, dict) and "labels" in first:
        labels, count = Counter(tuple(target) for target in targets).most_common(1)[0]
        said = " + ".join(map(repr, labels)) or "no label"
        guesses = [{"labels": list(labels)}] * len(targets)
        name = f"always {said}, the most frequent answer ({count} of {len(targets)} rows)"
    elif isinstance(first, dict) and "tags" in first:
        counts = Counter(tag for target in targets for tag in target["tags"])
        tag, count = counts.most_common(1)[0]
        guesses = [{"tags": [tag] * len(target["tags"])} for target in targets]
        name = f"always {tag!r}, the most frequent tag ({count} of {counts.total()} words)"
    elif isinstance(first, float):
        mean = sum(targets) / len(targets)
        guesses, name = [mean] * len(targets), f"always {mean:.4g}, the mean of the true values"
    else:
        return None
    metrics = task.metrics(guesses, targets, 0.0, 1)
    # No loss: a constant answer gives no probabilities.
    kept = {key: value for key, value in metrics.items() if isinstance(value, (int, float)) and key != "loss"}
    return {"name": name, "metrics": kept}
