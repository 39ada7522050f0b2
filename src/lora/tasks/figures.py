"""What predictions are to `lora.statistics`: by the key of `Task.metrics`, a metric and the rows it is a figure of.

The values are those of `Task.metrics`; from rows come intervals and paired tests as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Any

import numpy as np

from lora.statistics.classes import (
    ACCURACY,
    F1_MACRO,
    F1_MICRO,
    F1_WEIGHTED,
    HAMMING,
    averaged,
    label_rows,
    label_set_rows,
    span_rows,
)
from lora.statistics.means import LOSS, MARGIN, PERPLEXITY, mean, preference_rows, token_rows, value_rows
from lora.statistics.metric import Metric
from lora.statistics.numbers import MAE, MSE, PEARSON, R2, RMSE, number_rows
from lora.statistics.rows import Rows
from lora.tasks.base import Task
from lora.tasks.classification import ClassificationTask
from lora.tasks.inference import Outcome
from lora.tasks.labels import name_of
from lora.tasks.multilabel import MultiLabelTask
from lora.tasks.next_token import NextTokenTask
from lora.tasks.preference import PreferenceTask
from lora.tasks.regression import RegressionTask
from lora.tasks.reward import RewardTask
from lora.tasks.spans import Span, spans, strict_spans
from lora.tasks.token_classification import TokenClassificationTask

Figures = dict[str, tuple[Metric, Rows]]

PAIRS = mean("accuracy", lowest=0.0, highest=1.0)


def figures(task: Task, outcome: Outcome, examples: Sequence[dict[str, Any]]) -> Figures:
    """Metrics of ``outcome`` with their rows, by the keys of `Task.metrics`.

    Examples that come of one row are drawn together. Raises DataError where a prediction is no finite number.
    """
    losses = token_rows(outcome.losses, outcome.counts, groups=_groups(examples))
    return {"loss": (LOSS, losses), **_own(task, outcome.predictions, examples)}


@singledispatch
def _own(task: Task, predictions: Sequence[Any], examples: Sequence[dict[str, Any]]) -> Figures:
    """What a kind of task has beside its loss; empty: nothing is known of it."""
    return {}


def _groups(examples: Sequence[dict[str, Any]]) -> list[Any] | None:
    """The row of each example, where one has become several; None: every example is a row."""
    rows = [example.get("row", place) for place, example in enumerate(examples)]
    return rows if len(set(rows)) < len(rows) else None


@_own.register
def _classes(task: ClassificationTask, predictions: Sequence[Any], examples: Sequence[dict[str, Any]]) -> Figures:
    groups = _groups(examples)
    true = [example["label"] for example in examples]
    said = [name_of(row["label"], task.label_kind) for row in predictions]
    rows = label_rows(true, said, labels=task.labels, groups=groups)
    return {
        "accuracy": (ACCURACY, rows),
        "f1_macro": (F1_MACRO, rows), "f1_micro": (F1_MICRO, rows), "f1_weighted": (F1_WEIGHTED, rows),
    }  # fmt: skip


@_own.register
def _label_sets(task: MultiLabelTask, predictions: Sequence[Any], examples: Sequence[dict[str, Any]]) -> Figures:
    groups = _groups(examples)
    true = task.label_tensor([example["label"] for example in examples]).numpy()
    names = [[name_of(label, task.label_kind) for label in row["labels"]] for row in predictions]
    rows = label_set_rows(true, task.label_tensor(names).numpy(), labels=task.labels, groups=groups)
    return {
        "accuracy": (ACCURACY, rows),
        "f1_macro": (F1_MACRO, rows), "f1_micro": (F1_MICRO, rows), "f1_weighted": (F1_WEIGHTED, rows),
        "hamming": (HAMMING, rows),
    }  # fmt: skip


@_own.register
def _numbers(task: RegressionTask, predictions: Sequence[Any], examples: Sequence[dict[str, Any]]) -> Figures:
    groups = _groups(examples)
    true = np.asarray(task.targets(examples), dtype=np.float64)
    said = np.asarray(predictions, dtype=np.float64)
    rows = number_rows(true, said, groups=groups)
    own = {"mse": MSE, "rmse": RMSE, "mae": MAE, "r2": R2, "pearson": PEARSON}
    return {key: (metric, rows) for key, metric in own.items()}


@_own.register
def _next_tokens(task: NextTokenTask, predictions: Sequence[Any], examples: Sequence[dict[str, Any]]) -> Figures:
    groups = _groups(examples)
    tokens = [row["tokens"] for row in predictions]
    rows = token_rows([row["loss"] for row in predictions], tokens, groups=groups)
    right = token_rows([row["correct"] for row in predictions], tokens, groups=groups)
    # The same statistics with right tokens in place of nats: their sum over the number of tokens.
    share = _renamed(LOSS, "token accuracy")
    return {"perplexity": (PERPLEXITY, rows), "token_accuracy": (share, right)}


def _renamed(metric: Any, name: str) -> Metric:
    """A mean over tokens, as one of which more is better."""
    return replace(metric, name=name, higher_is_better=True, highest=1.0)


@_own.register(PreferenceTask)
@_own.register(RewardTask)
def _pairs(task: Task, predictions: Sequence[Any], examples: Sequence[dict[str, Any]]) -> Figures:
    groups = _groups(examples)
    margins = [row["margin"] for row in predictions]
    found: Figures = {
        "accuracy": (PAIRS, preference_rows(margins, groups=groups)),
        "margin": (MARGIN, value_rows(margins, groups=groups)),
    }
    if predictions and "loss_chosen" in predictions[0]:
        ahead = [row["loss_rejected"] - row["loss_chosen"] for row in predictions]
        found["likelihood_accuracy"] = (PAIRS, preference_rows(ahead, groups=groups))
    return found


@_own.register
def _tags(task: TokenClassificationTask, predictions: Sequence[Any], examples: Sequence[dict[str, Any]]) -> Figures:
    """A row is a sentence, whose windows are put together again."""
    sentences: dict[int, tuple[list[str], list[str]]] = {}
    for said, target in zip(predictions, task.targets(examples), strict=True):
        true, its = sentences.setdefault(target["row"], ([], []))
        true += target["tags"]
        its += said["tags"]
    place = {type_: number for number, type_ in enumerate(task.types)}

    def counted(which: Callable[[Sequence[str], str | None], list[Span]]) -> Rows:
        table = np.zeros((3, len(sentences), len(place)))
        for number, (true, said) in enumerate(sentences.values()):
            found_true, found_said = which(true, task.scheme), which(said, task.scheme)
            for part, group in enumerate((set(found_true) & set(found_said), found_said, found_true)):
                for span in group:
                    table[part, number, place[span.type]] += 1
        return span_rows(*table, labels=list(task.types))

    loose, strict = counted(spans), counted(strict_spans)
    right = [sum(a == b for a, b in zip(true, said, strict=True)) for true, said in sentences.values()]
    words = token_rows(right, [len(true) for true, _ in sentences.values()])
    out: Figures = {"accuracy": (_renamed(LOSS, "accuracy"), words), "f1_strict": (averaged("F1", "micro"), strict)}
    for rate in ("precision", "recall", "F1"):
        out[rate.lower()] = (averaged(rate, "micro"), loose)
        out[f"{rate.lower()}_macro"] = (averaged(rate, "macro"), loose)
    return out
