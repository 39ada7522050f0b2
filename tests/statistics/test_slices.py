"""Parts of the rows: the weak one is found, and chance among many is not taken for one."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from lora.errors import ConfigError, DataError
from lora.statistics.classes import ACCURACY, F1_MACRO, label_rows
from lora.statistics.means import LOSS, MEAN, mean, token_rows, value_rows
from lora.statistics.slices import by_slice, slices_of, two_proportions


def sample(seed: int, weak: float = 0.85, n: int = 400) -> tuple[object, dict[str, list[object]]]:
    rng = np.random.default_rng(seed)
    true, source = rng.integers(0, 3, n), rng.integers(0, 8, n)
    right = np.where(source == 5, weak, 0.85)
    said = np.where(rng.random(n) < right, true, (true + 1) % 3)
    columns = {"source": [f"s{value}" for value in source], "length": (rng.gamma(2, 50, n)).tolist()}
    return label_rows(true, said), columns


@pytest.mark.parametrize("metric", [ACCURACY, F1_MACRO])
def test_the_weak_slice_is_named(metric: object) -> None:
    rows, columns = sample(0, weak=0.4)
    found = by_slice(metric, rows, columns, resamples=2000)  # type: ignore[arg-type]
    weakest = found.weakest
    assert weakest is not None and (weakest.column, weakest.name) == ("source", "s5")
    assert found.slices[0] is weakest and weakest.p_corrected > weakest.p_value and weakest.n > 20
    assert weakest.estimate.high < weakest.rest
    assert len(found.slices) == 8 + 4 and not found.notes
    assert json.loads(json.dumps(found.to_dict()))["weakest"] == {"column": "source", "name": "s5"}
    values = [part.estimate.value for part in found.slices]
    assert values == sorted(values)


def test_chance_alone_rarely_names_one() -> None:
    named = sum(by_slice(ACCURACY, *sample(seed), correction="holm").weakest is not None for seed in range(100))  # type: ignore[arg-type]
    loose = sum(by_slice(ACCURACY, *sample(seed), correction="none").weakest is not None for seed in range(30))  # type: ignore[arg-type]
    assert named <= 10 and loose >= 4  # without correction about every fourth or third sample would have one


def test_lower_is_better_where_it_is() -> None:
    loss = np.r_[np.full(30, 3.0), np.full(60, 1.0)] + np.random.default_rng(0).normal(size=90) / 5
    found = by_slice(LOSS, token_rows(loss, np.ones(90)), {"kind": ["hard"] * 30 + ["soft"] * 60}, resamples=500)
    assert found.weakest is not None and found.weakest.name == "hard" and found.slices[-1].verdict == "better"


def test_small_slices_are_named_in_notes_alone() -> None:
    rows = value_rows(np.random.default_rng(0).normal(size=100))
    found = by_slice(mean("score"), rows, {"kind": ["big"] * 60 + ["also"] * 35 + ["tiny"] * 5}, resamples=300)
    assert {part.name for part in found.slices} == {"big", "also"}
    assert found.notes == ["kind: 1 of 3 slices (5 rows) left out, as they or all other rows are fewer than 20."]
    alone = by_slice(mean("score"), rows, {"kind": ["all"] * 100}, resamples=300)
    assert alone.slices == [] and alone.weakest is None and "1 of 1" in alone.notes[0]
    assert by_slice(mean("score"), value_rows([]), {"kind": []}).slices == []


def test_numbers_are_cut_at_quantiles_and_names_are_not() -> None:
    parts = slices_of(list(range(100)), 4)
    assert [len(places) for _, places in parts] == [25] * 4 and parts[0][0] == "0 to below 24.75"
    assert parts[-1][0] == "74.25 to 99"
    assert [name for name, _ in slices_of([1, 2, 2, None, math.nan])] == ["1", "2"]
    assert [name for name, _ in slices_of([True, False])] == ["False", "True"]
    assert [name for name, _ in slices_of(["b", None, "a"])] == ["a", "b"]
    heavy = slices_of([0] * 90 + list(range(1, 31)), 4)
    assert sum(len(places) for _, places in heavy) == 120 and len(heavy) < 4
    assert slices_of([]) == [] and slices_of([None]) == []


def test_two_proportions_by_hand() -> None:
    table = np.asarray([[30, 20], [60, 15]])
    chi = chi2_contingency(table, correction=False).statistic * 124 / 125
    assert two_proportions(30, 50, 60, 75) == pytest.approx(math.erfc(math.sqrt(chi / 2)))
    assert two_proportions(5, 5, 9, 9) == 1


def test_bad_input_is_refused() -> None:
    rows = value_rows([1.0, 2.0])
    with pytest.raises(DataError, match="'kind' has 1 values for 2 rows"):
        by_slice(mean("score"), rows, {"kind": ["a"]})
    with pytest.raises(ConfigError, match="neither way"):
        by_slice(MEAN, rows, {})
    with pytest.raises(ConfigError, match="smallest"):
        by_slice(mean("score"), rows, {}, smallest=1)
