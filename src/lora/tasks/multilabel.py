"""Any number of labels for a text. Shapes: b row, c label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lora.data.kinds import Kind
from lora.data.problems import written_list
from lora.data.rows import named
from lora.errors import DataError
from lora.statistics.classes import (
    ACCURACY,
    F1_MACRO,
    F1_MICRO,
    F1_WEIGHTED,
    HAMMING,
    PRECISION_MACRO,
    PRECISION_MICRO,
    RECALL_MACRO,
    RECALL_MICRO,
    label_set_rows,
)
from lora.statistics.rows import Array
from lora.tasks.base import Row
from lora.tasks.figures import Figures, Groups, by_label, finite, ranked, values
from lora.tasks.labels import LabelsTask, kind_of, mixed_types, name_of, refuse_unseen, sort_names
from lora.tasks.sequence import label_problem, wrong_type

THRESHOLD = 0.5


class MultiLabelTask(LabelsTask):
    """A text (or two) and a list of labels, which may be empty. In a string (CSV) labels are separated by ``;`` or
    ``|``.

    Arguments: as of `LabelsTask`.
    """

    name = "multi-label"
    labels_are = Kind.LISTS
    agrees = True
    learns = "labels"
    best_metric = "f1_micro"  # macro is noise where many labels have a handful of rows
    measures = {
        "loss": False, "accuracy": True, "f1_macro": True, "f1_micro": True, "f1_weighted": True,
        "precision_macro": True, "recall_macro": True, "precision_micro": True, "recall_micro": True,
        "hamming": False, "auroc": True, "average_precision": True,
    }  # fmt: skip
    problem_type = "multi_label_classification"

    @classmethod
    def from_rows(cls, rows: list[Row], columns: Mapping[str, str]) -> MultiLabelTask:
        """Learn the labels. Raises DataError: rows at fault, no label at all, or the same ones in every row."""
        values = [value for row in rows for value in split_labels(row.get(columns["label"])) or []]
        kind = kind_of(values)
        task = cls([], kind, **columns)
        lists = task.read(rows)
        if _indicators(rows, task.label):
            raise DataError(
                f"{named(rows)}column {task.label!r}: lists of zeros and ones say by their places which "
                "labels apply; give the names of those that do, as in ['label 1', 'label 3'] for [1, 0, 1]"
            )
        names = sort_names({name for names in lists for name in names})
        if not names:
            raise DataError(f"{named(rows)}column {task.label!r}: no row has a label; there is nothing to learn")
        if len(set(map(frozenset, lists))) == 1:
            raise DataError(
                f"{named(rows)}column {task.label!r}: every row has the same labels ({', '.join(names)}); "
                "there is nothing to tell apart"
            )
        made = cls(names, kind, **columns)
        made._mixed = mixed_types(values, kind)
        return made

    @classmethod
    def made_up_labels(cls, count: int) -> list[Any]:
        return [[name] for name in super().made_up_labels(count)]

    def read_label(self, value: Any) -> list[str]:
        """Names of the labels, each once, in the order of the cell."""
        labels = split_labels(value)
        if labels is None:
            raise ValueError(label_problem(value) or wrong_type(value, "a list of labels"))
        for item in labels:
            problem = label_problem(item)
            if problem or isinstance(item, (list, tuple, dict, set)):
                raise ValueError(f"in the list: {problem or wrong_type(item, 'a single value')}")
        return list(dict.fromkeys(name_of(item, self.label_kind) for item in labels))

    def check_labels(self, labels: list[list[str]], rows: list[Row]) -> None:
        """Raise DataError naming the labels that training has not seen."""
        refuse_unseen(labels, rows, self.labels)

    def label_tensor(self, labels: list[list[str]]) -> Tensor:
        """(b, c) fp32: 1 where the label applies."""
        hot = torch.zeros(len(labels), len(self.labels))
        for row, names in enumerate(labels):
            hot[row, [self._index[name] for name in names]] = 1.0
        return hot

    def row_losses(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy, mean over this task's labels, per row (b,) fp32, and ones (b,).

        With smoothing ε the target y becomes (1-ε)·y + ε/2. ``outputs.logits``: (b, ≥c); columns beyond c are not
        looked at.
        """
        targets = batch["labels"].float()
        if label_smoothing:
            targets = (1 - label_smoothing) * targets + label_smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(self._logits(outputs), targets, reduction="none").mean(
            dim=1
        )
        return losses, torch.ones_like(losses)

    def row_disagreements(self, one: Any, other: Any, batch: dict[str, Tensor]) -> Tensor:
        """Of the Bernoulli distributions of this task's labels, mean over them: Σ (p - q)·(logit p - logit q) / c."""
        x, y = self._logits(one), self._logits(other)
        return ((x.sigmoid() - y.sigmoid()) * (x - y)).mean(dim=1)

    def predictions(self, outputs: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """``{"labels": those of a probability of at least one half, "probabilities": of each label}`` for each row."""
        rows = self._logits(outputs).detach().sigmoid().tolist()
        return [
            {
                "labels": [
                    self.restore(name) for name, value in zip(self.labels, row, strict=True) if value >= THRESHOLD
                ],
                "probabilities": row,
            }
            for row in rows
        ]

    def targets(self, examples: Sequence[dict[str, Any]]) -> list[Any]:
        return [[self.restore(name) for name in example["label"]] for example in examples]

    def figures(self, predictions: Sequence[Any], targets: Sequence[Any], groups: Groups = None) -> Figures:
        true, said = self._hot(targets), self._hot([row["labels"] for row in predictions])
        rows = label_set_rows(true, said, labels=self.labels, groups=groups)
        own = {
            "accuracy": ACCURACY, "f1_macro": F1_MACRO, "f1_micro": F1_MICRO, "f1_weighted": F1_WEIGHTED,
            "precision_macro": PRECISION_MACRO, "recall_macro": RECALL_MACRO, "precision_micro": PRECISION_MICRO,
            "recall_micro": RECALL_MICRO, "hamming": HAMMING,
        }  # fmt: skip
        out: Figures = {key: (metric, rows) for key, metric in own.items()}
        probabilities = finite(predictions, "probabilities")  # a constant answer has none
        if probabilities is not None:
            out |= ranked(true, probabilities, groups)
        return out

    def stated(self, predictions: Sequence[Any], targets: Sequence[Any]) -> tuple[Array, Array] | None:
        probabilities = finite(predictions, "probabilities")
        return None if probabilities is None else (probabilities, self._hot(targets).astype(float))

    def told(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        expected, answer = ({name_of(one, self.label_kind) for one in each} for each in (target, prediction["labels"]))
        return [one for one in self.labels if one in expected], [one for one in self.labels if one in answer]

    def metrics(self, predictions: list[Any], targets: list[Any], loss_sum: float, count: int) -> dict[str, Any]:
        """Exact matches; F1, precision and recall over the labels that occur in targets or predictions (0 where none
        does), share of wrong cells; AUROC and average precision, means over labels; per label."""
        found = self.figures(predictions, targets)
        _, rows = found["accuracy"]
        each = values(found)
        rates = {key: each[key] or 0.0 for key in each if key.startswith(("f1", "precision", "recall"))}
        return {
            "loss": loss_sum / count,
            **dict.fromkeys(("auroc", "average_precision")),
            **each,
            **rates,
            "per_class": by_label(rows),
        }

    def _hot(self, values: Sequence[list[Any]]) -> Any:
        names = [[name_of(value, self.label_kind) for value in row] for row in values]
        return self.label_tensor(names).numpy().astype(int)

    def _logits(self, outputs: Any) -> Tensor:
        return outputs.logits[:, : len(self.labels)].float()


def _indicators(rows: list[Row], column: str) -> bool:
    """Whether the cells are one-hot vectors: of one length, of zeros and ones, with a value more than once."""
    cells = [[str(value) for value in split_labels(row.get(column)) or []] for row in rows]
    length, marks = len(cells[0]), {"0", "1", "0.0", "1.0", "False", "True"}
    alike = length > 1 and all(len(cell) == length and marks.issuperset(cell) for cell in cells)
    return alike and any(len(set(cell)) < length for cell in cells)


def split_labels(value: Any) -> list[Any] | None:
    """The labels in a cell: a list, also as text, a string at its ``;`` and ``|``; None: neither."""
    if isinstance(value, (list, tuple, set)):
        return sorted(value, key=str) if isinstance(value, set) else list(value)
    if isinstance(value, str):
        if value.strip().startswith("["):
            return written_list(value)
        return [part.strip() for part in re.split(r"[;|]", value) if part.strip()]
    return None
