"""Sections of the page that a run fills: notes, the course of training, lineage, facts, configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

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
from lora.evaluation.grid import Cell, pointer
from lora.evaluation.html.blocks import Block, Code, Keys, Lines, Panel, Panels, Section, Table, section
from lora.evaluation.html.charts.lines import Line, line_chart
from lora.evaluation.lenient import dicts, is_number, mapping
from lora.evaluation.result import Evaluation
from lora.evaluation.shown import METRICS, Metric, metric_of

SETTINGS = {
    "config": "The resolved configuration, every default written out", "asked": "What was compared, and how",
}  # fmt: skip
ORIGIN, AGAIN = ("base", "adapter", "adapters", "data"), ("versions", "config")  # first and last section


def notes(report: Mapping[str, Any], evaluation: Evaluation | None) -> Section:
    """What a user should know, of the run and of the evaluation."""
    found = report.get("notes")
    own, measured = found if isinstance(found, list) else [found], evaluation.notes if evaluation else []
    lines: list[Cell] = list(dict.fromkeys(str(note) for note in [*own, *measured] if note not in (None, "")))
    return Section("notes", "Notes", [Lines(lines, points=True)] if lines else [])


def course(report: Mapping[str, Any], evaluation: Evaluation | None, keys: Keys) -> Section:
    """Curves, and the table of evaluations."""
    told = mapping(report.get("history"))
    hint = (
        "The ring marks the evaluation that was kept as the best."
        if best_evaluation(evaluations(told)) is not None
        else ""
    )
    return section("course", "Course of training", lambda: _course(told, evaluation, keys), hint)


def _course(told: dict[str, Any], evaluation: Evaluation | None, keys: Keys) -> list[Block]:
    first = evaluation.best_metric if evaluation else ""
    names = [key for each in evaluations(told) for key in each["eval"]]
    key = next((key for key in [first, *names] if key and key != "loss" and key in names), "")
    metric = metric_of(evaluation, key) if evaluation else METRICS.get(key) or Metric(key)
    rate = _trained(told, "learning rate", "learning_rate", 3)
    charts = [
        line_chart(keys(), "Loss", [*_trained(told, "training", "loss", 0), *_measured(told, "loss")], x_title="step"),
        line_chart(keys(), metric.title, _measured(told, key), x_title="step"),
        line_chart(keys(), "KL to the base", _trained(told, "KL per learned token", "kl", 0), x_title="step"),
        line_chart(keys(), "Learning rate", rate, x_title="step", zero=True, log=False),
        line_chart(keys(), "Gradient norm", _trained(told, "gradient norm", "grad_norm", 2), x_title="step"),
    ]
    titles = ("Loss", metric.title, "KL to the base", "Learning rate", "Gradient norm")
    panels = [Panel(title, svg) for title, svg in zip(titles, charts, strict=True) if svg is not None]
    out: list[Block] = [Lines([sentence])] if (sentence := first_and_last(told)) is not None else []
    out += [Panels(panels)] if panels else []
    return out + ([Table(grid)] if (grid := validation(told)) is not None else [])


def _trained(told: Mapping[str, Any], title: str, key: str, place: int) -> list[Line]:
    """A series over the steps of training."""
    own = dicts(told.get("series")).get(key, {})
    steps, values = own.get("steps"), own.get("values")
    if not isinstance(steps, list) or not isinstance(values, list) or len(steps) != len(values):
        return []
    each = own.get("each") or 1
    return [Line(title + (f" (means of {each} steps)" if each > 1 else ""), steps, values, place)]


def _measured(told: Mapping[str, Any], key: str) -> list[Line]:
    """A metric of the held-out rows."""
    found = evaluations(told)
    steps = [float(each["step"]) if is_number(each.get("step")) else math.nan for each in found]
    return [Line("validation", steps, [each["eval"].get(key) for each in found], 1, True, best_evaluation(found))]


def origin(report: Mapping[str, Any]) -> list[Section]:
    """Where the adapter comes from, how it was trained, and by what it can be made again."""
    names = [key for key in ordered(report) if key != "notes" and report[key] not in (None, "", [], {})]
    run = [key for key in names if key not in ORIGIN + AGAIN]

    def whence() -> list[Block]:
        line = lineage(report)
        out: list[Block] = [Table(line, heading=False)] if line else []
        return out + facts(report, [key for key in names if key in ORIGIN])

    return [
        section("lineage", "Lineage", whence,
                "From the base to this adapter. Fingerprints and SHA-256 tell whether base and files are the same."),
        section("run", "The run", lambda: facts(report, run)),
        section("configuration", "Versions and configuration",
                lambda: facts(report, [key for key in names if key in AGAIN])),
    ]  # fmt: skip


def facts(report: Mapping[str, Any], names: Iterable[str]) -> list[Block]:
    """Parts of the JSON as they are, each under its name."""
    out = list[Block]()
    for key in names:
        value, path, title = report[key], pointer(key), key.replace("_", " ").capitalize()
        if key in SETTINGS:
            written = yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()
            out.append(Code(written, path, SETTINGS[key]))
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
