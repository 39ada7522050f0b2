"""Calibration errors, temperatures and answering only where sure: by hand, beside scikit-learn, and by simulation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

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
    reliability,
)
from lora.statistics.estimate import estimate
from lora.statistics.metric import evaluator
from lora.statistics.resampling import weights
from lora.statistics.selective import AURC, accuracy_at, risk_coverage, sure_rows
from lora.statistics.temperature import (
    COLDEST,
    HOTTEST,
    by_label,
    calibration_table,
    fit_temperature,
    nll_at,
    probabilities_at,
)

RNG = np.random.default_rng(0)


def answers(n: int, temperature: float, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too large by the factor ``temperature``, and true classes drawn from the honest ones."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(n, classes)) * 1.5
    true = (rng.random((n, 1)) > np.cumsum(softmax(honest, axis=1), axis=1)).sum(axis=1)
    return honest * temperature, np.minimum(true, classes - 1)


def test_ece_by_hand() -> None:
    said, right = [0.95, 0.95, 0.85, 0.55], [1, 0, 1, 1]
    assert ece(said, right, bins=10) == pytest.approx((2 * 0.45 + 0.15 + 0.45) / 4)
    table = [row for row in reliability(said, right, bins=10) if row.n]
    assert [(row.n, row.right) for row in table] == [(1, 1), (1, 1), (2, 0.5)]
    assert table[-1].start == 0.9 and table[-1].low < 0.5 < table[-1].high
    assert reliability(said, right, bins=10)[0].to_dict()["right"] is None
    assert ece([1.0, 0.0, 0.1], [1, 0, 0], bins=10) == pytest.approx(0.1 / 3)  # ends belong to the bins beside them


def test_bins_of_equal_mass_keep_equal_confidences_together() -> None:
    table = reliability(
        np.r_[np.zeros(30), np.full(30, 0.5), RNG.random(40) / 2 + 0.5], RNG.integers(0, 2, 100), by=MASS
    )
    assert sum(row.n for row in table) == 100 and table[0].n == 30 and all(row.n for row in table)
    even = reliability(RNG.random(150), RNG.integers(0, 2, 150), bins=15, by=MASS)
    assert [row.n for row in even] == [10] * 15
    assert [row.n for row in reliability([0.3] * 5, [1] * 5, by=MASS)] == [5]
    assert reliability([0.0, 0.0], [0, 1], by=MASS)[0].n == 2


def test_the_debiased_error_of_an_honest_model_is_about_nothing() -> None:
    found: dict[str, list[float]] = {"plain": [], "debiased": []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        said = rng.random(300)
        right = (rng.random(300) < said).astype(int)
        found["plain"].append(ece(said, right))
        found["debiased"].append(debiased_error(said, right) ** 2)
    assert np.mean(found["plain"]) > 0.06  # what bins alone make of chance
    assert np.mean(found["debiased"]) < 0.001
    off = [debiased_error(np.full(300, 0.8), np.random.default_rng(seed).random(300) < 0.6) for seed in range(40)]
    assert np.mean(off) == pytest.approx(0.2, abs=0.02)
    assert math.isnan(debiased_error([0.5], [1])) and math.isnan(ece([], []))


def test_brier_and_likelihood_are_scikit_learns() -> None:
    p, true = softmax(RNG.normal(size=(50, 3)), axis=1), RNG.integers(0, 3, 50)
    expected = ((p - np.eye(3)[true]) ** 2).sum(axis=1).mean()
    assert BRIER.value(brier_rows(p, true)) == pytest.approx(expected)
    assert NLL.value(nll_rows(p, true)) == pytest.approx(sk.log_loss(true, p, labels=[0, 1, 2]))
    one, y = p[:, 0], (true == 0).astype(int)
    assert BRIER.value(brier_rows(one, y)) == pytest.approx(sk.brier_score_loss(y, one))
    assert NLL.value(nll_rows(one, y)) == pytest.approx(sk.log_loss(y, one))
    assert math.isfinite(NLL.value(nll_rows([1.0], [0])))
    assert estimate(BRIER, brier_rows(p, true), resamples=200).low < expected


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(temperature: float) -> None:
    logits, true = answers(4000, temperature)
    found = fit_temperature(logits, true)
    assert found.value == pytest.approx(temperature, rel=0.08) and not found.note
    best = nll_at(logits, true, found.value)
    assert all(best <= nll_at(logits, true, found.value * factor) for factor in (0.97, 1.03))


def test_of_one_label_it_is_that_of_two_classes() -> None:
    logits, true = answers(500, 2.0, classes=2)
    one = fit_temperature(logits[:, 1] - logits[:, 0], true)
    assert one.value == pytest.approx(fit_temperature(logits, true).value)
    assert probabilities_at(logits[:, 1] - logits[:, 0], 2.0) == pytest.approx(probabilities_at(logits, 2.0)[:, 1])


def test_temperatures_without_a_minimum_are_bounded_and_say_so() -> None:
    right = fit_temperature([[5.0, 0.0], [0.0, 4.0]], [0, 1])
    assert right.value == COLDEST and "Every row is right" in right.note
    wrong = fit_temperature([[5.0, 0.0], [0.0, 4.0]], [1, 0])
    assert wrong.value == HOTTEST and "less than no answer" in wrong.note
    flat = fit_temperature([[1.0, 1.0], [2.0, 2.0]], [0, 1])
    assert flat.value == 1 and "alike" in flat.note
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        huge = fit_temperature([[1e6, 0.0], [0.0, 1e6], [1e6, 0.0]], [0, 1, 1])
    assert huge.value == HOTTEST


def test_the_table_judges_each_row_at_a_temperature_fitted_without_it() -> None:
    logits, true = answers(1500, 3.0)
    table = calibration_table(logits, true)
    assert table["temperature"] == pytest.approx(3, rel=0.15) and len(table["folds"]) == 5
    assert table["after"]["nll"] < table["before"]["nll"] and table["after"]["ece"] < table["before"]["ece"] / 2
    assert table["after"]["nll"] > nll_at(logits, true, table["temperature"])  # no self-praise
    assert calibration_table(logits, true) == table
    assert len(calibration_table(logits[:6], true[:6], groups=list("aabbcc"))["folds"]) == 3
    alone = calibration_table(logits[:6], true[:6], groups=["a"] * 6)
    assert alone["after"] is None and "cannot be judged" in alone["note"]


def test_labels_are_calibrated_one_by_one() -> None:
    logits, true = answers(600, 2.0, classes=2)
    own = np.column_stack([logits[:, 1] - logits[:, 0], logits[:, 0] - logits[:, 1]])
    table = by_label(own, np.column_stack([true, 1 - true]), ["a", "b"])
    assert table["a"]["temperature"] == pytest.approx(table["b"]["temperature"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ece([0.5, 1.2], [0, 1]), "row 1"),
        (lambda: ece([0.5], [0.5]), "outcome"),
        (lambda: ece([0.5], [0, 1]), "shape"),
        (lambda: brier_rows([[0.5, 2.0]], [0]), "outside"),
        (lambda: brier_rows([[0.5, 0.1]], [0]), "add up to 1"),
        (lambda: nll_rows([[0.5, 0.5]], [2]), "none of the columns"),
        (lambda: fit_temperature([[math.nan, 1.0]], [0]), "row 0"),
        (lambda: fit_temperature(np.empty((0, 2)), []), "no rows"),
        (lambda: by_label([[1.0]], [[1]], ["a", "b"]), "one column a label"),
    ],
)
def test_bad_input_is_refused(call: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        call()  # type: ignore[operator]
    for wrong in ({"bins": 0}, {"by": "size"}):
        with pytest.raises(ConfigError):
            reliability([0.5], [1], **wrong)  # type: ignore[arg-type]


def aurc_by_hand(said: np.ndarray, right: np.ndarray, orders: int = 2000) -> float:
    """Ties in random order, many times."""
    rng, found = np.random.default_rng(0), []
    for _ in range(orders):
        mixed = rng.permutation(len(said))
        order = mixed[np.argsort(-said[mixed], kind="stable")]
        found.append((np.cumsum(1 - right[order]) / np.arange(1, len(said) + 1)).mean())
    return float(np.mean(found))


def test_the_area_under_risk_and_coverage() -> None:
    right = np.asarray([1, 1, 0, 1, 0])
    rows = sure_rows([0.9, 0.8, 0.7, 0.6, 0.5], right)
    assert AURC.value(rows) == pytest.approx((0 + 0 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    coverage, risk = risk_coverage(rows)
    assert coverage[-1] == 1 and risk == pytest.approx([0, 0, 1 / 3, 1 / 4, 2 / 5])
    assert accuracy_at(0.4).value(rows) == 1 and accuracy_at(0.6).value(rows) == pytest.approx(2 / 3)
    assert accuracy_at(1.0).value(rows) == pytest.approx(0.6)
    said, right = np.asarray([0.9, 0.9, 0.9, 0.5, 0.5, 0.1]), np.asarray([1, 0, 1, 0, 1, 0])
    tied = sure_rows(said, right)
    assert AURC.value(tied) == pytest.approx(aurc_by_hand(said, right), abs=0.005)
    assert risk_coverage(tied)[1].mean() == pytest.approx(AURC.value(tied))
    assert accuracy_at(0.5).value(tied) == pytest.approx(2 / 3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_area_and_curve_agree_and_full_coverage_is_accuracy(found: list[tuple[int, bool]]) -> None:
    said, right = np.asarray([row[0] / 5 for row in found]), np.asarray([int(row[1]) for row in found])
    rows = sure_rows(said, right)
    assert AURC.value(rows) == pytest.approx(risk_coverage(rows)[1].mean())
    assert accuracy_at(1.0).value(rows) == pytest.approx(right.mean())
    drawn = next(weights(rows.units, 3, np.random.default_rng(0)))
    for metric in (AURC, accuracy_at(0.7)):
        for own in drawn:
            repeated = np.repeat(rows.cells, own.astype(int), axis=0)
            expected = metric.value(sure_rows(repeated[:, 0], repeated[:, 1]))
            assert evaluator([metric], rows, rows.units)(own[None])[0, 0] == pytest.approx(expected)


def test_sure_answers_have_intervals() -> None:
    logits, true = answers(200, 1.0)
    rows = sure_rows(*confidence_and_right(probabilities_at(logits), true))
    part, whole = (estimate(accuracy_at(share), rows, resamples=300) for share in (0.5, 1.0))
    assert part.value > whole.value and part.low < part.value < part.high
    with pytest.raises(ConfigError, match="coverage"):
        accuracy_at(0)
