"""Sections of the page that an evaluation fills: metrics, classes, calibration, parts, errors, answers, speed."""

from __future__ import annotations

from collections.abc import Mapping

from lora.evaluation import classes, details
from lora.evaluation.certainty import certainty
from lora.evaluation.grid import Grid, pointer
from lora.evaluation.html.blocks import Block, Fold, Keys, Lines, Panel, Panels, Section, Table, section
from lora.evaluation.html.charts.bars import Bar, bar_chart
from lora.evaluation.html.charts.dots import Dot, dot_chart
from lora.evaluation.html.charts.lines import Line, line_chart
from lora.evaluation.html.charts.matrix import NUMBERED, matrix_chart
from lora.evaluation.html.charts.reliability import reliability_diagram
from lora.evaluation.html.colours import SYSTEMS, place_of
from lora.evaluation.html.rows import answers, errors
from lora.evaluation.lenient import dicts, entries, mapping
from lora.evaluation.result import Evaluation
from lora.evaluation.shown import COUNT, SPEED, Metric, described_metrics, ends, number, systems
from lora.evaluation.speed_tables import speed_tables
from lora.evaluation.tables import comparison, peak_memory

PARTS = 24  # of the rows, in a chart


def sections(evaluation: Evaluation, keys: Keys) -> list[Section]:
    """All sections of an evaluation; empty ones too."""
    return [
        section("results", "Results", lambda: _results(evaluation, keys)),
        section("classes", "Classes and confusions", lambda: _classes(evaluation, keys),
                "A line is a true class; what stands off the diagonal was taken for another."),
        section("calibration", "Calibration", lambda: _calibration(evaluation, keys),
                "Dots on the diagonal: as often right as said. Below: too sure; above: not sure enough."),
        section("slices", "Parts of the rows", lambda: _slices(evaluation, keys),
                "The weakest part stands first; the upright line is the value of all other rows."),
        section("robustness", "Noise", lambda: _one(details.robustness(evaluation))),
        section("errors", "Worst errors", lambda: errors(evaluation)),
        section("answers", "Written answers", lambda: answers(evaluation)),
        section("speed", "Speed and memory", lambda: _speed(evaluation, keys)),
    ]  # fmt: skip


def _one(grid: Grid | None) -> list[Block]:
    return [Table(grid, heading=False)] if grid else []


def _results(evaluation: Evaluation, keys: Keys) -> list[Block]:
    grid = comparison(evaluation)
    out: list[Block] = [Table(grid, heading=False)]
    panels = _metric_panels(evaluation, keys)
    out += [Panels(panels)] if panels else []
    return out + [Table(grid) for grid in certainty(evaluation)]


def _metric_panels(evaluation: Evaluation, keys: Keys) -> list[Panel]:
    """Metrics between 0 and 1 on one axis; any other has its own."""
    names = [name for name in systems(evaluation)][:SYSTEMS]
    shares: list[tuple[str, list[Dot]]] = []
    others: list[tuple[str, list[Dot]]] = []
    for key, metric in described_metrics(evaluation).items():
        if metric.better is None:
            continue
        dots = [_dot(evaluation, name, key, metric) for name in names]
        numbers = [number for dot in dots for number in dot.numbers]
        unit = bool(numbers) and min(numbers) >= 0 and max(numbers) <= 1 and "loss" not in key
        (shares if unit else others).append((metric.title, dots))
    out = []
    svg = dot_chart(keys(), "Metrics from 0 to 1, with intervals where there are any", shares, unit=True)
    if svg is not None:
        out.append(Panel("Metrics from 0 to 1", svg, wide=False))
    for title, dots in others:
        if (svg := dot_chart(keys(), title, [("", dots)])) is not None:
            out.append(Panel(title, svg))
    return out


def _dot(evaluation: Evaluation, name: str, key: str, metric: Metric) -> Dot:
    own = dicts(dicts(evaluation.intervals).get(name)).get(key, {})
    low, high = ends(own, metric, pointer("evaluation", "intervals", name, key)) or (None, None)
    value = number(evaluation[name].get(key), metric, pointer("evaluation", "metrics", name, key))
    return Dot(name, value, low, high, place_of(evaluation, name))


def _classes(evaluation: Evaluation, keys: Keys) -> list[Block]:
    out: list[Block] = []
    for name in evaluation.tuned:
        found = evaluation[name].get("confusion")
        if isinstance(found, Mapping) and found.get("labels"):
            out += _confusion(evaluation, name, found["labels"], found["matrix"], keys)
        if (grid := classes.per_class(evaluation, name)) is not None:
            out.append(Table(grid, sortable=True))
    return out


def _confusion(
    evaluation: Evaluation, name: str, labels: list[str], matrix: list[list[int]], keys: Keys
) -> list[Block]:
    cells = [
        [number(count, COUNT, classes.cell_path(name, i, j)) for j, count in enumerate(row)]
        for i, row in enumerate(matrix)
    ]
    svg = matrix_chart(keys(), f"Confusion matrix of {name}", labels, cells)
    grid = classes.confusion(evaluation, name)
    if svg is None or grid is None:
        return []
    if len(labels) <= NUMBERED:
        return [Panels([Panel(f"Confusion matrix: {name}", svg, [grid], wide=len(labels) > 6)])]
    every = classes.confused_pairs(labels, matrix, name, most=len(labels) ** 2)
    every.title = "All confusions"
    whole = Panels(
        [
            Panel(
                f"All {len(labels)} classes",
                svg,
                wide=True,
                note="True classes downwards, predicted ones across. Names and counts stand in the table.",
            )
        ]
    )
    return [
        Table(grid, sortable=True),
        Fold(f"The whole matrix of {len(labels)} classes", [whole, Table(every, sortable=True)]),
    ]


def _calibration(evaluation: Evaluation, keys: Keys) -> list[Block]:
    found = dicts(evaluation.calibration)
    panels = []
    for name in [name for name in systems(evaluation) if name in found][:SYSTEMS]:
        table = details.bins(evaluation, name)
        own = entries(found[name].get("bins"))
        svg = reliability_diagram(keys(), f"Reliability of {name}", own, place_of(evaluation, name))
        if svg is not None:
            panels.append(Panel(f"Reliability: {evaluation.label(name)}", svg, [table] if table else []))
    lines, tables_of_lines = [], []
    for name in [name for name in systems(evaluation) if details.covered(evaluation, name)][:SYSTEMS]:
        points = details.covered(evaluation, name)
        shares = [float(each.risk.value or 0) for each in points]
        risks = [1 - share if points[0].right else share for share in shares]
        lines.append(
            Line(name, [float(each.coverage.value or 0) for each in points], risks, place_of(evaluation, name))
        )
        tables_of_lines += [grid] if (grid := details.selective(evaluation, name)) else []
    svg = line_chart(
        keys(), "Risk by coverage", lines, x_title="share of the rows answered, the surest first", zero=True, log=False
    )
    if svg is not None:
        panels.append(Panel("Wrong answers when only sure ones are given", svg, tables_of_lines))
    out: list[Block] = [Panels(panels)] if panels else []
    return out + [Table(grid) for grid in details.calibration(evaluation) if grid]


def _slices(evaluation: Evaluation, keys: Keys) -> list[Block]:
    out: list[Block] = []
    for name in evaluation.tuned:
        grid = details.slices(evaluation, name)
        if grid is None:
            continue
        dots = _slice_dots(evaluation, name)
        svg = dot_chart(keys(), f"Parts of the rows: {name}", [("", dots[:PARTS])], x_title=grid.headers[2])
        weakest = dicts(evaluation.slices).get(name, {}).get("weakest")
        if isinstance(weakest, Mapping):
            said = f"{name} is shown to be weakest where {weakest.get('column')} is {weakest.get('name')}."
        else:
            said = f"{name}: no part is shown to be weaker than the others."
        out += [Lines([said]), *([Panels([Panel(grid.title, svg, wide=True)])] if svg is not None else [])]
        out.append(Table(grid, heading=svg is None, sortable=True))
    return out


def _slice_dots(evaluation: Evaluation, name: str) -> list[Dot]:
    out = []
    for place, part in enumerate(entries(dicts(evaluation.slices).get(name, {}).get("slices"))):
        own = mapping(part.get("estimate"))
        if own:
            metric, path = details.sliced(evaluation, own), pointer("evaluation", "slices", name, "slices", place)
            value, low, high = (
                number(own.get(key), metric, f"{path}/estimate/{key}") for key in ("value", "low", "high")
            )
            rest = number(part.get("rest"), metric, f"{path}/rest")
            out.append(
                Dot(f"{part.get('column')}: {part.get('name')}", value, low, high, place_of(evaluation, name), rest)
            )
    return out


def _speed(evaluation: Evaluation, keys: Keys) -> list[Block]:
    names = [name for name in systems(evaluation) if isinstance(evaluation.speed.get(name), Mapping)]
    panels = []
    for key, metric in SPEED.items():
        bars: list[Bar] = [
            (name, number(evaluation.speed[name].get(key), metric, pointer("evaluation", "speed", name, key)),
             place_of(evaluation, name))
            for name in names[:SYSTEMS]
        ]  # fmt: skip
        if (svg := bar_chart(keys(), metric.title, bars)) is not None:
            panels.append(Panel(metric.title, svg))
    out: list[Block] = [Panels(panels)] if panels else []
    if evaluation.speed_grid is not None:
        out += [Table(grid) for grid in speed_tables(evaluation.speed_grid, pointer("evaluation", "speed_grid"))]
    if (memory := peak_memory(evaluation)) is not None:
        out.append(Lines([["Peak memory: ", memory, f" MiB, {evaluation.peak_memory_kind}."]]))
    return out
