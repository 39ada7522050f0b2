"""Factors between times: what is a difference, and what chance does."""

from __future__ import annotations

import numpy as np
import pytest

from lora.evaluation.factors import FEWEST_PAIRS, factor, median_ratio, p95_ratio, rate_ratio
from lora.evaluation.grid import pieces, style
from lora.evaluation.result import Evaluation
from lora.evaluation.tables import comparison

STATISTICS = [median_ratio, p95_ratio, rate_ratio]


def test_values_by_hand() -> None:
    base, tuned = [1.0, 2.0, 4.0], [2.0, 3.0, 20.0]
    assert factor(tuned, base, median_ratio)["value"] == 2.0  # of 2, 1.5 and 5
    assert factor(tuned, base, p95_ratio)["value"] == pytest.approx((3 + 0.9 * 17) / (2 + 0.9 * 2))
    assert factor(tuned, base, rate_ratio)["value"] == 7 / 25


def test_rows_of_other_length_and_a_drifting_machine_cancel_out() -> None:
    draw = np.random.default_rng(1)
    base = draw.uniform(1, 50, 64) * np.linspace(1, 4, 64)
    found = factor(1.1 * base * draw.normal(1, 0.02, 64), base, median_ratio)
    assert 1.08 < found["low"] < found["value"] < found["high"] < 1.12


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_interval_holds_1_about_as_often_as_it_says_where_nothing_differs(statistic) -> None:
    draw = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        base, tuned = draw.lognormal(0, 0.3, (2, 64))
        found = factor(tuned, base, statistic)
        held += found["low"] <= 1 <= found["high"]
    assert held >= 180  # 95 % of 200 is 190; three deviations are 9


@pytest.mark.parametrize("statistic", STATISTICS)
def test_too_few_pairs_give_no_interval(statistic) -> None:
    pairs = [1.0] * FEWEST_PAIRS
    assert factor(pairs, pairs, statistic) == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert factor(pairs[1:], pairs[1:], statistic) == {"value": 1.0, "low": None, "high": None}


def speeds(low: float | None, high: float | None, value: float = 1.25) -> Evaluation:
    """An evaluation whose adapter has this factor to the base in everything."""
    times = {"latency_p50_ms": 2.0, "latency_p95_ms": 3.0, "rows_per_second": 10.0, "tokens_per_second": 100.0}
    factors = {key: {"value": value, "low": low, "high": high} for key in times}
    metrics = {"base": {"loss": 1.0}, "tuned": {"loss": 1.0}}
    return Evaluation(metrics, 8, speed={"base": times, "tuned": {**times, "to_base": factors}})


@pytest.mark.parametrize(
    ("low", "high", "latency", "rate"),
    [(1.2, 1.3, "red", "green"), (0.7, 0.8, "green", "red"), (0.9, 1.6, "", ""), (None, None, "", "")],
)
def test_only_a_difference_has_a_colour(low, high, latency, rate) -> None:
    styles = {row[0]: style(pieces(row[-1])[0]) for row in comparison(speeds(low, high)).rows}
    assert styles["latency p50, ms"] == styles["latency p95, ms"] == latency
    assert styles["rows per second"] == styles["tokens per second"] == rate


def test_how_it_is_written() -> None:
    assert "| latency p50, ms | 2.00 | 2.00 | ×1.25 (1.20–1.30) |" in speeds(1.2, 1.3).to_markdown()
    assert "one that holds 1 shows no difference" in speeds(0.9, 1.3).to_markdown()
    assert "| latency p50, ms | 2.00 | 2.00 | ×1.25 |" in speeds(None, None).to_markdown()
    several = speeds(1.2, 1.3)
    several.metrics["other"], several.speed["other"] = several.metrics["tuned"], several.speed["tuned"]
    assert "| 2.00, ×1.25 (1.20–1.30) |" in several.to_markdown()
    alone = Evaluation({"tuned": {"loss": 1.0}}, 8, speed={"tuned": several.speed["base"]})
    assert "×" not in alone.to_markdown()
