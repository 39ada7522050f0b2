"""The page as a whole: its head, its sections in order, and the template that writes them."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from lora.evaluation.certainty import metric_of
from lora.evaluation.facts import (
    best_evaluation,
    evaluations,
    fact_grids,
    first_and_last,
    inline,
    lineage,
    ordered,
    validation,
)
from lora.evaluation.grid import Cell, Number, Piece, pieces, pointer, style, text
from lora.evaluation.html.blocks import Block, Code, Keys, Lines, Panel, Panels, Section, Table, Tile
from lora.evaluation.html.charts.lines import Line, line_chart
from lora.evaluation.html.charts.svg import tone
from lora.evaluation.html.evaluated import place_of, sections
from lora.evaluation.html.texts import clean, data_value, excerpt
from lora.evaluation.lenient import dicts, is_number, mapping
from lora.evaluation.result import Evaluation
from lora.evaluation.tables import COUNT, difference, headline, number, peak_memory, times

LONGEST = 3000  # characters of a text in a sentence or a table
NAME = 120  # and of the name at the head of the page
TILES = 6  # adapters at the head of the page; the table has all
STYLES = {"green": "good", "red": "bad"}


def render(report: Mapping[str, Any]) -> str:
    """The page of a report, as ``report.json`` holds it: one document that loads nothing.

    Args:
        report: of this version of lora or another; what is not there, or not of the shape that is known, is left out.
    """
    evaluation = _evaluation(report.get("evaluation"))
    keys = Keys()
    parts = [_notes(report, evaluation)]
    measured = sections(evaluation, keys) if evaluation else []
    parts += [*measured[:1], _course(report, evaluation, keys), *measured[1:], *_origin(report)]
    source, script = _file("style.css"), _file("script.js")
    return _template().render(
        name=excerpt(_name(report, evaluation), NAME)[0], task=evaluation.task if evaluation else "",
        headline=headline(evaluation) if evaluation else "Nothing was held out, so there is no evaluation.",
        tiles=_tiles(evaluation) if evaluation else [], sections=[part for part in parts if part.blocks],
        version=mapping(report.get("versions")).get("lora"),
        style=Markup(source), script=Markup(script), style_hash=_hash(source), script_hash=_hash(script),
    )  # fmt: skip


def _evaluation(found: Any) -> Evaluation | None:
    """The evaluation of a report; None where it has no metrics of any system."""
    if not isinstance(found, Mapping) or not dicts(found.get("metrics")):
        return None
    return Evaluation.from_dict({**found, "metrics": dicts(found["metrics"])})


def _name(report: Mapping[str, Any], evaluation: Evaluation | None) -> str:
    output = mapping(report.get("config")).get("output")
    if output:
        return PurePath(str(output)).name or str(output)
    return ", ".join(evaluation.tuned[:3]) if evaluation else "Report"


def _tiles(evaluation: Evaluation) -> list[Tile]:
    key = evaluation.best_metric
    metric, out = metric_of(evaluation, key), []
    for name in evaluation.tuned[:TILES]:
        path = pointer("evaluation", "metrics", name, key)
        value = evaluation[name].get(key)
        own = dicts(dicts(evaluation.intervals).get(name)).get(key, {})
        interval: Cell = ""
        if own.get("low") is not None and own.get("high") is not None:
            at = pointer("evaluation", "intervals", name, key)
            interval = [f"{own.get('level') or 0.95:.0%} interval ".replace("%", " %")]
            interval += [number(own["low"], metric, f"{at}/low"), "–", number(own["high"], metric, f"{at}/high")]
        beside: Cell = ""
        verdict, colour = "", ""
        if evaluation.base:
            base, at = evaluation[evaluation.base].get(key), pointer("evaluation", "metrics", evaluation.base, key)
            change = difference(value, base, metric, path, at)
            beside = [f"{evaluation.label(evaluation.base)} ", number(base, metric, at), " (", *(change or ["–"]), ")"]
            verdict = str(dicts(dicts(evaluation.comparisons).get(name)).get(key, {}).get("verdict") or "")
            colour = {"better": "good", "worse": "bad"}.get(verdict, "")
        out.append(Tile(f"{metric.title}, {name}", number(value, metric, path), "", interval, beside, verdict, colour,
                        place_of(evaluation, name)))  # fmt: skip
    cut: Cell = [number(evaluation.truncated, COUNT, "/evaluation/truncated"), " of them cut short"]
    out.append(Tile("rows measured", number(evaluation.rows, COUNT, "/evaluation/rows"),
                    beside=cut if evaluation.truncated else "", place=-1))  # fmt: skip
    return out + _costs(evaluation)


def _costs(evaluation: Evaluation) -> list[Tile]:
    """What it costs, where one adapter stands beside the base."""
    out = []
    if len(evaluation.tuned) == 1:
        name = evaluation.tuned[0]
        own = dicts(dicts(dicts(evaluation.speed).get(name)).get("to_base")).get("latency_p50_ms")
        if own and own.get("value") is not None:
            first, *rest = times(
                own, metric_of(evaluation, "loss"), pointer("evaluation", "speed", name, "to_base", "latency_p50_ms")
            )  # type: ignore[arg-type]
            assert isinstance(first, Number)
            interval: Cell = ["95 % interval ", *[_plain(piece) for piece in rest[1:-1]]] if rest else ""
            out.append(Tile("time of a row, to the base's", first, interval=interval, place=-1))
    if (memory := peak_memory(evaluation)) is not None:
        out.append(Tile("peak memory", memory, "MiB", beside=str(evaluation.peak_memory_kind or ""), place=-1))
    return out


def _plain(piece: Any) -> Any:
    return text(piece) if isinstance(piece, tuple) else piece


def _notes(report: Mapping[str, Any], evaluation: Evaluation | None) -> Section:
    found = report.get("notes")
    own, measured = found if isinstance(found, list) else [found], evaluation.notes if evaluation else []
    lines: list[Cell] = list(dict.fromkeys(str(note) for note in [*own, *measured] if note not in (None, "")))
    return Section("notes", "Notes", [Lines(lines, points=True)] if lines else [])


def _course(report: Mapping[str, Any], evaluation: Evaluation | None, keys: Keys) -> Section:
    """Curves, and the table of evaluations."""
    told = mapping(report.get("history"))
    entries = evaluations(told)
    at = [float(entry["step"]) if is_number(entry.get("step")) else math.nan for entry in entries]
    best = best_evaluation(entries)
    curves = dicts(told.get("series"))
    best_metric = evaluation.best_metric if evaluation else ""

    def line(title: str, key: str, place: int) -> list[Line]:
        own = curves.get(key, {})
        steps, values = own.get("steps"), own.get("values")
        if not isinstance(steps, list) or not isinstance(values, list) or len(steps) != len(values):
            return []
        each = own.get("each") or 1
        return [Line(title + (f" (means of {each} steps)" if each > 1 else ""), steps, values, place)]

    def measured(title: str, key: str, place: int) -> list[Line]:
        return [Line(title, at, [entry["eval"].get(key) for entry in entries], place, True, best)] if entries else []

    metrics = [key for entry in entries for key in entry["eval"]]
    metric = next((key for key in [best_metric, *metrics] if key and key != "loss" and key in metrics), None)
    drawn = [
        ("Loss", [*line("training", "loss", 0), *measured("validation", "loss", 1)]),
        (
            metric_of(evaluation, metric).title if evaluation and metric else str(metric),
            measured("validation", metric, 1) if metric else [],
        ),
        ("Learning rate", line("learning rate", "learning_rate", 3)),
        ("Gradient norm", line("gradient norm", "grad_norm", 2)),
    ]
    table = validation(told)
    panels = []
    for title, lines in drawn:
        svg = line_chart(
            keys(),
            title,
            lines,
            x_title="step",
            zero=title == "Learning rate",
            log=False if title == "Learning rate" else None,
        )
        if svg is not None:
            panels.append(Panel(title, svg))
    blocks: list[Block] = [Lines([sentence])] if (sentence := first_and_last(told)) is not None else []
    blocks += [Panels(panels)] if panels else []
    blocks += [Table(table)] if table else []
    return Section(
        "course",
        "Course of training",
        blocks,
        "The ring marks the evaluation that was kept as the best." if best is not None else "",
    )


ORIGIN, AGAIN = ("base", "adapter", "data"), ("versions", "config")


def _origin(report: Mapping[str, Any]) -> list[Section]:
    """Where the adapter comes from, how it was trained, and by what it can be made again."""
    line = lineage(report)
    names = [key for key in ordered(report) if key != "notes" and report[key] not in (None, "", [], {})]
    origin = [Table(line, heading=False)] if line else []
    return [
        Section("lineage", "Lineage", [*origin, *_facts(report, [key for key in names if key in ORIGIN])],
                "From the base to this adapter. Fingerprints and SHA-256 tell whether base and files are the same."),
        Section("run", "The run", _facts(report, [key for key in names if key not in ORIGIN + AGAIN])),
        Section("configuration", "Versions and configuration", _facts(report, [key for key in names if key in AGAIN])),
    ]  # fmt: skip


def _facts(report: Mapping[str, Any], names: list[str]) -> list[Block]:
    """Sections of ``report.json`` as they are, each under its name."""
    out = list[Block]()
    for key in names:
        value, path, title = report[key], pointer(key), key.replace("_", " ").capitalize()
        if key == "config":
            written = yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()
            out.append(Code(written, path, "The resolved configuration, every default written out"))
        elif isinstance(value, Mapping):
            out += [Table(grid) for grid in fact_grids(key, value, path)]
        elif isinstance(value, str) and "\n" in value:
            out += [Lines([], heading=title), Code(value)]
        elif isinstance(value, list):
            lines = [inline(item, path + pointer(place)) for place, item in enumerate(value)]
            out.append(Lines(lines, points=True, heading=title))
        else:
            out.append(Lines([inline(value, path)], heading=title))
    return out


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    environment.filters |= {
        "pieces": pieces, "text": _written, "json": data_value,
        "look": _look, "tone": _tone,
    }  # fmt: skip
    environment.tests["figure"] = lambda piece: isinstance(piece, Number)
    return environment.get_template("page.html")


def _written(piece: Piece) -> str:
    said, left = excerpt(text(piece), LONGEST)
    return f"{said} … ({left:,} more characters are in report.json)" if left else said


def _look(piece: Piece) -> str:
    return STYLES.get(style(piece), "")


def _tone(place: int) -> str:
    return tone(place) if place >= 0 else "plain"


@cache
def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """What the page's own security policy knows its style and script by: no other runs, whatever a text may hold."""
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
