"""What is reached without looking at the text: the constant answer that fits the true ones best.

The base of a classifier usually has an untrained head, and beating that proves nothing; this is what must be beaten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lora.tasks.base import Task
from lora.tasks.figures import Figures, groups_of


def constant_answer(task: Task, predictions: list[Any], targets: list[Any]) -> dict[str, Any] | None:
    """``{"name": in words, "metrics": ...}``; None for tasks that have no such answer.

    The answer is picked on the evaluated rows themselves, so no constant one can be better on them. Its form is that of
    the task's own predictions: ``{"label": ...}``, ``{"labels": [...]}``, ``{"tags": [...]}`` or a number.
    """
    found = _guesses(predictions, targets)
    if found is None:
        return None
    name, guesses = found
    metrics = task.metrics(guesses, targets, 0.0, 1)
    # No loss: a constant answer gives no probabilities.
    kept = {key: value for key, value in metrics.items() if isinstance(value, (int, float)) and key != "loss"}
    return {"name": name, "metrics": kept}


def constant_figures(
    task: Task, predictions: list[Any], examples: Sequence[dict[str, Any]]
) -> tuple[str, Figures] | None:
    """The same answer in words, and its figures: rows that are paired with those of ``predictions``."""
    targets = task.targets(examples)
    found = _guesses(predictions, targets)
    return None if found is None else (found[0], task.figures(found[1], targets, groups_of(examples)))


def _guesses(predictions: list[Any], targets: list[Any]) -> tuple[str, list[Any]] | None:
    first = predictions[0]
    if isinstance(first, dict) and "label" in first:
        label, count = Counter(targets).most_common(1)[0]
        name = f"always {label!r}, the most frequent class ({count} of {len(targets)} rows)"
        return name, [{"label": label}] * len(targets)
    if isinstance(first, dict) and "labels" in first:
        labels, count = Counter(tuple(target) for target in targets).most_common(1)[0]
        said = " + ".join(map(repr, labels)) or "no label"
        name = f"always {said}, the most frequent answer ({count} of {len(targets)} rows)"
        return name, [{"labels": list(labels)}] * len(targets)
    if isinstance(first, dict) and "tags" in first:
        counts = Counter(tag for target in targets for tag in target["tags"])
        tag, count = counts.most_common(1)[0]
        name = f"always {tag!r}, the most frequent tag ({count} of {counts.total()} words)"
        return name, [{"tags": [tag] * len(target["tags"])} for target in targets]
    if isinstance(first, float):
        mean = sum(targets) / len(targets)
        return f"always {mean:.4g}, the mean of the true values", [mean] * len(targets)
    return None
