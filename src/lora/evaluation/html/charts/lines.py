"""Lines over an axis: loss and metrics over steps, risk over coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lora.evaluation.html.charts.svg import (
    WIDTH,
    Scale,
    dash,
    drawing,
    element,
    horizontal_axis,
    legend,
    scale,
    spans_decades,
    tick_text,
    tone,
    vertical_axis,
)
from lora.evaluation.lenient import is_number

LEFT, RIGHT, PLOT = 52.0, 10.0, 190.0
MARKED = 40  # points up to which each has a mark


@dataclass(frozen=True)
class Line:
    """Values ``ys`` at ``xs``; ``place``: of its colour, see `svg.tone`; ``best``: the place that is ringed."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    place: int = 1
    marks: bool = False
    best: int | None = None

    @property
    def points(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if is_number(x) and is_number(y)]


def line_chart(
    key: str,
    title: str,
    lines: Sequence[Line],
    *,
    x_title: str,
    zero: bool = False,
    log: bool | None = None,
    x_log: bool = False,
) -> Markup | None:
    """Lines over one axis; None where no line has a point.

    Args:
        key: the chart's own on the page.
        log: whether the vertical axis is logarithmic; None: where values span more than a factor of 50.
        zero: the vertical axis begins at 0.
        x_log: the horizontal axis is logarithmic; all ``xs`` are above 0.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    ys = [y for line in lines for _, y in line.points]
    xs = [x for line in lines for x, _ in line.points]
    log = spans_decades(ys) if log is None else log
    names, below = legend([line.name for line in lines], [line.place for line in lines])
    top = below + 14
    first, last = min(xs), max(xs)
    if first == last and not x_log:
        to_x = scale(xs, LEFT, WIDTH - RIGHT)
    else:
        room = 3.0 if first == last else 1.0  # a single one stands in the middle of a decade
        to_x = Scale(first / room, last * room, LEFT, WIDTH - RIGHT, x_log)
    to_y = scale(ys, top + PLOT, top, log=log, zero=zero and not log)
    parts = [names, vertical_axis(to_y, LEFT, WIDTH - RIGHT), horizontal_axis(to_x, top + PLOT, x_title)]
    for line in lines:
        path = " ".join(f"{to_x(x):.2f},{to_y(y):.2f}" for x, y in line.points)
        style = f"{tone(line.place)} {dash(line.place) if len(lines) > 1 else ''}".strip()
        parts.append(element("polyline", points=path, class_=f"line {style}"))
        if (line.marks and len(line.points) <= MARKED) or len(line.points) == 1:
            parts += [element("circle", cx=to_x(x), cy=to_y(y), r=3, class_=f"dot {style}") for x, y in line.points]
        if line.best is not None and is_number(line.ys[line.best]):
            at = (to_x(line.xs[line.best]), to_y(line.ys[line.best]))
            parts.append(element("circle", cx=at[0], cy=at[1], r=6.5, class_=f"ring {style}"))
    told = "; ".join(
        f"{line.name}: from {tick_text(line.points[0][1])} to {tick_text(line.points[-1][1])}" for line in lines
    )
    description = f"Over {x_title}: {told}.{' The vertical axis is logarithmic.' if log else ''}"
    return drawing(key, title, description, top + PLOT + 38, *parts)
