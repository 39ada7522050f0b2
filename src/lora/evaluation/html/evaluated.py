"""Sections of the page that an evaluation fills: metrics, classes, calibration, parts, errors, answers, speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora.core.routing import BASE
from lora.evaluation import certainty, details, tables
from lora.evaluation.certainty import systems
from lora.evaluation.grid import Cell, Grid, Number, pieces, pointer
from lora.evaluation.html.blocks import (
    Answer,
    Block,
    Card,
    Cards,
    Fold,
    Keys,
    Lines,
    Panel,
    Panels,
    Section,
    Table,
    Text,
    section,
)
from lora.evaluation.html.charts.bars import Bar, bar_chart
from lora.evaluation.html.charts.dots import Dot, dot_chart
from lora.evaluation.html.charts.lines import Line, line_chart
from lora.evaluation.html.charts.matrix import NUMBERED, matrix_chart
from lora.evaluation.html.charts.reliability import reliability_diagram
from lora.evaluation.html.texts import excerpt
from lora.evaluation.lenient import dicts, entries, mapping
from lora.evaluation.result import Evaluation, rebuilt
from lora.evaluation.speed_tables import speed_tables

if TYPE_CHECKING:
    from lora.evaluation.forgetting import Forgetting

OPEN, FOLDED = 5, 45  # rows shown at once, and behind a line
SHOWN, MORE = 700, 12_000  # characters of a text shown at once, and behind a line
SYSTEMS = 12  # in a chart; a table has all
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
        section("errors", "Worst errors", lambda: _errors(evaluation)),
        section("answers", "Written answers", lambda: _answers(evaluation)),
        section("speed", "Speed and memory", lambda: _speed(evaluation, keys)),
    ]  # fmt: skip


def place_of(evaluation: Evaluation, name: str) -> int:
    """The place of a system's colour: the base's is 0."""
    tuned = evaluation.tuned
    return 0 if name == BASE and tuned != [BASE] else 1 + (tuned.index(name) if name in tuned else 0)


def _one(grid: Grid | None) -> list[Block]:
    return [Table(grid, heading=False)] if grid else []


def _results(evaluation: Evaluation, keys: Keys) -> list[Block]:
    grid = tables.comparison(evaluation)
    out: list[Block] = [Table(grid, heading=False)]
    panels = _metric_panels(evaluation, keys)
    out += [Panels(panels)] if panels else []
    return out + [Table(grid) for grid in certainty.certainty(evaluation)]


def _metric_panels(evaluation: Evaluation, keys: Keys) -> list[Panel]:
    """Metrics between 0 and 1 on one axis; any other has its own."""
    names = [name for name in systems(evaluation)][:SYSTEMS]
    shares: list[tuple[str, list[Dot]]] = []
    others: list[tuple[str, list[Dot]]] = []
    for key, metric in tables.described_metrics(evaluation).items():
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


def _dot(evaluation: Evaluation, name: str, key: str, metric: tables.Metric) -> Dot:
    own = dicts(dicts(evaluation.intervals).get(name)).get(key, {})
    path = pointer("evaluation", "intervals", name, key)
    ends = [
        tables.number(own[end], metric, f"{path}/{end}") if own.get(end) is not None else None
        for end in ("low", "high")
    ]
    value = tables.number(evaluation[name].get(key), metric, pointer("evaluation", "metrics", name, key))
    return Dot(name, value, ends[0], ends[1], place_of(evaluation, name))


def _classes(evaluation: Evaluation, keys: Keys) -> list[Block]:
    out: list[Block] = []
    for name in evaluation.tuned:
        found = evaluation[name].get("confusion")
        if isinstance(found, Mapping) and found.get("labels"):
            out += _confusion(evaluation, name, found["labels"], found["matrix"], keys)
        if (grid := tables.per_class(evaluation, name)) is not None:
            out.append(Table(grid, sortable=True))
    return out


def _confusion(
    evaluation: Evaluation, name: str, labels: list[str], matrix: list[list[int]], keys: Keys
) -> list[Block]:
    cells = [
        [tables.number(count, tables.COUNT, tables.cell_path(name, i, j)) for j, count in enumerate(row)]
        for i, row in enumerate(matrix)
    ]
    svg = matrix_chart(keys(), f"Confusion matrix of {name}", labels, cells)
    grid = tables.confusion(evaluation, name)
    if svg is None or grid is None:
        return []
    if len(labels) <= NUMBERED:
        return [Panels([Panel(f"Confusion matrix: {name}", svg, [grid], wide=len(labels) > 6)])]
    every = tables.confused_pairs(labels, matrix, name, most=len(labels) ** 2)
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
                tables.number(own.get(key), metric, f"{path}/estimate/{key}") for key in ("value", "low", "high")
            )
            rest = tables.number(part.get("rest"), metric, f"{path}/rest")
            out.append(
                Dot(f"{part.get('column')}: {part.get('name')}", value, low, high, place_of(evaluation, name), rest)
            )
    return out


def _errors(evaluation: Evaluation) -> list[Block]:
    out: list[Block] = []
    for name in evaluation.tuned:
        found, cards = details.worst(evaluation, name), []
        for place, its in enumerate(found[: OPEN + FOLDED]):
            path = pointer("evaluation", "errors", name, place)
            head: list[tuple[str, Cell]] = []
            for key, metric in (("row", tables.COUNT), ("score", details.PLAIN)):
                if its.get(key) is not None:
                    head.append((key, tables.number(its[key], metric, f"{path}/{key}")))
            answers = [
                Answer(key, _text(details.said(its[key])), at)
                for key, at in (("expected", 0), ("answer", 1))
                if key in its
            ]
            cards.append(Card(head, _text(details.said(its.get("text"))), answers))
        if cards:
            below = [f"{len(cards)} of {len(found)}; all are in report.json."] if len(found) > len(cards) else []
            out.append(Cards(name, cards[:OPEN], cards[OPEN:], below))
    return out


def _answers(evaluation: Evaluation) -> list[Block]:
    written = evaluation.generation
    answers = entries(written.answers) if written is not None else []
    names, cards = systems(evaluation), []
    for its in answers[: OPEN + FOLDED]:
        references = its.get("references") or []
        said = [Answer("reference" if len(references) == 1 else f"reference {place}", _text(details.said(each)), -1)
                for place, each in enumerate(references[:3], start=1)]  # fmt: skip
        given = mapping(its.get("answers"))
        said += [Answer(evaluation.label(name), _text(details.said(given[name])), place_of(evaluation, name))
                 for name in names if name in given]  # fmt: skip
        cards.append(Card([], _text(details.said(its.get("prompt"))), said))
    below = [f"{len(cards)} of {len(answers)}; all are in report.json."] if len(answers) > len(cards) else []
    return [Cards("", cards[:OPEN], cards[OPEN:], below)] if cards else []


def _text(said: str) -> Text:
    first, left = excerpt(said, SHOWN)
    more, left = excerpt(said[SHOWN:], MORE) if left else ("", 0)
    return Text(first, more, left)


def forgotten(report: Mapping[str, Any], evaluation: Evaluation | None, keys: Keys) -> Section:
    """Base and adapters on general text: what a run measured at its end, and what an evaluation was asked for."""

    def blocks() -> list[Block]:
        from lora.evaluation.forgetting import Forgetting

        found = report.get("forgetting")
        out: list[Block] = [Lines([f"Not measured: {found}."])] if found and isinstance(found, str) else []
        for path, own in (("/forgetting", rebuilt(Forgetting, found)),
                          ("/evaluation/forgetting", evaluation.forgetting if evaluation else None)):  # fmt: skip
            if own is not None and own.adapters:
                out += [Table(own.grid(path)), *_moved(own, path, evaluation, keys)]
        return out

    return section("forgetting", "Forgetting", blocks, "Measured on general text that is none of the training data's.")


MOVED = {"loss_change": "Change of the loss per token", "kl": "KL(base ‖ adapter) per token", "cosine": "Cosine"}


def _moved(found: Forgetting, path: str, evaluation: Evaluation | None, keys: Keys) -> list[Block]:
    """How far each adapter has moved from the base, with intervals."""
    panels = []
    for key, title in MOVED.items():
        dots = []
        for name in [name for name, own in found.adapters.items() if isinstance(own.get(key), Mapping)][:SYSTEMS]:
            numbers = [piece for piece in pieces(found.cell(name, key, path)) if isinstance(piece, Number)]
            low, high = numbers[1:] if len(numbers) == 3 else (None, None)
            dots.append(Dot(name, numbers[0], low, high, place_of(evaluation, name) if evaluation else 1))
        if (svg := dot_chart(keys(), title, [("", dots)], zero=key != "cosine")) is not None:
            panels.append(Panel(title, svg))
    return [Panels(panels)] if panels else []


def _speed(evaluation: Evaluation, keys: Keys) -> list[Block]:
    names = [name for name in systems(evaluation) if isinstance(evaluation.speed.get(name), Mapping)]
    panels = []
    for key, metric in tables.SPEED.items():
        bars: list[Bar] = [
            (name, tables.number(evaluation.speed[name].get(key), metric, pointer("evaluation", "speed", name, key)),
             place_of(evaluation, name))
            for name in names[:SYSTEMS]
        ]  # fmt: skip
        if (svg := bar_chart(keys(), metric.title, bars)) is not None:
            panels.append(Panel(metric.title, svg))
    out: list[Block] = [Panels(panels)] if panels else []
    if evaluation.speed_grid is not None:
        out += [Table(grid) for grid in speed_tables(evaluation.speed_grid, pointer("evaluation", "speed_grid"))]
    if (memory := tables.peak_memory(evaluation)) is not None:
        out.append(Lines([["Peak memory: ", memory, f" MiB, {evaluation.peak_memory_kind}."]]))
    return out
