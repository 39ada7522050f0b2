"""Tables of how sure the numbers are: intervals, and differences with their tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora.core.routing import BASE
from lora.evaluation.grid import Cell, Grid, pointer
from lora.evaluation.lenient import dicts, entries
from lora.evaluation.shown import Metric, metric_of, number, systems, with_ends

if TYPE_CHECKING:
    from lora.evaluation.result import Evaluation

P_VALUE = Metric("p", ".2g", 0)
VERDICTS = {"better": "green", "worse": "red"}
EXPLAINED = (
    "p: two-sided, that there is no difference; corrected (Holm) for the number of {many}, metric by metric: of 20 "
    "metrics that do not differ about one is found to. What counts is that of the headline, which was named before. "
    '"No difference seen" does not say that there is none: the last column is the smallest difference that these rows '
    "show in 80 % of cases."
)


def certainty(evaluation: Evaluation) -> list[Grid]:
    """All tables of this file that there is something for."""
    return [grid for grid in (intervals(evaluation), comparisons(evaluation), pairs(evaluation)) if grid]


def intervals(evaluation: Evaluation) -> Grid | None:
    """A line per metric, a column per system, each value with its interval."""
    found = {name: dicts(own) for name, own in dicts(evaluation.intervals).items()}
    names = [name for name in systems(evaluation) if found.get(name)]
    keys = list(dict.fromkeys(key for name in names for key in found[name]))
    if not keys:
        return None
    rows: list[list[Cell]] = []
    for key in keys:
        metric = metric_of(evaluation, key)
        row: list[Cell] = [metric.title]
        for name in names:
            own = found[name].get(key, {})
            row.append(with_ends(own, "value", metric, pointer("evaluation", "intervals", name, key)) if own else "–")
        rows.append(row)
    levels = {own.get("level") for each in found.values() for own in each.values()} - {None}
    level = f"{levels.pop():.0%} intervals" if len(levels) == 1 else "Intervals"
    notes = [own["note"] for each in found.values() for own in each.values() if own.get("note")]
    below: list[Cell] = [
        f"{level.replace('%', ' %')}: over other rows drawn like these, so many of such intervals hold the true value. "
        "Two that overlap may still differ: the rows are the same, and the differences below use that.",
        *dict.fromkeys(notes),
    ]
    return Grid("Intervals", ["", *map(evaluation.label, names)], rows, below)


def comparisons(evaluation: Evaluation, keys: Sequence[str] | None = None) -> Grid | None:
    """Each adapter against the base, a line per metric; of ``keys`` alone where these are given."""
    found = {
        name: {key: its for key, its in dicts(own).items() if keys is None or key in keys}
        for name, own in dicts(evaluation.comparisons).items()
    }
    several = len([name for name, own in found.items() if own]) > 1
    rows: list[list[Cell]] = []
    for name, own in found.items():
        for key, its in own.items():
            path = pointer("evaluation", "comparisons", name, key)
            cells = compared(metric_of(evaluation, key), its, path)
            rows.append([name, *cells] if several else cells)
    if not rows:
        return None
    notes = [its["note"] for own in found.values() for its in own.values() if its.get("note")]
    headers = [*(["adapter"] if several else []), *HEADERS]
    return Grid(
        f"Against {BASE}",
        headers,
        rows,
        [EXPLAINED.format(many="adapters"), *dict.fromkeys(notes)],
        left=2 if several else 1,
    )


HEADERS = ["", "difference", "p", "verdict", "could be seen"]


def compared(metric: Metric, its: Mapping[str, Any], path: str, key: str = "difference") -> list[Cell]:
    """A comparison as a line: metric, difference (under ``key``) with its interval, p, verdict, what could be seen."""
    p = "p_corrected" if its.get("p_corrected") is not None else "p_value"
    said = str(its.get("verdict") or "not known")
    return [
        metric.title, with_ends(its, key, metric, path, "+"), number(its.get(p), P_VALUE, f"{path}/{p}"),
        (said, VERDICTS.get(said, "")), number(its.get("detectable"), metric, f"{path}/detectable"),
    ]  # fmt: skip


def pairs(evaluation: Evaluation) -> Grid | None:
    """Adapters against one another."""
    rows: list[list[Cell]] = []
    for place, its in enumerate(entries(evaluation.pairs)):
        if its:
            path = pointer("evaluation", "pairs", place)
            metric = metric_of(evaluation, str(its.get("metric")))
            rows.append([f"{its.get('a')} against {its.get('b')}", *compared(metric, its, path)])
    below: list[Cell] = [EXPLAINED.format(many="pairs")]
    return Grid("Adapters against one another", ["adapters", *HEADERS], rows, below, left=2) if rows else None
