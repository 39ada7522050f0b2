"""The page of a comparison, from what ``compare.json`` holds: its head, and its sections in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from lora.comparison import charts, tables
from lora.comparison.told import Told
from lora.evaluation.facts import fact_grids
from lora.evaluation.grid import Cell
from lora.evaluation.html.blocks import Block, Head, Keys, Lines, Panels, Table, Tile, section
from lora.evaluation.html.page import document
from lora.evaluation.html.running import facts
from lora.evaluation.lenient import mapping
from lora.evaluation.saved import COMPARISON, MARKDOWNS

OWN = ("model", "task", "base_parameters", "rows", "budget", "seeds", "margin")
AGAIN = ("versions", "config", "asked")


def render(report: Mapping[str, Any], file: str = COMPARISON) -> str:
    """The page of a comparison, as ``compare.json`` holds it: one document that loads nothing.

    Args:
        report: of this version of lora or another; what is not there, or not of the shape that is known, is left out.
        file: the name of the JSON that it is from.
    """
    told, keys = Told.of(report), Keys()
    sections = [
        section("candidates", "Candidates", lambda: _candidates(told, keys)),
        section("costs", "Quality and cost", lambda: _costs(told, keys),
                "Ringed: no other candidate is better in both; the broken line joins these, the Pareto front. Bars: "
                "95 % intervals. By the figures as they are: that one lies on the front by a hair shows nothing."),
        section("metrics", "All metrics", lambda: _tables(tables.metrics(told))),
        section("rates", "Learning rates", lambda: [*_panels(charts.rates(told, keys)), *_tables(tables.rates(told))],
                "On the validation rows. The ring marks the rate that was chosen."),
        section("updates", "Which layers used their rank",
                lambda: [*_tables(tables.updates(told)), *_panels(charts.updates(told, keys))],
                "Of the update ΔW that training added to each weight matrix. Lines: the share of its energy "
                "that the best approximation of a rank keeps, in the median layer. Maps: effective ranks; the darker, "
                "the more of the rank is used."),
        section("notes", "Notes", lambda: _lines(told.sentences("notes"))),
        section("protocol", "Protocol", lambda: _lines(told.sentences("protocol"))),
        section("configuration", "Versions and configuration",
                lambda: [*_settings(report), *facts(report, [key for key in AGAIN if report.get(key)])]),
    ]  # fmt: skip
    head = Head("Comparison", _name(told), str(report.get("task") or ""),
                str(report.get("recommendation") or "Nothing is recommended."), _tiles(told))  # fmt: skip
    return document(head, sections, file, mapping(report.get("versions")).get("lora"))


def as_file(report: Mapping[str, Any], file: Path, source: str = COMPARISON) -> str:
    """The comparison as the text of ``file``: by its ending Markdown, else the page. ``source``: of the JSON."""
    return tables.markdown(dict(report)) if file.suffix.lower() in MARKDOWNS else render(report, source)


def _name(told: Told) -> str:
    output = mapping(told.report.get("config")).get("output")
    return (PurePath(str(output)).name or str(output)) if output else "LoRA against full fine-tuning"


def _candidates(told: Told, keys: Keys) -> list[Block]:
    return [*_tables(tables.overview(told), sortable=True), *_panels(charts.quality(told, keys)),
            *_tables(tables.costs(told), heading=True, sortable=True)]  # fmt: skip


def _costs(told: Told, keys: Keys) -> list[Block]:
    return [*_panels(charts.costs(told, keys)), *_tables(tables.fronts(told), heading=True)]


def _tables(grid: Any, heading: bool = False, sortable: bool = False) -> list[Block]:
    return [Table(grid, heading=heading, sortable=sortable)] if grid.rows else []


def _panels(panels: list[Any]) -> list[Block]:
    return [Panels(panels)] if panels else []


def _lines(lines: list[Cell]) -> list[Block]:
    return [Lines(lines, points=True)] if lines else []


def _settings(report: Mapping[str, Any]) -> list[Block]:
    own = {key: report[key] for key in OWN if report.get(key) not in (None, "", [], {})}
    return [Table(grid, heading=False) for grid in fact_grids("comparison", own, "")]


def _tiles(told: Told) -> list[Tile]:
    """The recommended candidate: its quality, and what it takes beside full fine-tuning."""
    own = told.named(told.report.get("recommended"))
    if own is None or told.quality(own).value is None:
        return []
    best = told.named(told.report.get("best"))
    number = told.quality(own)
    ends = told.interval(own)
    interval: Cell = [f"{told.level(own)} interval ", ends[0], "–", ends[1]] if ends else ""
    beside: Cell = ""
    if best is not None and best.name != own.name:
        beside = [f"best: {best.name} ", told.quality(best)]
    out = [Tile(f"{told.metric}, {own.name}", number, "", interval, beside, told.word(own), "good", own.place)]
    full = next((its for its in told.candidates if its.kind == "full"), None)
    for cost, title in charts.COSTS.items():
        figure, unit = told.cost(own, cost)
        if figure.value is None:
            continue
        against: Cell = ""
        if full is not None and full is not own:
            other, its_unit = told.cost(full, cost)
            against = [f"{full.name}: ", other, f" {its_unit}".rstrip()] if other.value is not None else ""
        out.append(Tile(title, figure, unit, beside=against, place=-1))
    return out
