"""Bars from 0, one below the other: speed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from lora.evaluation.grid import Number
from lora.evaluation.html.charts.svg import LETTER, WIDTH, Scale, drawing, element, figure_label, label, tone

ROW, NAMES, VALUES = 26.0, 132.0, 72.0
Bar = tuple[str, Number, int]  # name, value, place of its colour


def bar_chart(key: str, title: str, bars: Sequence[Bar]) -> Markup | None:
    """Bars with their values; None where there is no value above 0."""
    bars = [bar for bar in bars if isinstance(bar[1].value, (int, float)) and math.isfinite(bar[1].value)]
    longest = max((float(number.value or 0) for _, number, _ in bars), default=0.0)
    if longest <= 0:
        return None
    to = Scale(0.0, longest, NAMES, WIDTH - VALUES)
    parts = []
    for row, (name, number, place) in enumerate(bars):
        y = row * ROW + 4
        parts.append(label(8, y + 14, name, class_="key", most=int((NAMES - 14) / LETTER)))
        end = to(float(number.value or 0))
        parts.append(
            element("rect", x=NAMES, y=y + 2, width=max(end - NAMES, 1), height=16, class_=f"bar {tone(place)}")
        )
        parts.append(figure_label(end + 6, y + 14, number, class_="value"))
    told = "; ".join(f"{name} {number.text}" for name, number, _ in bars)
    return drawing(key, title, f"{told}.", len(bars) * ROW + 6, *parts)
