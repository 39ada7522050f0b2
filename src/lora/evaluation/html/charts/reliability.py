"""The reliability diagram: the share that is right against the confidence, and how many rows each bin has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lora.evaluation.html.charts.svg import Scale, drawing, element, horizontal_axis, label, tone, vertical_axis
from lora.evaluation.lenient import is_number

LEFT, TOP, SIDE, COUNTS, WIDE = 52.0, 10.0, 260.0, 44.0, 330.0


def reliability_diagram(key: str, title: str, bins: Sequence[Mapping[str, Any]], place: int = 1) -> Markup | None:
    """Dots at (mean confidence, share right) with the interval of the share, beside the diagonal; rows below as bars.

    A dot's area grows with its bin's rows. None where no bin has rows.
    """
    bins = [
        its for its in bins if all(is_number(its.get(name)) for name in ("n", "confidence", "right")) and its["n"] > 0
    ]
    if not bins:
        return None
    to_x, to_y = Scale(0, 1, LEFT, LEFT + SIDE), Scale(0, 1, TOP + SIDE, TOP)
    most = max(its["n"] for its in bins)
    floor = TOP + SIDE + 12 + COUNTS
    parts = [
        vertical_axis(to_y, LEFT, LEFT + SIDE),
        element("line", x1=to_x(0), y1=to_y(0), x2=to_x(1), y2=to_y(1), class_="diagonal"),
        horizontal_axis(to_x, floor, "confidence", above=TOP),
        label(LEFT + 6, TOP + 14, "share right", class_="axis"),
        label(LEFT - 6, TOP + SIDE + 20, f"{most:,}", anchor="end", class_="tick"),
        label(LEFT - 6, TOP + SIDE + 34, "rows", anchor="end", class_="axis"),
    ]
    told = []
    for its in bins:
        x, y = to_x(its["confidence"]), to_y(its["right"])
        height = COUNTS * its["n"] / most
        start, end = (its.get(name) for name in ("start", "end"))
        left, right = x - 4, x + 4
        if start is not None and end is not None:
            left, right = to_x(start), to_x(end)
        wide = max(right - left - 2, 1)
        parts.append(
            element("rect", x=left + 1, width=wide, y=floor - height, height=height, class_=f"count {tone(place)}")
        )
        if is_number(its.get("low")) and is_number(its.get("high")):
            parts.append(
                element("line", x1=x, x2=x, y1=to_y(its["low"]), y2=to_y(its["high"]), class_=f"whisker {tone(place)}")
            )
        parts.append(element("circle", cx=x, cy=y, r=3 + 4 * math.sqrt(its["n"] / most), class_=f"dot {tone(place)}"))
        told.append(f"confidence {its['confidence']:.2f}, right {its['right']:.2f} ({its['n']} rows)")
    return drawing(key, title, "; ".join(told) + ".", floor + 38, *parts, width=WIDE)
