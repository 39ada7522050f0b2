"""The mean of folds: its interval against the formula, and how often it holds the true value on a cheap learner."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lora.errors import ConfigError, DataError
from lora.statistics.classes import ACCURACY
from lora.statistics.estimate import estimate
from lora.statistics.folds import mean_of_folds
from lora.statistics.means import mean, right_rows


def test_the_formula() -> None:
    values = [0.8, 0.7, 0.9, 0.75, 0.85]
    found = mean_of_folds(values, 1 / 4)
    error = np.std(values, ddof=1) * math.sqrt(1 / 5 + 1 / 4)
    low, high = stats.t(4, np.mean(values), error).interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high)) and found.folds == 5
    assert found.p_value == pytest.approx(2 * stats.t(4).sf(np.mean(values) / error))
    assert mean_of_folds([0.99, 0.7], 1, metric=ACCURACY).high == 1.0


def test_what_is_undefined() -> None:
    found = mean_of_folds([0.5, math.nan, 0.7], 0.5)
    assert found.value == pytest.approx(0.6) and found.folds == 2 and "In 1 of 3 folds" in found.note
    assert math.isnan(mean_of_folds([0.5], 0.5).low) and "One fold" in mean_of_folds([0.5], 0.5).note
    assert math.isnan(mean_of_folds([math.nan], 0.5).value)
    assert math.isnan(mean_of_folds([0.5, 0.5], 0.5).low) and mean_of_folds([0.0, 0.0], 0.5).p_value == 1.0
    assert mean_of_folds([0.5], 0.5).to_dict()["low"] is None
    with pytest.raises(ConfigError, match="ratio is 0"):
        mean_of_folds([0.5], 0)
    with pytest.raises(DataError, match="no folds"):
        mean_of_folds([], 1)


def nearest_centroids(train: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The class whose mean is nearest: a learner that costs nothing and errs as it likes."""
    centres = np.stack([train[labels == name].mean(axis=0) for name in (0, 1)])
    return np.linalg.norm(rows[:, None] - centres, axis=2).argmin(axis=1)


def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.permutation(np.arange(count) % 2)
    return rng.normal(size=(count, 5)) + 0.5 * labels[:, None], labels


def coverage(times: int, rows: int = 60, folds: int = 5, repeats: int = 2, seed: int = 0) -> dict[str, float]:
    """How often intervals of cross-validation hold what the learner comes to on so many training rows on average."""
    rng = np.random.default_rng(seed)
    many, their = draw(rng, 4000)
    smaller = rows * (folds - 1) // folds
    true = np.mean([(nearest_centroids(*draw(rng, smaller), many) == their).mean() for _ in range(1000)])
    held = {"naive": 0, "corrected": 0, "pooled": 0}
    for number in range(times):
        x, y = draw(rng, rows)
        values, right = [], np.zeros((repeats, rows))
        for repeat in range(repeats):
            order = np.lexsort((rng.random(rows), y))  # classes one after the other, each at random
            part = np.empty(rows, dtype=int)
            part[order] = np.arange(rows) % folds
            for fold in range(folds):
                out = part == fold
                right[repeat, out] = nearest_centroids(x[~out], y[~out], x[out]) == y[out]
                values.append(right[repeat, out].mean())
        corrected = mean_of_folds(values, 1 / (folds - 1), metric=ACCURACY)
        low, high = stats.t(len(values) - 1, np.mean(values), stats.sem(values)).interval(0.95)
        pooled = estimate(
            mean("right"), right_rows(right.reshape(-1), groups=np.tile(np.arange(rows), repeats)), seed=number,
            resamples=400,
        )  # fmt: skip
        for name, ends in {
            "naive": (low, high), "corrected": (corrected.low, corrected.high), "pooled": (pooled.low, pooled.high),
        }.items():  # fmt: skip
            held[name] += ends[0] <= true <= ends[1]
    return {name: count / times for name, count in held.items()}


def test_the_corrected_interval_holds_the_true_value_and_the_naive_one_does_not() -> None:
    """A learner, data and folds made up; two standard errors of 300 times are 2.5 points at 95 %."""
    found = coverage(300)
    assert found["corrected"] > 0.92
    assert found["naive"] < 0.88, "a t interval as if folds were independent is too narrow"
    assert found["pooled"] > 0.90
    assert found["naive"] < found["corrected"] - 0.05
