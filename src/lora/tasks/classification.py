"""One of several classes. Shapes: b row, c class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora.core.divergence import disagreements
from lora.data.kinds import Kind
from lora.data.rows import named
from lora.errors import DataError
from lora.statistics.classes import (
    ACCURACY,
    F1_MACRO,
    F1_MICRO,
    F1_WEIGHTED,
    MCC,
    PRECISION_MACRO,
    RECALL_MACRO,
    label_rows,
)
from lora.statistics.rows import Array
from lora.tasks.base import Row
from lora.tasks.figures import Figures, Groups, by_label, finite, ranked, values
from lora.tasks.labels import LabelsTask, kind_of, mixed_types, name_of, refuse_unseen, sort_names
from lora.tasks.sequence import label_problem, wrong_type


class ClassificationTask(LabelsTask):
    """A text (or two) and one label. Arguments: as of `LabelsTask`."""

    name = "classification"
    labels_are = Kind.CLASSES
    agrees = True
    learns = "label"
    best_metric = "f1_macro"  # accuracy hides a rare class that is never found
    measures = {
        "loss": False, "accuracy": True, "f1_macro": True, "f1_micro": True, "f1_weighted": True,
        "precision_macro": True, "recall_macro": True, "mcc": True, "auroc": True, "average_precision": True,
    }  # fmt: skip
    problem_type = "single_label_classification"

    @classmethod
    def from_rows(cls, rows: list[Row], columns: Mapping[str, str]) -> ClassificationTask:
        """Learn the classes. Raises DataError: rows at fault, or a single class."""
        values = [row.get(columns["label"]) for row in rows]
        kind = kind_of(values)
        task = cls([], kind, **columns)
        found = sort_names(set(task.read(rows)))
        if len(found) < 2:
            raise DataError(
                f"{named(rows)}column {task.label!r}: every row has the label {found[0]!r}; "
                "a classifier needs two classes at least"
            )
        made = cls(found, kind, **columns)
        made._mixed = mixed_types(values, kind)
        return made

    def classes(self) -> str:
        return self.label

    def read_label(self, value: Any) -> str:
        """The class's name; white space around it is no part of it."""
        problem = label_problem(value)
        if problem is None and isinstance(value, (list, tuple, dict, set)):
            problem = wrong_type(value, "a single value; for lists of labels set data.task multi-label")
        if problem:
            raise ValueError(problem)
        return name_of(value, self.label_kind)

    def check_labels(self, labels: list[str], rows: list[Row]) -> None:
        """Raise DataError naming the labels that training has not seen."""
        refuse_unseen([[name] for name in labels], rows, self.labels)

    def label_tensor(self, labels: list[str]) -> Tensor:
        """(b,) long."""
        return torch.tensor([self._index[name] for name in labels], dtype=torch.long)

    def row_losses(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Cross-entropy per row (b,) fp32, and ones (b,).

        With smoothing ε the target is (1-ε)·one-hot + ε/c over all c classes, the true one included, as in
        ``torch.nn.functional.cross_entropy`` (arXiv:1512.00567, section 7). ``outputs.logits``: (b, ≥c); columns
        beyond this task's own are another adapter's and not looked at.
        """
        logs = self._log_probabilities(outputs)
        losses = -logs.gather(1, batch["labels"].unsqueeze(1)).squeeze(1)
        if label_smoothing:
            losses = (1 - label_smoothing) * losses - label_smoothing * logs.mean(dim=1)
        return losses, torch.ones_like(losses)

    def row_disagreements(self, one: Any, other: Any, batch: dict[str, Tensor]) -> Tensor:
        return disagreements(*(outputs.logits[:, : len(self.labels)] for outputs in (one, other)))

    def predictions(self, outputs: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """``{"label": in its original type, "score": its probability, "probabilities": of each class}`` per row."""
        rows = self._log_probabilities(outputs).detach().exp().tolist()
        best = [max(range(len(row)), key=row.__getitem__) for row in rows]
        return [
            {"label": self.restore(self.labels[place]), "score": row[place], "probabilities": row}
            for row, place in zip(rows, best, strict=True)
        ]

    def targets(self, examples: Sequence[dict[str, Any]]) -> list[Any]:
        return [self.restore(example["label"]) for example in examples]

    def figures(self, predictions: Sequence[Any], targets: Sequence[Any], groups: Groups = None) -> Figures:
        true = [name_of(value, self.label_kind) for value in targets]
        said = [name_of(row["label"], self.label_kind) for row in predictions]
        rows = label_rows(true, said, labels=self.labels, groups=groups)
        own = {
            "accuracy": ACCURACY, "f1_macro": F1_MACRO, "f1_micro": F1_MICRO, "f1_weighted": F1_WEIGHTED,
            "precision_macro": PRECISION_MACRO, "recall_macro": RECALL_MACRO, "mcc": MCC,
        }  # fmt: skip
        out: Figures = {key: (metric, rows) for key, metric in own.items()}
        probabilities = finite(predictions, "probabilities")  # a constant answer has none
        if probabilities is not None:
            out |= ranked(np.asarray([self._index[name] for name in true]), probabilities, groups)
        return out

    def stated(self, predictions: Sequence[Any], targets: Sequence[Any]) -> tuple[Array, Array] | None:
        probabilities = finite(predictions, "probabilities")
        true = [self._index[name_of(value, self.label_kind)] for value in targets]
        return None if probabilities is None else (probabilities, np.asarray(true, dtype=np.float64))

    def told(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        return target, prediction["label"]

    def metrics(self, predictions: list[Any], targets: list[Any], loss_sum: float, count: int) -> dict[str, Any]:
        """Accuracy, F1, precision and recall over the classes that occur in targets or predictions, MCC; AUROC and
        average precision, means over classes; per class, confusion (true × said)."""
        found = self.figures(predictions, targets)
        _, rows = found["accuracy"]
        matrix = np.zeros((len(self.labels), len(self.labels)), dtype=np.int64)
        pairs = [
            (self._index[name_of(true, self.label_kind)], self._index[name_of(row["label"], self.label_kind)])
            for true, row in zip(targets, predictions, strict=True)
        ]
        np.add.at(matrix, tuple(zip(*pairs, strict=True)), 1)
        return {
            "loss": loss_sum / count,
            **dict.fromkeys(("auroc", "average_precision")),
            **values(found),
            "per_class": by_label(rows),
            "confusion": {"labels": self.labels, "matrix": matrix.tolist()},
        }

    def _log_probabilities(self, outputs: Any) -> Tensor:
        return outputs.logits[:, : len(self.labels)].float().log_softmax(dim=1)
