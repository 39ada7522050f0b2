"""Means over the tokens of texts, each text weighing as much as it has tokens, with intervals over other such texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lora.statistics import Rows, SumMetric, estimates
from lora.statistics.metric import ratio

FEWEST_TEXTS = 6  # below this an interval is the range of the texts and looks surer than it is
TEXT_SUMS = "texts of the probe"  # rows of the statistics: sums over a text's tokens, and behind them their number


def _per_token(name: str, place: int, lowest: float, highest: float) -> SumMetric:
    """A sum over another: a text weighs as much as it has tokens."""
    return SumMetric(
        name, (TEXT_SUMS,), "There are no tokens.", None, lowest, highest,
        function=lambda sums: ratio(sums[..., place], sums[..., -1]),
    )  # fmt: skip


OF_TEXTS = [
    _per_token("loss_change", 0, -math.inf, math.inf),
    _per_token("kl", 1, 0.0, math.inf),
    _per_token("same_token", 2, 0.0, 1.0),
]
COSINE = _per_token("cosine", 0, -1.0, 1.0)


def estimated(
    metrics: Sequence[SumMetric], columns: Sequence[NDArray[np.float64]]
) -> tuple[dict[str, dict[str, float | None]], list[str]]:
    """Each of ``metrics`` of texts whose sums are ``columns`` (texts,), with its interval; and sentences about them."""
    cells = np.column_stack(columns)
    if not np.isfinite(cells).all():  # an adapter that has diverged: nothing can be drawn of it
        with np.errstate(all="ignore"):
            values = [float(metric.function(cells.sum(axis=0))) for metric in metrics]
        return {m.name: {"value": v, "low": None, "high": None} for m, v in zip(metrics, values, strict=True)}, []
    out, said = dict[str, dict[str, float | None]](), list[str]()
    for found in estimates(metrics, replace(Rows.of(TEXT_SUMS, cells), unit="text")):
        ends = [None if found.units < FEWEST_TEXTS or math.isnan(end) else end for end in (found.low, found.high)]
        out[found.metric] = {"value": found.value, "low": ends[0], "high": ends[1]}
        if found.note and ends[0] is not None:
            said.append(found.note)
    return out, said
