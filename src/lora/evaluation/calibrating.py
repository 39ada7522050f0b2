"""Calibration of an adapter's probabilities, and what comes of answering only where they are high."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lora.errors import ConfigError
from lora.evaluation.uncertainty import intervals
from lora.statistics.calibration import BRIER, NLL, brier_rows, confidence_and_right, nll_rows, reliability
from lora.statistics.rows import Array
from lora.statistics.selective import AURC, COVERAGES, accuracy_at, risk_coverage, sure_rows
from lora.statistics.temperature import (
    Temperature,
    calibration_table,
    fit_temperature,
    measures,
    probabilities_at,
)
from lora.tasks import Task
from lora.tasks.figures import Figures, groups_of
from lora.tasks.inference import Outcome

if TYPE_CHECKING:
    from lora.model.lora import LoRA

HELD_OUT = "It was fitted on the rows held out of training."
PICKED = (
    "It was fitted on the rows held out of training, which also picked the best checkpoint. On these the adapter does "
    "somewhat better than on others, so the temperature may be a little too low."
)
POINTS = 200  # of the risk-coverage curve that are kept
_SMALLEST, _BESIDE_ONE = 1e-45, 2.0**-25  # of a probability in fp32, and of what it leaves to 1


def calibration(
    task: Task,
    outcome: Outcome,
    examples: Sequence[dict[str, Any]],
    temperature: float | None = None,
    seed: int = 0,
    picked: bool = False,
    resamples: int = 0,
) -> dict[str, Any] | None:
    """Calibration of what ``outcome`` states; None where it states no probabilities.

    Where a row has several labels, each of them is an answer of its own, and a row is answered as a whole: its
    confidence is the product of theirs.

    Args:
        temperature: fitted on other rows. Without one each row is judged at a temperature that was fitted on the others
            (see `calibration_table`).
        picked: whether these other rows also picked the checkpoint.
        resamples: for intervals; 0: none.

    Returns:
        ``bins`` (of equal width), ``ece``, ``ece_equal_mass``, ``debiased_error``, ``brier``, ``nll``, ``aurc``;
        ``temperature``: that, and calibration ``before`` and ``after``; ``selective``: ``coverage`` and ``risk``, the
        curve, and ``accuracy_at``, by coverage; ``intervals`` of ``brier``, ``nll`` and ``aurc``, each an `Estimate` as
        a dict. The errors of calibration have none: their resamples lie above them, as they do above the truth.
    """
    stated = task.stated(outcome.predictions, task.targets(examples))
    if stated is None:
        return None
    logits, true, groups = _logits(*stated, groups_of(examples))
    probabilities = probabilities_at(logits)
    said, right = confidence_and_right(probabilities, true)
    if temperature is None:
        table = calibration_table(logits, true, seed=seed, groups=groups)
        note = "No rows were held out to fit it on: each row is judged at one fitted on the others."
        table["note"] = f"{table['note']} {note}".strip()
    else:
        table = {
            "temperature": temperature, "n": len(logits), "note": PICKED if picked else HELD_OUT,
            "before": measures(probabilities, true),
            "after": measures(probabilities_at(logits, temperature), true),
        }  # fmt: skip
    sure = sure_rows(*_rows(*stated), groups=groups_of(examples))
    coverage, risk = risk_coverage(sure)
    kept = np.unique(np.linspace(0, len(coverage) - 1, min(POINTS, len(coverage))).round().astype(int))
    sized: Figures = {
        "brier": (BRIER, brier_rows(probabilities, true, groups=groups)),
        "nll": (NLL, nll_rows(probabilities, true, groups=groups)),
        "aurc": (AURC, sure),
    }
    return {
        "bins": [its.to_dict() for its in reliability(said, right)],
        **table["before"],
        "aurc": AURC.value(sure),
        "intervals": intervals({"": sized}, resamples, seed)[""] if resamples else {},
        "temperature": table,
        "selective": {
            "coverage": coverage[kept].tolist(), "risk": risk[kept].tolist(),
            "accuracy_at": {f"{share:g}": accuracy_at(share).value(sure) for share in COVERAGES},
        },
    }  # fmt: skip


def temperature_of(task: Task, outcome: Outcome, examples: Sequence[dict[str, Any]]) -> Temperature | None:
    """The temperature that fits ``outcome`` best; None where it states no probabilities."""
    stated = task.stated(outcome.predictions, task.targets(examples))
    if stated is None:
        return None
    logits, true, _ = _logits(*stated, None)
    return fit_temperature(logits, true)


def stored_temperature(model: LoRA, name: str, task: Task) -> float:
    """The temperature that is stored with an adapter. Raises ConfigError where none is, or none can be."""
    if task.learns not in ("label", "labels") or task.per_token:
        raise ConfigError(f"calibrated: the task {task.name} gives no probabilities that a temperature was fitted for")
    found = model.notes.get(name, {}).get("temperature")
    if found is None:
        raise ConfigError(
            f"calibrated: no temperature is stored with the adapter {name!r}; training fits one at its end where it "
            "has held-out rows and test rows"
        )
    return float(found)


def at_temperature(task: Task, predictions: Sequence[dict[str, Any]], temperature: float) -> list[dict[str, Any]]:
    """Predictions with the probabilities that they have at ``temperature``; what is answered stays the same."""
    p = np.asarray([row["probabilities"] for row in predictions], dtype=np.float64)
    if task.learns == "labels":
        p = probabilities_at(_log_odds(p).reshape(-1), temperature).reshape(p.shape)
    else:
        p = probabilities_at(np.log(np.maximum(p, _SMALLEST)), temperature)
    out = []
    for row, own in zip(predictions, p.tolist(), strict=True):
        out.append({**row, **({"score": max(own)} if "score" in row else {}), "probabilities": own})
    return out


def _logits(p: Array, true: Array, groups: list[Any] | None) -> tuple[Array, Any, list[Any] | None]:
    """Logits that give these probabilities, what is true, and groups. Softmax does not see what is added to a row."""
    if true.ndim == 1:
        return np.log(np.maximum(p, _SMALLEST)), true.astype(np.intp), groups
    rows = list(range(len(p))) if groups is None else groups
    return _log_odds(p).reshape(-1), true.reshape(-1).astype(np.intp), [row for row in rows for _ in range(p.shape[1])]


def _log_odds(p: Array) -> Array:
    return np.log(np.maximum(p, _SMALLEST)) - np.log(np.maximum(1 - p, _BESIDE_ONE))


def _rows(p: Array, true: Array) -> tuple[Array, Array]:
    """Confidence and outcome of each row as a whole, (n,) both."""
    if true.ndim == 1:
        return np.minimum(p.max(axis=1), 1.0), (p.argmax(axis=1) == true).astype(np.float64)
    return np.maximum(p, 1 - p).prod(axis=1), ((p >= 0.5) == true).all(axis=1).astype(np.float64)
