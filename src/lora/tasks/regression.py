"""A number for a text. Shapes: b row."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora.data.kinds import Kind
from lora.data.rows import named
from lora.errors import ConfigError, DataError
from lora.statistics.numbers import MAE, MSE, PEARSON, R2, RMSE, SPEARMAN, number_rows
from lora.tasks.base import Row
from lora.tasks.figures import Figures, Groups, values
from lora.tasks.sequence import SequenceTask, label_problem, wrong_type


class RegressionTask(SequenceTask):
    """A text (or two) and a number.

    Arguments:
        mean, std: of the training labels. The model learns (label - mean) / std: prices in thousands and ratings from
            0 to 1 then have losses of one scale, and one learning rate fits both. Predictions are given in the
            labels' own unit.
        text, text_pair, label: names of the columns.
    """

    name = "regression"
    labels_are = Kind.QUANTITY
    agrees = True
    learns = "number"
    best_metric = "rmse"
    measures = {
        "loss": False, "mse": False, "rmse": False, "mae": False, "r2": True, "pearson": True, "spearman": True,
    }  # fmt: skip

    def __init__(
        self,
        mean: float = 0.0,
        std: float = 1.0,
        text: str = "text",
        text_pair: str | None = None,
        label: str = "label",
    ) -> None:
        super().__init__(text, text_pair, label)
        self.mean = mean
        self.std = std

    @classmethod
    def from_rows(cls, rows: list[Row], columns: Mapping[str, str]) -> RegressionTask:
        """Learn mean and standard deviation. Raises DataError: rows at fault, or all labels the same number."""
        return cls._of(cls(0.0, 1.0, **columns).read(rows), rows, columns)

    @classmethod
    def made_up_labels(cls, count: int) -> list[Any]:
        return [0.0, 0.5]

    @classmethod
    def from_chunks(cls, chunks: Iterable[list[Row]], columns: Mapping[str, str]) -> RegressionTask:
        task, values, first = cls(0.0, 1.0, **columns), array("d"), list[Row]()
        for chunk in chunks:
            values.extend(task.read(chunk))
            first = first or chunk
        return cls._of(values, first, columns)

    @classmethod
    def _of(cls, values: Sequence[float], rows: list[Row], columns: Mapping[str, str]) -> RegressionTask:
        """The task for labels of these ``values``; ``rows``: some that they belong to, for a message."""
        if min(values) == max(values):
            raise DataError(
                f"{named(rows)}column {columns['label']!r}: every row has the label {values[0]:g}; "
                "there is nothing to learn"
            )
        mean = math.fsum(values) / len(values)
        widest = max(
            abs(value - mean) for value in values
        )  # divided out first: squares of 1e-200 or 1e200 leave fp64's range
        std = widest * math.sqrt(math.fsum(((value - mean) / widest) ** 2 for value in values) / len(values))
        return cls(mean, std, **columns)

    def for_training(self, rows: list[Row]) -> RegressionTask:
        columns = {"text": self.text, "text_pair": self.text_pair, "label": self.label}
        return type(self).from_rows(rows, {role: name for role, name in columns.items() if name is not None})

    def state(self) -> dict[str, Any]:
        return {**super().state(), "mean": self.mean, "std": self.std}

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def read_label(self, value: Any) -> float:
        """A finite number; numbers in strings (CSV) are read."""
        problem = label_problem(value)
        if problem:
            raise ValueError(problem)
        try:
            number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            number = None
        if number is None:
            raise ValueError(wrong_type(value, "a number"))
        if not math.isfinite(number):
            raise ValueError(f"the label {number} is not finite")
        return number

    def label_tensor(self, labels: list[float]) -> Tensor:
        """(b,) fp32, standardised."""
        return torch.tensor([(value - self.mean) / self.std for value in labels], dtype=torch.float32)

    def check_smoothing(self, label_smoothing: float) -> None:
        if label_smoothing:
            raise ConfigError(
                f"training.label_smoothing {label_smoothing:g}: there is nothing to smooth in a number; leave it out"
            )

    def row_losses(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Squared error of the standardised label per row (b,) fp32, and ones (b,). ``outputs.logits``: (b, ≥1), the
        first counts.

        There is nothing to smooth in a number: ``label_smoothing`` has no effect.
        """
        losses = (outputs.logits[:, 0].float() - batch["labels"].float()) ** 2
        return losses, torch.ones_like(losses)

    def row_disagreements(self, one: Any, other: Any, batch: dict[str, Tensor]) -> Tensor:
        """Twice the squared difference of both numbers, standardised: a squared error is, but for a constant, the
        negative log-likelihood of a normal distribution of variance 1/2, and that is KL between two such, both ways."""
        return 2 * (one.logits[:, 0].float() - other.logits[:, 0].float()) ** 2

    def predictions(self, outputs: Any, batch: dict[str, Tensor]) -> list[float]:
        """A number per row, in the unit of the labels."""
        return [value * self.std + self.mean for value in outputs.logits[:, 0].detach().float().tolist()]

    def figures(self, predictions: Sequence[Any], targets: Sequence[Any], groups: Groups = None) -> Figures:
        rows = number_rows(np.asarray(targets, dtype=float), np.asarray(predictions, dtype=float), groups=groups)
        own = {"mse": MSE, "rmse": RMSE, "mae": MAE, "r2": R2, "pearson": PEARSON, "spearman": SPEARMAN}
        return {key: (metric, rows) for key, metric in own.items()}

    def told(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        return target, prediction

    def metrics(self, predictions: list[Any], targets: list[Any], loss_sum: float, count: int) -> dict[str, Any]:
        """mse, rmse, mae in the labels' unit; r2 and correlations are None where undefined (a constant side, one
        row)."""
        said, true = np.asarray(predictions, dtype=float), np.asarray(targets, dtype=float)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = float(np.square(said - true).sum() + np.square(true - true.mean()).sum() + np.square(said).sum())
        # Diverged, or numbers whose squares leave fp64's range: never the best, and no crash in the middle of a run.
        if not math.isfinite(squares):
            return {
                "loss": loss_sum / count,
                **dict.fromkeys(("mse", "rmse", "mae"), math.inf),
                **dict.fromkeys(("r2", "pearson", "spearman")),
            }
        return {"loss": loss_sum / count, **values(self.figures(predictions, targets))}
