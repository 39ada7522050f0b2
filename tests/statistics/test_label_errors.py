"""Confident learning: by hand, and on labels of which some were changed."""

from __future__ import annotations

import numpy as np
import pytest

from lora.errors import DataError
from lora.statistics.label_errors import confident_disagreement, thresholds


def test_by_hand() -> None:
    p = [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.05, 0.95]]
    given = [0, 0, 1, 1, 0]
    assert thresholds(p, given) == pytest.approx([(0.9 + 0.7 + 0.05) / 3, 0.7])
    (found,) = confident_disagreement(p, given)
    assert (found.row, found.given, found.suggested) == (4, 0, 1) and found.margin == pytest.approx(0.9)


def test_a_class_that_the_model_is_always_sure_of_does_not_accuse_all_others() -> None:
    """Plain disagreement accuses row 3; its threshold, the mean confidence of its class, says otherwise."""
    p = [[0.99, 0.01], [0.98, 0.02], [0.97, 0.03], [0.6, 0.4], [0.3, 0.7]]
    assert confident_disagreement(p, [0, 0, 0, 1, 1]) == []


def test_classes_without_rows_suggest_nothing() -> None:
    p = [[0.1, 0.0, 0.9], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]
    assert np.isnan(thresholds(p, [0, 0, 1])[2])
    assert confident_disagreement(p, [0, 0, 1]) == []


def test_changed_labels_are_found() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 800)
    scores = rng.normal(size=(800, 4)) + 4 * np.eye(4)[true]
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    given = true.copy()
    wrong = rng.choice(800, 40, replace=False)
    given[wrong] = (true[wrong] + rng.integers(1, 4, 40)) % 4
    found = confident_disagreement(p, given)
    rows = [its.row for its in found]
    assert len(set(rows) & set(wrong.tolist())) >= 32
    assert len(set(rows[:30]) & set(wrong.tolist())) >= 29, "those of the largest margin first"
    assert [its.margin for its in found] == sorted((its.margin for its in found), reverse=True)
    assert np.mean([its.suggested == true[its.row] for its in found if its.row in set(wrong.tolist())]) > 0.9


def test_what_is_refused() -> None:
    for p, given, said in (
        ([[0.5, 0.5]], [2], "none of the 2 classes"),
        ([[0.5, 0.5]], [0, 1], "beside labels"),
        ([[np.nan, 0.5]], [0], "no finite number"),
    ):
        with pytest.raises(DataError, match=said):
            confident_disagreement(p, given)
