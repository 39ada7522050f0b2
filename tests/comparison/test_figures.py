"""Figures of several runs together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora.comparison.figures import estimated
from lora.statistics.ranking import AUROC, score_rows


def test_sorting_many_rows_by_many_classes_gives_a_value_alone() -> None:
    """Ten thousand resamples of AUROC over 77 classes take minutes for each candidate."""
    rng = np.random.default_rng(0)

    def run(classes: int) -> dict[str, Any]:
        true = rng.integers(0, classes, 3000)
        scores = rng.normal(size=(3000, classes)) + 2 * np.eye(classes)[true]
        return {"auroc": (AUROC, score_rows(true, scores))}

    many, _ = estimated([run(77), run(77)], "auroc", 0)
    assert 0.8 < many["auroc"].value < 1 and math.isnan(many["auroc"].low) and "too many classes" in many["auroc"].note
    few, _ = estimated([run(3), run(3)], "auroc", 0)
    assert few["auroc"].low < few["auroc"].value < few["auroc"].high
