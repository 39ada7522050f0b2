"""Charts: where marks stand, what axes say, and that nothing to draw is None."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from lora.evaluation.grid import Number
from lora.evaluation.html.charts.bars import bar_chart
from lora.evaluation.html.charts.dots import Dot, dot_chart
from lora.evaluation.html.charts.heat import heat_map
from lora.evaluation.html.charts.lines import Line, line_chart
from lora.evaluation.html.charts.matrix import matrix_chart
from lora.evaluation.html.charts.reliability import reliability_diagram
from lora.evaluation.html.charts.scatter import Point, scatter
from lora.evaluation.html.charts.svg import Scale, element, round_ticks, scale, spans_decades, tick_text, tone


def drawn(svg: Markup | None) -> ElementTree.Element:
    """The chart as XML, which every chart must be."""
    assert svg is not None
    return ElementTree.fromstring(str(svg))


def of(svg: ElementTree.Element, tag: str, word: str) -> list[ElementTree.Element]:
    return [each for each in svg.iter(tag) if word in each.get("class", "").split()]


def figure(value: float | None, path: str = "/x") -> Number:
    return Number("–" if value is None else f"{value:.2f}", value, path)


def places(axis: ElementTree.Element, tick: str, side: str) -> float:
    return next(float(each.get(side, "")) for each in of(axis, "text", "tick") if each.text == tick)


def test_lines_stand_where_their_axes_say() -> None:
    svg = drawn(line_chart("k", "Loss", [Line("training", [0, 50, 100], [2.0, 1.0, 0.0], 0)], x_title="step"))
    points = [tuple(map(float, point.split(","))) for point in of(svg, "polyline", "line")[0].get("points", "").split()]
    assert len(points) == 3
    assert points[1][0] == pytest.approx(places(svg, "40", "x") + (places(svg, "60", "x") - places(svg, "40", "x")) / 2)
    for (_, y), tick in zip(points, ("2", "1", "0"), strict=True):
        assert y == pytest.approx(places(svg, tick, "y") - 4, abs=0.02)  # a tick's text hangs 4 below its line
    assert svg.findtext("desc") == "Over step: training: from 2 to 0."


def test_a_logarithmic_axis_where_values_span_decades() -> None:
    line = Line("training", [1, 2, 3], [1000.0, 10.0, 0.1], 0)
    svg = drawn(line_chart("k", "Loss", [line], x_title="step"))
    ys = [float(point.split(",")[1]) for point in of(svg, "polyline", "line")[0].get("points", "").split()]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.02)  # equal factors, equal distances
    assert "logarithmic" in (svg.findtext("desc") or "")
    assert not spans_decades([0.0, 100.0]) and not spans_decades([1.0, 49.0]) and spans_decades([1.0, 51.0])


def test_what_is_undefined_is_left_out_of_a_line() -> None:
    line = Line("validation", [1, 2, math.nan, 4], [0.5, None, 0.7, math.inf], 1, True, 0)  # type: ignore[list-item]
    svg = drawn(line_chart("k", "F1", [line], x_title="step"))
    assert len(of(svg, "circle", "dot")) == 1 and len(of(svg, "circle", "ring")) == 1
    assert line_chart("k", "F1", [Line("validation", [1], [math.nan])], x_title="step") is None
    assert line_chart("k", "F1", [], x_title="step") is None


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-3.0, -3.0], [1e-30, 1e30], [1e300, -1e300]])
def test_axes_of_odd_values_are_finite(values: list[float]) -> None:
    svg = drawn(line_chart("k", "x", [Line("a", list(range(len(values))), values)], x_title="step"))
    numbers = re.findall(r"-?\d+(?:\.\d+)?", " ".join(each.get("points", "") for each in svg.iter("polyline")))
    assert numbers and all(-1 <= float(number) <= 1000 for number in numbers)
    assert "nan" not in ElementTree.tostring(svg, "unicode").lower()


def test_round_ticks() -> None:
    assert round_ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert round_ticks(3, 880) == [200, 400, 600, 800]
    assert round_ticks(-0.13, 0.11, 3) == pytest.approx([-0.1, 0, 0.1])
    assert Scale(0.09, 1100, 0, 1, log=True).ticks() == pytest.approx([0.1, 1, 10, 100, 1000])
    assert [tick_text(value) for value in (0.2, 0, 1500, 20_000, 3e-5, 2e9)] == [
        "0.2",
        "0",
        "1,500",
        "20k",
        "3e-5",
        "2e9",
    ]
    assert [tone(place) for place in (0, 1, 6, 7)] == ["tone0", "tone1", "tone6", "tone1"]  # the base's is its alone
    assert scale([2.0, 4.0], 0, 100, zero=True).low == 0


def test_dots_with_their_intervals() -> None:
    dots = [Dot("base", figure(0.2), place=0), Dot("tuned", figure(0.8, "/v"), figure(0.7, "/l"), figure(0.9, "/h"), 1)]
    svg = drawn(dot_chart("k", "Metrics", [("F1", dots), ("none", [Dot("base", figure(None))])], unit=True))
    zero, one = places(svg, "0", "x"), places(svg, "1", "x")
    dot, whisker = of(svg, "circle", "dot")[0], of(svg, "line", "whisker")[0]
    assert float(dot.get("cx", "")) == pytest.approx(zero + 0.8 * (one - zero), abs=0.02)
    ends = [float(whisker.get(side, "")) for side in ("x1", "x2")]
    assert ends == pytest.approx([zero + share * (one - zero) for share in (0.7, 0.9)], abs=0.02)
    assert len(of(svg, "rect", "tone0")) == 1  # the base's mark has another shape
    assert {each.get("data-path") for each in svg.iter() if each.get("data-path")} == {"/x", "/v", "/l", "/h"}
    assert "none" not in [each.text for each in of(svg, "text", "heading")]
    assert svg.findtext("desc") == "F1 base 0.20; F1 tuned 0.80 (0.70 to 0.90)."
    assert dot_chart("k", "Metrics", [("F1", [Dot("base", figure(None))])]) is None
    distance = [("", [Dot("tuned", figure(0.03), figure(0.029), figure(0.031))])]
    assert "0" not in [each.text for each in of(drawn(dot_chart("k", "KL", distance)), "text", "tick")]
    assert places(drawn(dot_chart("k", "KL", distance, zero=True)), "0", "x") > 0


def test_bars_are_as_long_as_their_values() -> None:
    svg = drawn(bar_chart("k", "ms", [("base", figure(10), 0), ("tuned", figure(5), 1), ("none", figure(None), 2)]))
    wide = [float(each.get("width", "")) for each in of(svg, "rect", "bar")]
    assert len(wide) == 2 and wide[0] == pytest.approx(2 * wide[1])
    assert (
        bar_chart("k", "ms", [("base", figure(None), 0)]) is None
        and bar_chart("k", "ms", [("a", figure(0), 0)]) is None
    )


def test_reliability() -> None:
    bins = [
        {"start": 0.0, "end": 0.5, "n": 10, "confidence": 0.25, "right": 0.5, "low": 0.2, "high": 0.8},
        {"start": 0.5, "end": 1.0, "n": 40, "confidence": 0.75, "right": 0.75, "low": None, "high": None},
        {"start": 0.2, "end": 0.3, "n": 0, "confidence": None, "right": None, "low": None, "high": None},
    ]
    svg = drawn(reliability_diagram("k", "Reliability", bins))
    dots, diagonal = of(svg, "circle", "dot"), of(svg, "line", "diagonal")[0]
    x1, y1, x2, y2 = (float(diagonal.get(side, "")) for side in ("x1", "y1", "x2", "y2"))
    assert len(dots) == 2 and len(of(svg, "line", "whisker")) == 1
    on = [(float(dot.get("cx", "")) - x1) / (x2 - x1) - (float(dot.get("cy", "")) - y1) / (y2 - y1) for dot in dots]
    assert on == pytest.approx([-0.25, 0], abs=1e-3)  # half the rows right of 25 % is above the diagonal
    heights = [float(each.get("height", "")) for each in of(svg, "rect", "count")]
    assert heights[1] == pytest.approx(4 * heights[0])
    assert reliability_diagram("k", "Reliability", bins[2:]) is None


def test_matrix() -> None:
    counts = [[8, 2], [0, 5]]
    cells = [[Number(str(count), count, f"/m/{i}/{j}") for j, count in enumerate(row)] for i, row in enumerate(counts)]
    svg = drawn(matrix_chart("k", "Confusions", ["a", "b"], cells))
    assert [each.get("class") for each in svg.iter("rect")] == [
        "empty",
        "right shade8",
        "wrong shade2",
        "right shade10",
    ]
    assert {each.get("data-path"): each.text for each in svg.iter("text") if each.get("data-path")} == {
        "/m/0/0": "8", "/m/0/1": "2", "/m/1/0": "0", "/m/1/1": "5",
    }  # fmt: skip
    assert svg.findtext("desc") == "2 classes; 13 of 15 rows stand on the diagonal, where the answer is right."
    assert matrix_chart("k", "Confusions", [], []) is None


def test_texts_are_escaped() -> None:
    name = "<script>&\"'"
    assert element("text", name, class_=name) == Markup(
        '<text class="&lt;script&gt;&amp;&#34;&#39;">&lt;script&gt;&amp;&#34;&#39;</text>'
    )
    assert "<script>" not in str(bar_chart(name, name, [(name, figure(1), 1)]))


def spot(name: str, x: float | None, y: float | None, **more: Any) -> Point:
    return Point(name, Number(f"{x}", x, f"/{name}/x"), figure(y, f"/{name}/y"), **more)


def test_points_stand_where_their_axes_say() -> None:
    points = [
        spot("a", 100, 0.5, low=figure(0.4, "/a/l"), high=figure(0.6, "/a/h"), front=True),
        spot("b", 1000, 0.7, front=True, shape=2), spot("c", 10_000, 0.7, shape=3), spot("none", 5, None),
    ]  # fmt: skip
    svg = drawn(scatter("k", "F1 against size", points, x_title="size", y_title="F1"))
    assert float(of(svg, "circle", "dot")[0].get("cx", "")) == pytest.approx(places(svg, "100", "x"), abs=0.02)
    (low, high) = (float(of(svg, "line", "whisker")[0].get(side, "")) for side in ("y1", "y2"))
    for end, tick in ((low, "0.4"), (high, "0.6")):
        assert end == pytest.approx(places(svg, tick, "y") - 4, abs=0.02)
    assert len(of(svg, "circle", "ring")) == 2 and len(of(svg, "polygon", "dot")) == 2
    ring = [(float(each.get("cx", "")), float(each.get("cy", ""))) for each in of(svg, "circle", "ring")]
    stairs = [tuple(map(float, at.split(","))) for at in of(svg, "polyline", "front")[0].get("points", "").split()]
    corners = [ring[0], (ring[1][0], ring[0][1]), ring[1]]
    for found, corner in zip(stairs, corners, strict=True):
        assert found == pytest.approx(corner, abs=0.02)
    assert {each.get("data-path") for each in svg.iter() if each.get("data-path")} == {
        "/a/x", "/a/y", "/a/l", "/a/h", "/b/x", "/b/y", "/c/x", "/c/y",
    }  # fmt: skip
    assert "a: 0.50 (0.40 to 0.60) at 100, on the front" in (svg.findtext("desc") or "")
    assert {each.text for each in of(svg, "text", "name")} == {"a", "b", "c"}
    assert scatter("k", "x", [spot("none", None, 1.0), spot("none", 1, math.nan)], x_title="", y_title="") is None


def test_a_cost_of_zero_stands_apart_on_a_logarithmic_axis() -> None:
    points = [spot("base", 0, 0.1), spot("a", 10, 0.5), spot("b", 10_000, 0.7)]
    svg = drawn(scatter("k", "x", points, x_title="size", y_title="F1"))
    xs = [float(each.get("cx", "")) for each in of(svg, "circle", "dot")]
    assert xs[0] == pytest.approx(places(svg, "0", "x"), abs=0.02) and xs[0] < xs[1] < xs[2]
    border = float(of(svg, "line", "diagonal")[0].get("x1", ""))
    assert xs[0] < border < xs[1]
    for alone in ([spot("base", 0, 0.1)], [spot("a", 7, 0.1)], [spot("a", 7, 0.1), spot("b", 7, 0.1)]):
        assert drawn(scatter("k", "x", alone, x_title="size", y_title="F1", log=True)) is not None


def test_names_of_points_do_not_meet() -> None:
    points = [spot(f"name-{place}", 100 + place % 5, 0.5 + place / 1000) for place in range(24)] + [spot("far", 120, 9)]
    svg = drawn(scatter("k", "x", points, x_title="size", y_title="F1"))
    boxes = []
    for each in of(svg, "text", "name"):
        wide = 6.4 * len(each.text or "")
        left = float(each.get("x", "")) - {"start": 0, "middle": wide / 2, "end": wide}[each.get("text-anchor", "")]
        boxes.append((left, float(each.get("y", "")), wide))
    assert 3 <= len(boxes) < 25
    for one, other in itertools.combinations(boxes, 2):
        beside = one[0] + one[2] <= other[0] or other[0] + other[2] <= one[0]
        assert beside or abs(one[1] - other[1]) >= 12.9


def test_points_beyond_the_axis_say_where_they_are() -> None:
    points = [spot("far", 1, 0.1), spot("a", 2, 0.80), spot("b", 3, 0.82)]
    svg = drawn(scatter("k", "x", points, x_title="size", y_title="F1", within=(0.8, 0.82)))
    assert {each.text for each in of(svg, "text", "name")} == {"far 0.10 ↓", "a", "b"}
    ys = [float(each.get("cy", "")) for each in of(svg, "circle", "dot")]
    assert ys[0] > ys[1] > ys[2]


def test_a_map_is_shaded_by_shares() -> None:
    cells = {
        ("0", "q"): (figure(1.0, "/q"), 0.25),
        ("1", "q"): (figure(4.0, "/r"), 1.0),
        ("1", "v"): (figure(None), 0.5),
    }
    svg = drawn(heat_map("k", "Ranks", ["0", "1"], ["q", "v"], cells, line_title="block"))
    assert [each.get("class") for each in svg.iter("rect")] == ["empty", "right shade2", "right shade10"]
    assert {each.get("data-path"): each.text for each in svg.iter("text") if each.get("data-path")} == {
        "/q": "1.00", "/r": "4.00",
    }  # fmt: skip
    assert svg.findtext("desc") == "2 cells; most: 1, q 4.00; least: 0, q 1.00."
    names = [f"column {place}" for place in range(40)]
    narrow = {("0", name): (figure(1.0, f"/{name}"), 0.5) for name in names}
    svg = drawn(heat_map("k", "Ranks", ["0"], names, narrow))
    assert len([each for each in svg.iter("rect") if each.get("data-path")]) == 40  # their numbers are in tooltips
    assert heat_map("k", "Ranks", ["1"], ["v"], {("1", "v"): (figure(None), 0.5)}) is None


def test_a_logarithmic_horizontal_axis() -> None:
    line = Line("a", [1e-3, 1e-2, 1e-1], [1.0, 2.0, 3.0])
    svg = drawn(line_chart("k", "x", [line], x_title="rate", x_log=True))
    xs = [float(point.split(",")[0]) for point in of(svg, "polyline", "line")[0].get("points", "").split()]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.02)
    assert drawn(line_chart("k", "x", [Line("a", [1e-3], [1.0])], x_title="rate", x_log=True)) is not None
