"""Charts of a comparison's page: quality over costs and over learning rates, and what rank each layer used."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lora.comparison.candidates import LOW_RANK
from lora.comparison.tables import FRONTS
from lora.comparison.told import Row, Told, figure, scaled, unit_of
from lora.evaluation.grid import Number
from lora.evaluation.html.blocks import Keys, Panel
from lora.evaluation.html.charts.dots import Dot, dot_chart
from lora.evaluation.html.charts.heat import heat_map
from lora.evaluation.html.charts.lines import Line, line_chart
from lora.evaluation.html.charts.scatter import Point, scatter
from lora.evaluation.lenient import dicts, entries, is_number, mapping

COSTS = {cost: title for cost, title in FRONTS.items() if cost != "all"}
DOTS, LINES, MAPS = 40, 8, 16  # candidates shown so; tables and compare.json have all
COLUMNS = 40  # kinds of layers in a map
NEAR = 8  # times the median distance to the best: who is farther is far behind
POINTS = 64  # of a line of singular values


def quality(told: Told, keys: Keys) -> list[Panel]:
    """The candidates with their intervals, one below the other."""
    dots = []
    for its in [*told.candidates[:DOTS], *([told.reference] if told.reference else [])]:
        low, high = told.interval(its) or (None, None)
        dots.append(Dot(its.name, told.quality(its), low, high, its.place))
    svg = dot_chart(keys(), f"{told.metric} of the candidates", [("", dots)])
    return [Panel(f"{told.metric} with 95 % intervals", svg)] if svg is not None else []


def costs(told: Told, keys: Keys) -> list[Panel]:
    """Quality over each cost, the front marked."""
    fronts, out, within = mapping(told.report.get("fronts")), [], _near_the_best(told)
    for cost, title in COSTS.items():
        found = [(its, told.cost(its, cost)[0]) for its in told.candidates]
        having = [(its, took) for its, took in found if took.value is not None]
        unit, one = unit_of(cost, max((float(took.value or 0) for _, took in having), default=0.0))
        front = fronts.get(cost)
        points = []
        for its, took in having:
            low, high = told.interval(its) or (None, None)
            took = scaled(took.value or 0, took.path, one)
            points.append(Point(its.name, took, told.quality(its), low, high, its.place, its.shape,
                                isinstance(front, list) and its.name in front))  # fmt: skip
        svg = scatter(keys(), f"{told.metric} against {title}", points, x_title=f"{title}, {unit}" if unit else title,
                      y_title=told.metric, within=within)  # fmt: skip
        if svg is not None and len(points) > 1:
            out.append(Panel(f"{told.metric} against {title}", svg))
    return out


def _near_the_best(told: Told) -> tuple[float, float] | None:
    """The ends of an axis on which those near the best are told apart; None: one that holds all does as well.

    Candidates far behind, such as an untrained base, would else press all others into a line.
    """
    best = told.named(told.report.get("best"))
    values = [value for its in told.candidates if is_number(value := told.quality(its).value)]
    if best is None or not values or not is_number(of_best := told.quality(best).value):
        return None
    away = [abs(value - of_best) for value in values]
    near = max(distance for distance in away if distance <= NEAR * statistics.median(away))
    if not 0 < near < max(away) / 2:
        return None
    shown = [
        its for its in told.candidates if is_number(value := told.quality(its).value) and abs(value - of_best) <= near
    ]
    numbers = [number for its in shown for number in (told.quality(its), *told.interval(its))]
    ends = [float(number.value or 0) for number in numbers]
    return min(ends), max(ends)


def _groups(told: Told) -> dict[str, list[Row]]:
    """Candidates that share a chart: those of LoRA on the same targets, and the others."""
    out = dict[str, list[Row]]()
    for its in told.candidates:
        out.setdefault(f"LoRA on {its.targets}" if its.kind == LOW_RANK else "Without LoRA", []).append(its)
    return dict(sorted(out.items(), key=lambda item: item[0] == "Without LoRA"))


def rates(told: Told, keys: Keys) -> list[Panel]:
    """Quality on the validation rows over the learning rate, a line for each candidate."""
    out = []
    for title, rows in _groups(told).items():
        lines = list[Line]()
        for its in rows:
            tried = [each for each in entries(its.values.get("rates")) if is_number(each.get("value"))]
            tried = [each for each in tried if is_number(each.get("learning_rate")) and each["learning_rate"] > 0]
            at = [each["learning_rate"] for each in tried]
            chosen = its.values.get("learning_rate")
            if tried:
                lines.append(Line(its.name, at, [each["value"] for each in tried], 1 + len(lines), True,
                                  at.index(chosen) if chosen in at else None))  # fmt: skip
        svg = line_chart(keys(), f"{told.metric} over the learning rate: {title}", lines[:LINES],
                         x_title="learning rate", x_log=True, log=False)  # fmt: skip
        if svg is not None:
            out.append(Panel(title, svg, note=_left(len(lines) - LINES)))
    return out


def updates(told: Told, keys: Keys) -> list[Panel]:
    """What rank would keep the updates, and of each candidate a map of its layers."""
    out = []
    for title, rows in _groups(told).items():
        lines = list[Line]()
        for its in rows:
            kept = _kept(dicts(its.values.get("layers")))
            if len(kept) > 1:
                shown = sorted({round(len(kept) ** (step / POINTS)) for step in range(POINTS + 1)})
                lines.append(Line(its.name, shown, [kept[rank - 1] for rank in shown], 1 + len(lines), True))
        said = f"Energy kept by the best approximation of a rank, in the median layer: {title}"
        svg = line_chart(keys(), said, lines[:LINES], x_title="rank", x_log=True, log=False)
        if svg is not None:
            out.append(Panel(f"Energy kept by rank: {title}", svg, note=_left(len(lines) - LINES)))
    maps = [panel for its in told.candidates if (panel := _map(its, keys)) is not None]
    return out + maps[:MAPS]


def _left(count: int) -> str:
    return f"{count} more are in the table." if count > 0 else ""


def _kept(layers: Mapping[str, dict[str, Any]]) -> list[float]:
    """By rank, from 1 on, the share of the energy that is kept, the median of the layers that were changed."""
    shares = list[list[float]]()
    for its in layers.values():
        values, energy = its.get("singular_values"), its.get("energy")
        if isinstance(values, list) and all(map(is_number, values)) and is_number(energy) and energy > 0:
            kept, own = 0.0, []
            for value in values:
                kept += value * value
                own.append(min(1.0, kept / energy))
            shares.append(own)
    longest = max(map(len, shares), default=0)
    # A layer with fewer singular values keeps with them what it keeps with more.
    return [statistics.median(own[min(place, len(own) - 1)] for own in shares if own) for place in range(longest)]


def _map(its: Row, keys: Keys) -> Panel | None:
    """Effective ranks, a line for each block of the model and a column for each of its layers."""
    cells = dict[tuple[str, str], tuple[Number, float]]()
    paths = list(dicts(its.values.get("layers")).items())
    where = _lines_and_columns([path for path, _ in paths])
    for (path, own), at in zip(paths, where, strict=True):
        rank, effective = own.get("rank"), own.get("effective_rank")
        if is_number(rank) and is_number(effective) and rank > 0:
            cells[at] = figure(effective, its.path("layers", path, "effective_rank"), ".1f"), effective / rank
    columns = list(dict.fromkeys(column for _, column in where))
    left = len(columns) - COLUMNS
    said = f"Effective rank of each layer's update: {its.name}"
    lines = list(dict.fromkeys(line for line, _ in where))
    cells = {at: cell for at, cell in cells.items() if at[1] in columns[:COLUMNS]}
    svg = heat_map(keys(), said, lines, columns[:COLUMNS], cells, line_title="block")
    if svg is None or its.values.get("rank") == 1:  # an update of rank 1 has the effective rank 1
        return None
    note = f"{left} more kinds of layers are in compare.json." if left > 0 else ""
    of = f", of {its.values['rank']}" if is_number(its.values.get("rank")) else ""
    return Panel(f"Effective rank{of}: {its.name}", svg, note=note)


def _lines_and_columns(paths: list[str]) -> list[tuple[str, str]]:
    """Paths like ``encoder.layer.3.output.dense`` as ``3`` and ``output.dense``; of those without a number the end."""
    split, ends = list[tuple[str, str, str]](), Counter(path.split(".")[-1] for path in paths)
    for path in paths:
        parts = path.split(".")
        at = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
        if at is None or at + 1 == len(parts):
            unclear = ends[parts[-1]] > 1 or parts[-1].isdecimal()
            split.append(("", ".".join(parts[-2:]) if unclear else parts[-1], "itself"))
        else:
            split.append((".".join(parts[:at]), parts[at], ".".join(parts[at + 1 :])))
    stacks = {stack for stack, *_ in split if stack}
    # Encoder and decoder both have a block 0.
    return [(f"{stack}.{line}" if stack and len(stacks) > 1 else line, column) for stack, line, column in split]
