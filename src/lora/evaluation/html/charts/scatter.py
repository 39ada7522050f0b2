"""Values with intervals over what they cost, and the Pareto front among them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lora.evaluation.grid import Number
from lora.evaluation.html.charts.svg import (
    LETTER,
    WIDTH,
    Attribute,
    Scale,
    drawing,
    element,
    horizontal_axis,
    label,
    located,
    scale,
    spans_decades,
    tone,
    vertical_axis,
)
from lora.evaluation.lenient import is_number

LEFT, RIGHT, TOP, PLOT = 52.0, 14.0, 24.0, 216.0
BEYOND = 14.0  # height of the place for points beyond the vertical axis
ZERO = 26.0  # width of the place for zeros, which no logarithmic axis has
DECADE = 10.0  # from this factor between costs on their axis is logarithmic
LONGEST = 24  # letters of a name at a point
NAMED = 30  # points up to which names are tried
SHAPES = 4


@dataclass(frozen=True)
class Point:
    """A value ``y`` with the ends of its interval at the cost ``x``.

    Attributes:
        shape: 0 square, 1 circle, 2 diamond, 3 triangle; so that colour is not all that tells kinds apart.
        front: whether it lies on the front.

    ``at`` is where it stands, in the units in which the numbers are written.
    """

    name: str
    x: Number
    y: Number
    low: Number | None = None
    high: Number | None = None
    place: int = 1
    shape: int = 1
    front: bool = False

    @property
    def at(self) -> tuple[float, float]:
        return float(self.x.value or 0) / self.x.scale, float(self.y.value or 0)

    @property
    def ends(self) -> list[Number]:
        both = [end for end in (self.low, self.high) if end is not None and is_number(end.value)]
        return both if len(both) == 2 else []


Box = tuple[float, float, float, float]  # left, top, right, bottom


def scatter(
    key: str,
    title: str,
    points: Sequence[Point],
    *,
    x_title: str,
    y_title: str,
    log: bool | None = None,
    within: tuple[float, float] | None = None,
) -> Markup | None:
    """Points, a name at each where there is room; None where none has both numbers.

    Args:
        log: whether the horizontal axis is logarithmic; None: where costs differ by more than a factor of 10. Costs of
            0 then stand at its left, apart.
        within: ends of the vertical axis; None: it holds all. Points beyond stand at its end, and say where they are.
    """
    points = [its for its in points if is_number(its.x.value) and is_number(its.y.value)]
    if not points:
        return None
    xs = [its.at[0] for its in points]
    above = [x for x in xs if x > 0]
    log = (spans_decades(above, DECADE) if log is None else log) and bool(above) and min(xs) >= 0
    zeros = log and len(above) < len(xs)
    left, floor = LEFT + (ZERO if zeros else 6), TOP + PLOT
    to_x = scale(above if log else xs, left + 8, WIDTH - RIGHT - 8, log=log)
    ends = [float(end.value or 0) for its in points for end in its.ends]
    if within is None:
        to_y = scale([*(its.at[1] for its in points), *ends], floor, TOP)
    else:  # room for those beyond
        to_y = scale(within, floor - BEYOND, TOP + BEYOND)

    def across(x: float) -> float:
        return LEFT + ZERO / 2 if zeros and x <= 0 else to_x(x)

    parts = [vertical_axis(to_y, LEFT, WIDTH - RIGHT), horizontal_axis(to_x, floor, x_title, above=TOP)]
    parts.append(label(4, 12, y_title, class_="axis"))
    if zeros:
        parts.append(label(across(0), floor + 15, "0", anchor="middle", class_="tick"))
        parts.append(element("line", x1=left, x2=left, y1=TOP, y2=floor, class_="diagonal"))
    front = sorted((its for its in points if its.front), key=lambda its: its.at[0])
    stairs = _stairs([(across(its.at[0]), to_y(its.at[1])) for its in front])
    if len(front) > 1:
        path = " ".join(f"{x:.2f},{y:.2f}" for x, y in stairs)
        parts.append(element("polyline", points=path, class_="front"))
    parts += [_mark(its, across(its.at[0]), to_y) for its in points]
    lines: list[Box] = [
        (min(x, a) - 1, min(y, b) - 1, max(x, a) + 1, max(y, b) + 1) for (x, y), (a, b) in itertools.pairwise(stairs)
    ]
    parts += _names(points, [(across(its.at[0]), to_y(its.at[1])) for its in points], to_y, floor, lines)
    told = "; ".join(
        f"{its.name}: {its.y.text}{_interval(its)} at {its.x.text}{', on the front' if its.front else ''}"
        for its in points
    )
    description = f"{y_title} over {x_title}: {told}.{' The horizontal axis is logarithmic.' if log else ''}"
    return drawing(key, title, description, floor + 38, *parts)


def _stairs(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Along what the front reaches: a value holds until the next cost that has a better one."""
    out = list(places[:1])
    for (_, before), (x, y) in itertools.pairwise(places):
        out += [(x, before), (x, y)]
    return out


def _interval(its: Point) -> str:
    return " ({} to {})".format(*(end.text for end in its.ends)) if its.ends else ""


def _mark(its: Point, x: float, to_y: Scale) -> Markup:
    y, style = to_y(its.at[1]), tone(its.place)
    parts = [element("title", f"{its.name}: {its.y.text}{_interval(its)} at {its.x.text}")]
    if its.ends:
        low, high = (to_y(float(end.value or 0)) for end in its.ends)
        parts.append(element("line", x1=x, x2=x, y1=low, y2=high, class_=f"whisker {style}"))
        for y_end, end in zip((low, high), its.ends, strict=True):
            parts.append(element("line", x1=x - 4, x2=x + 4, y1=y_end, y2=y_end, class_=f"whisker {style}",
                                 **located(end)))  # fmt: skip
    if its.front:
        parts.append(element("circle", cx=x, cy=y, r=9, class_=f"ring {style}"))
    parts.append(_shape(its.shape, x, y, class_=f"dot {style}", **located(its.y)))
    return element("g", *parts, **located(its.x))


def _shape(shape: int, x: float, y: float, **attributes: Attribute) -> Markup:
    """About equal areas: a circle's of radius 4.5."""
    if shape == 1:
        return element("circle", cx=x, cy=y, r=4.5, **attributes)
    corners = {
        0: [(-4, -4), (4, -4), (4, 4), (-4, 4)], 2: [(0, -6), (6, 0), (0, 6), (-6, 0)], 3: [(0, -6), (6, 5), (-6, 5)],
    }[shape % SHAPES]  # fmt: skip
    return element("polygon", points=" ".join(f"{x + a:.2f},{y + b:.2f}" for a, b in corners), **attributes)


def _names(
    points: Sequence[Point], places: Sequence[tuple[float, float]], to_y: Scale, floor: float, lines: Sequence[Box]
) -> list[Markup]:  # fmt: skip
    """Names beside, above or below their points, clear of other points, of bars and of one another.

    Those on the front choose first. One without room has none here: it is in the tooltip and in the table.
    """
    if len(points) > NAMED:
        return []
    dots: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    bars: list[Box] = [*lines]
    for its, (x, _) in zip(points, places, strict=True):
        if its.ends:
            low, high = (to_y(float(end.value or 0)) for end in its.ends)
            bars.append((x - 2, high, x + 2, low))
    taken, out = list[Box](), list[Markup]()
    for place in sorted(range(len(points)), key=lambda place: not points[place].front):
        x, y = places[place]
        name, most = points[place].name, LONGEST
        if not to_y.low <= points[place].at[1] <= to_y.high:
            name = f"{name[:LONGEST]} {points[place].y.text} {'↓' if points[place].at[1] < to_y.low else '↑'}"
            most = len(name)
        wide = LETTER * min(len(name), most)
        offers: list[tuple[float, float, str]] = []
        for down in (0, -12, 12, -22, 22):
            offers += [(x + 11, y + 4 + down, "start"), (x - 11, y + 4 + down, "end")]
        offers += [(x, y - 13, "middle"), (x, y + 21, "middle")]
        for obstacles in ([*dots, *bars], dots):
            for at, base, anchor in offers:
                start = at - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
                box = (start, base - 10, start + wide, base + 3)
                inside = start >= LEFT and box[2] <= WIDTH + 4 and box[1] >= TOP - 8 and base <= floor
                if inside and not any(_meet(box, other) for other in [*obstacles, *taken]):
                    taken.append(box)
                    out.append(label(at, base, name, anchor=anchor, class_="name", most=most))
                    break
            else:
                continue
            break
    return out


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
