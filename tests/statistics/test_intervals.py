"""Intervals hold the true value about as often as they say, and say so where they cannot."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from lora.errors import ConfigError
from lora.statistics.classes import ACCURACY, F1_MACRO, MCC, by_class, label_rows, of_class
from lora.statistics.estimate import Estimate, estimate, estimates
from lora.statistics.interval import Bootstrap, wilson
from lora.statistics.means import EXACT_MATCH, MEAN, PREFERENCE_ACCURACY, preference_rows, right_rows, value_rows
from lora.statistics.metric import Metric, evaluator
from lora.statistics.ranking import AUROC, score_rows
from lora.statistics.resampling import left_out, skewness
from lora.statistics.rows import Rows

RUNS = 300
TOLERANCE = 0.035  # of a coverage of 95 %, seen in 300 runs: nearly three standard errors


def covered(found: list[Estimate], truth: float, shrink: float = 1.0) -> float:
    """Share of intervals that hold the truth, both ends drawn towards the value by the factor ``shrink``."""
    hits = [
        e.value - shrink * (e.value - e.low) <= truth <= e.value + shrink * (e.high - e.value) for e in found
    ]  # fmt: skip
    return sum(hits) / len(hits)


def drawn_labels(rng: np.random.Generator, n: int) -> Rows:
    true = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    return label_rows(true, np.where(rng.random(n) < 0.75, true, rng.integers(0, 4, n)), labels=range(4))


def drawn_scores(rng: np.random.Generator, n: int) -> Rows:
    true = rng.integers(0, 2, n)
    return score_rows(true, rng.normal(size=n) + 1.2 * true)


def drawn_groups(rng: np.random.Generator, n: int) -> Rows:
    groups = np.arange(n) // 5
    return value_rows(rng.normal(size=n) + rng.normal(size=n)[groups], groups=groups)


NORMAL = math.erf(1.2 / 2)  # Φ(δ/√2) = (1 + erf(δ/2))/2
CASES: dict[str, tuple[Metric, Callable[[np.random.Generator, int], Rows], int, float | None]] = {
    "accuracy": (ACCURACY, drawn_labels, 50, 0.75 + 0.25 / 4),
    "macro F1": (F1_MACRO, drawn_labels, 150, None),
    "mean": (MEAN, lambda rng, n: value_rows(rng.normal(size=n)), 50, 0.0),
    "skewed mean": (MEAN, lambda rng, n: value_rows(rng.exponential(size=n)), 100, 1.0),
    "AUROC": (AUROC, drawn_scores, 100, (1 + NORMAL) / 2),
    "groups": (MEAN, drawn_groups, 200, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_coverage(case: str) -> None:
    metric, draw, n, truth = CASES[case]
    rng = np.random.default_rng(3)
    if truth is None:
        truth = metric.value(draw(rng, 300_000))
    found = [estimate(metric, draw(rng, n), seed=run, resamples=500) for run in range(RUNS)]
    assert covered(found, truth) == pytest.approx(0.95, abs=TOLERANCE)
    # This test can fail: intervals of three quarters of their width are found out.
    assert covered(found, truth, shrink=0.75) < 0.95 - TOLERANCE


def test_groups_taken_for_single_rows_cover_too_little() -> None:
    rng = np.random.default_rng(7)
    sampled = [drawn_groups(rng, 200) for _ in range(100)]
    wrong = [value_rows(rows.cells[rows.which][:, 0]) for rows in sampled]
    assert covered([estimate(MEAN, rows, resamples=200) for rows in wrong], 0.0) < 0.85


def test_coverage_of_wilson_is_near_its_level_from_few_rows_on() -> None:
    for n in (5, 10, 50):
        means = []
        for share in np.linspace(0.05, 0.95, 37):
            hits = np.arange(n + 1)
            ends = [wilson(k, n) for k in hits]
            mass = np.asarray([math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in hits])
            means.append(sum(m for m, (low, high) in zip(mass, ends) if low <= share <= high))
        assert np.mean(means) == pytest.approx(0.95, abs=0.012)


def test_wilson_by_hand() -> None:
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(10, 10)[1] == 1 and wilson(0, 10)[0] == 0
    assert wilson(10, 10)[0] == pytest.approx(0.7224672, abs=1e-6)


def test_the_f1_of_a_class_with_few_rows_is_covered() -> None:
    """20 of 200 rows are of the class: what is drawn is all rows, so that their number varies too."""
    rng, shares, held = np.random.default_rng(1), [0.1, 0.3, 0.3, 0.3], []

    def drawn(count: int) -> Rows:
        true = rng.choice(4, count, p=shares)
        said = np.where(rng.random(count) < 0.8, true, rng.integers(0, 4, count))
        return label_rows(true, said, labels=range(4))

    metric = of_class("F1", 0, "a")
    value = metric.value(drawn(400_000))
    for seed in range(300):
        its = estimate(metric, drawn(200), resamples=300, seed=seed)
        held.append(its.low <= value <= its.high)
    assert 0.92 <= np.mean(held) <= 0.985


def test_same_seed_same_interval() -> None:
    rows = drawn_labels(np.random.default_rng(0), 120)
    one, again, other = (estimate(F1_MACRO, rows, seed=seed, resamples=500) for seed in (1, 1, 2))
    assert one == again and (one.low, one.high) != (other.low, other.high)
    assert one.value == other.value and one.method == "bca" and one.low < one.value < one.high


def test_several_metrics_share_resamples() -> None:
    rows = drawn_labels(np.random.default_rng(0), 120)
    metrics = [ACCURACY, F1_MACRO, MCC, *by_class("F1", rows)]
    together = estimates(metrics, rows, resamples=500)
    alone = [estimate(metric, rows, resamples=500) for metric in metrics]
    assert together == alone and len(together) == 7


def test_a_proportion_has_wilsons_interval_unless_rows_come_in_groups() -> None:
    right = [1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0]
    assert estimate(EXACT_MATCH, right_rows(right)).method == "wilson"
    assert estimate(EXACT_MATCH, right_rows(right), method="bca", resamples=200).method == "bca"
    grouped = estimate(EXACT_MATCH, right_rows(right, groups=[i // 2 for i in range(12)]), resamples=200)
    assert grouped.method == "bca" and grouped.units == 6 and "6 groups" in grouped.note
    assert estimate(PREFERENCE_ACCURACY, preference_rows([1.0, 0.0, -1.0] * 9), resamples=200).method == "bca"


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_rows_say_nothing(n: int) -> None:
    found = estimate(MEAN, value_rows(np.arange(n)), resamples=200)
    assert f"Of {n} row{'s' if n > 1 else ''} alone the interval says nothing" in found.note
    assert math.isnan(found.low) == (n == 1)
    assert "says nothing" in estimate(ACCURACY, label_rows(["a"] * n, ["a"] * n)).note
    assert found.to_dict()["low"] is None or n == 2


def test_rows_that_are_all_alike_have_no_interval() -> None:
    found = estimate(F1_MACRO, label_rows([0, 1] * 20, [0, 1] * 20), resamples=200)
    assert found.value == 1 and math.isnan(found.low) and "same value" in found.note
    assert "no interval" in str(found)
    perfect = estimate(ACCURACY, label_rows([0, 1] * 20, [0, 1] * 20))
    assert 0.9 < perfect.low < 0.93 and perfect.high == 1  # of a proportion something can be said


def test_resamples_in_which_a_metric_is_undefined_are_counted() -> None:
    found = estimate(AUROC, score_rows([0] * 5 + [1] + [0] * 6, np.arange(12) / 12), resamples=1000)
    assert "% of the resamples it is undefined" in found.note
    share = float(found.note.split("In ")[1].split("%")[0])
    assert share == pytest.approx(100 * (11 / 12) ** 12, abs=6)


def test_interval_and_p_value_are_one_thing() -> None:
    rng = np.random.default_rng(0)
    for corrected in (True, False):
        own = Bootstrap(0.3, rng.gamma(3, 0.2, 9999) - 0.3, 40, 0.03 if corrected else 0.0, corrected)
        for null in (-0.2, 0.05, 0.9):
            p = own.p_value(null)
            low, high = own.interval(1 - p)
            assert min(abs(low - null), abs(high - null)) < 0.01, (corrected, null)


def test_bca_is_scipys_but_for_its_width() -> None:
    sample = np.random.default_rng(0).exponential(size=25)
    rows = value_rows(sample)
    acceleration = float(skewness(*left_out(evaluator([MEAN], rows, rows.units), rows.units))[0])
    away = sample - sample.mean()
    assert acceleration == pytest.approx((away**3).sum() / (6 * (away**2).sum() ** 1.5))
    theirs = scipy.stats.bootstrap((sample,), np.mean, method="BCa", n_resamples=4000, rng=np.random.default_rng(0))
    # Of so many units nothing is widened.
    own = Bootstrap(float(sample.mean()), theirs.bootstrap_distribution, 10**9, acceleration)
    assert own.interval(0.95) == pytest.approx(theirs.confidence_interval, rel=1e-3)
    plain = Bootstrap(float(sample.mean()), theirs.bootstrap_distribution, 10**9, corrected=False)
    assert plain.interval(0.95) == pytest.approx(np.quantile(theirs.bootstrap_distribution, [0.025, 0.975]), rel=1e-6)
    # Of two the normal quantile 1.96 is Student's 12.7 times √2: all resamples lie inside.
    two = Bootstrap(float(sample.mean()), theirs.bootstrap_distribution, 2, corrected=False)
    assert two.interval(0.95) == (own.values.min(), own.values.max())


def test_settings_out_of_range_are_refused() -> None:
    rows = value_rows([1.0, 2.0])
    for wrong in ({"level": 95}, {"resamples": 5}, {"method": "jackknife"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            estimate(MEAN, rows, **wrong)  # type: ignore[arg-type]
