"""Temperature scaling: one number by which logits are divided so that probabilities become honest (Guo et al., 2017).

It changes no answer. Shapes: n row, c class.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit, log_softmax, softmax

from lora.errors import ConfigError, DataError
from lora.statistics.calibration import (
    BRIER,
    MASS,
    NLL,
    brier_rows,
    confidence_and_right,
    debiased_error,
    ece,
    nll_rows,
)
from lora.statistics.rows import Array, group_numbers

COLDEST, HOTTEST = 0.01, 100.0


@dataclass(frozen=True)
class Temperature:
    """``value``: what logits are divided by; above 1 the model was too sure. ``note``: why it is no inner minimum."""

    value: float
    note: str = ""


def fit_temperature(logits: ArrayLike, true: ArrayLike) -> Temperature:
    """The temperature with the least negative log-likelihood: Guo et al. (2017), section 4.2.

    The loss is convex in 1/T, so the root of its slope is the one minimum. It is to be fitted on held-out rows.

    Args:
        logits: (n, c), ``true`` the place of the true class, (n,). Or (n,) of one label, ``true`` 0 or 1.

    Raises:
        DataError: shapes that do not fit, a logit that is not finite, no rows.
    """
    z, y = _pairs(logits, true)
    if not len(z):
        raise DataError("no rows to fit a temperature on")
    z = z - z[np.arange(len(z)), y][:, None]  # of the true class 0: the slope is then the mean logit of the others

    def slope(inverse: float) -> float:
        return float((softmax(inverse * z, axis=1) * z).sum(axis=1).mean())

    if not np.ptp(z, axis=1).any():
        return Temperature(1.0, "The logits are alike in every row, so no temperature changes anything.")
    if slope(1 / COLDEST) <= 0:
        return Temperature(
            COLDEST, "Every row is right or nearly so: the smaller the temperature, the better, without end."
        )
    if slope(1 / HOTTEST) >= 0:
        return Temperature(
            HOTTEST, "The logits say less than no answer at all: the larger the temperature, the better, without end."
        )
    return Temperature(1 / float(brentq(slope, 1 / HOTTEST, 1 / COLDEST, xtol=1e-12)))


def probabilities_at(logits: ArrayLike, temperature: ArrayLike = 1.0) -> Array:
    """Probabilities of logits (n, c), or of one label (n,), divided by a temperature, or by one for each row (n,)."""
    z = np.asarray(logits, dtype=np.float64)
    t = np.broadcast_to(np.asarray(temperature, dtype=np.float64), z.shape[:1])
    return np.asarray(expit(z / t) if z.ndim == 1 else softmax(z / t[:, None], axis=1))


def calibration_table(
    logits: ArrayLike, true: ArrayLike, *, folds: int = 5, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """Calibration as it is, and as a temperature would make it, each row judged at one fitted without it.

    Rows (or groups) are dealt into ``folds`` at random; the temperature of a fold is fitted on all others. What the
    table says of ``after`` is therefore no self-praise; ``temperature`` itself is that of all rows.

    Returns:
        ``temperature``, ``note``, ``n``, ``folds`` (their temperatures), and ``before`` and ``after`` with ``ece``,
        ``ece_equal_mass``, ``debiased_error``, ``brier`` and ``nll``. ``after`` is None where there are too few rows or
        groups for two folds, which the note then says.
    """
    if folds < 2:
        raise ConfigError(f"folds is {folds}; it must be at least 2")
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(true)
    fitted = fit_temperature(z, y)
    out: dict[str, Any] = {"temperature": fitted.value, "note": fitted.note, "n": len(z), "folds": [], "after": None}
    out["before"] = measures(probabilities_at(z), y)
    numbers = group_numbers(groups, len(z))
    unit = np.arange(len(z)) if numbers is None else numbers
    units = int(unit.max()) + 1
    if units < 2:
        out["note"] = f"{fitted.note} One row or group cannot be judged at a temperature fitted without it.".strip()
        return out
    fold = (np.random.default_rng(seed).permutation(units) % min(folds, units))[unit]
    own = np.empty(len(z))
    for number in range(int(fold.max()) + 1):
        found = fit_temperature(z[fold != number], y[fold != number]).value
        own[fold == number] = found
        out["folds"].append(found)
    out["after"] = measures(probabilities_at(z, own), y)
    return out


def by_label(logits: ArrayLike, true: ArrayLike, labels: Sequence[Any], **settings: Any) -> dict[Any, dict[str, Any]]:
    """`calibration_table` of each label where a row has several, of logits and 0 or 1, both (n, c)."""
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(true)
    if z.ndim != 2 or z.shape != y.shape or z.shape[1] != len(labels):
        raise DataError(
            f"logits have shape {z.shape}, true ones {y.shape}, labels are {len(labels)}; one column a label"
        )
    return {label: calibration_table(z[:, place], y[:, place], **settings) for place, label in enumerate(labels)}


def nll_at(logits: ArrayLike, true: ArrayLike, temperature: float) -> float:
    """The mean negative log-likelihood that `fit_temperature` minimises, without a floor under probabilities."""
    z, y = _pairs(logits, true)
    return float(-log_softmax(z / temperature, axis=1)[np.arange(len(z)), y].mean())


def measures(probabilities: Array, true: Any) -> dict[str, float]:
    """``ece``, ``ece_equal_mass``, ``debiased_error``, ``brier``, ``nll``; arguments as of `brier_rows`."""
    said, right = confidence_and_right(probabilities, true)
    return {
        "ece": ece(said, right),
        "ece_equal_mass": ece(said, right, by=MASS),
        "debiased_error": debiased_error(said, right),
        "brier": BRIER.value(brier_rows(probabilities, true)),
        "nll": NLL.value(nll_rows(probabilities, true)),
    }


def _pairs(logits: ArrayLike, true: ArrayLike) -> tuple[Array, Any]:
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(true)
    z = np.column_stack([np.zeros_like(z), z]) if z.ndim == 1 else z  # a sigmoid is a softmax beside 0
    if z.ndim != 2 or y.shape != z.shape[:1]:
        raise DataError(f"logits have shape {z.shape}, true ones {y.shape}; (rows,) or (rows, classes), and (rows,)")
    if not np.isfinite(z).all():
        raise DataError(f"row {int(np.argmin(np.isfinite(z).all(axis=1)))} (from 0) has a logit that is not finite")
    if not np.isin(y, range(z.shape[1])).all():
        raise DataError("a true class is none of the columns of the logits")
    return z, y.astype(np.intp)
