"""Values with their intervals, one below the other: metrics of base and adapters, parts of the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lora.evaluation.grid import Number
from lora.evaluation.html.charts.svg import (
    LETTER,
    WIDTH,
    Scale,
    drawing,
    element,
    figure_label,
    horizontal_axis,
    label,
    located,
    scale,
    tone,
)

ROW, HEAD = 22.0, 24.0
NAMES, VALUES = (90.0, 212.0), 62.0  # width of the names at the left, least and most, and of the values at the right


@dataclass(frozen=True)
class Dot:
    """A value with the ends of its interval, where there are any, and ``beside``, a second one to compare."""

    name: str
    value: Number
    low: Number | None = None
    high: Number | None = None
    place: int = 1
    beside: Number | None = None

    @property
    def numbers(self) -> list[float]:
        found = [each.value for each in (self.value, self.low, self.high, self.beside) if each is not None]
        return [float(value) for value in found if isinstance(value, (int, float)) and math.isfinite(value)]


def dot_chart(
    key: str,
    title: str,
    groups: Sequence[tuple[str, Sequence[Dot]]],
    *,
    x_title: str = "",
    unit: bool = False,
    zero: bool = False,
) -> Markup | None:
    """Groups of dots under a heading each; None where there is no value.

    Args:
        unit: the axis goes from 0 to 1.
        zero: the axis holds 0, for what is a distance from it.
    """
    groups = [(heading, [dot for dot in dots if dot.value.value is not None]) for heading, dots in groups]
    groups = [(heading, dots) for heading, dots in groups if dots]
    numbers = [number for _, dots in groups for dot in dots for number in dot.numbers]
    if not numbers:
        return None
    longest = max(len(dot.name) for _, dots in groups for dot in dots)
    left = min(max(NAMES[0], longest * LETTER + 18), NAMES[1])
    ends = [*numbers, 0.0] if zero else numbers
    to = Scale(0.0, 1.0, left, WIDTH - VALUES) if unit else scale(ends, left, WIDTH - VALUES)
    height = sum((HEAD if heading else 0) + ROW * len(dots) for heading, dots in groups) + 6
    parts = [horizontal_axis(to, height, x_title, above=0, most=4)]
    y, told = 4.0, []
    for heading, dots in groups:
        if heading:
            parts.append(label(0, y + 16, heading, class_="heading", most=int(WIDTH / LETTER)))
            y += HEAD
        for dot in dots:
            parts.append(_row(dot, y + ROW / 2, to))
            told.append(" ".join(filter(None, [heading, dot.name, dot.value.text, _ends(dot)])))
            y += ROW
    return drawing(key, title, "; ".join(told) + ".", height + (38 if x_title else 22), *parts)


def _row(dot: Dot, y: float, to: Scale) -> Markup:
    x = to(float(dot.value.value or 0))
    parts = [label(8, y + 4, dot.name, class_="key", most=int((to.start - 14) / LETTER))]
    if dot.low is not None and dot.high is not None and dot.low.value is not None and dot.high.value is not None:
        low, high = to(dot.low.value), to(dot.high.value)
        parts.append(element("line", x1=low, x2=high, y1=y, y2=y, class_=f"whisker {tone(dot.place)}"))
        for end, number in ((low, dot.low), (high, dot.high)):
            parts.append(
                element(
                    "line", x1=end, x2=end, y1=y - 4, y2=y + 4, class_=f"whisker {tone(dot.place)}", **located(number)
                )
            )
    if dot.beside is not None and dot.beside.value is not None:
        at = to(dot.beside.value)
        parts.append(element("line", x1=at, x2=at, y1=y - 8, y2=y + 8, class_="beside", **located(dot.beside)))
    # The base's mark is a square: shape tells it apart where colour cannot.
    if dot.place == 0:
        parts.append(element("rect", x=x - 4, y=y - 4, width=8, height=8, class_="dot tone0"))
    else:
        parts.append(element("circle", cx=x, cy=y, r=4.5, class_=f"dot {tone(dot.place)}"))
    parts.append(figure_label(WIDTH, y + 4, dot.value, anchor="end", class_="value"))
    return Markup("").join(parts)


def _ends(dot: Dot) -> str:
    return f"({dot.low.text} to {dot.high.text})" if dot.low is not None and dot.high is not None else ""
