"""What ``compare.json`` holds of the candidates, read leniently: each number with its place there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lora.comparison.candidates import FULL, LOW_RANK, PROBE
from lora.evaluation.grid import Cell, Number, Piece, pointer
from lora.evaluation.lenient import dicts, entries, is_number, mapping

WORDS = {"enough": "enough", "undecided": "cannot tell", "worse": "worse", "unknown": "not known"}
COST_KEYS = {"parameters": "parameters", "memory": "memory_bytes", "seconds": "seconds", "stored": "stored_bytes"}


@dataclass(frozen=True)
class Row:
    """A candidate as ``compare.json`` has it, at ``place`` among all."""

    at: int
    values: dict[str, Any]
    place: int = 1  # of its colour
    shape: int = 1

    @property
    def name(self) -> str:
        return str(self.values.get("name"))

    @property
    def kind(self) -> str:
        return str(self.values.get("kind"))

    @property
    def targets(self) -> str:
        found = self.values.get("targets")
        return ", ".join(map(str, found)) if isinstance(found, list) else str(found)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        return dicts(self.values.get("metrics"))

    def path(self, *keys: object) -> str:
        return pointer("candidates", self.at, *keys)


@dataclass(frozen=True)
class Beside(Row):
    """What is reached without training, where no candidate is that; it stands in tables as they do."""

    def path(self, *keys: object) -> str:
        return pointer("reference", *keys)


@dataclass(frozen=True)
class Told:
    """``compare.json``, read leniently.

    Attributes:
        key, metric: what is compared: as ``metrics`` of candidates have it, and as it is called.
    """

    report: Mapping[str, Any]
    key: str = ""
    metric: str = ""
    candidates: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Told:
        metric = mapping(report.get("metric"))
        found = [(at, its) for at, its in enumerate(entries(report.get("candidates"))) if its]
        rows = [Row(at, its) for at, its in found]
        sets = list(dict.fromkeys(its.targets for its in rows if its.kind == LOW_RANK))
        rows = [replace(its, place=look[0], shape=look[1]) for its in rows if (look := _look(its, sets))]
        return cls(report, str(metric.get("key")), str(metric.get("name") or metric.get("key")), rows)

    def sentences(self, key: str) -> list[Cell]:
        found = self.report.get(key)
        return [str(line) for line in found if line] if isinstance(found, list) else []

    @property
    def reference(self) -> Beside | None:
        its = Beside(-1, mapping(self.report.get("reference")), 0, 0)
        return its if its.metrics else None

    @property
    def measured(self) -> list[Row]:
        """Candidates, and what they are held against."""
        return [*self.candidates, *([self.reference] if self.reference else [])]

    def named(self, name: Any) -> Row | None:
        return next((its for its in self.candidates if its.values.get("name") == name), None)

    def quality(self, row: Row, key: str = "") -> Number:
        key = key or self.key
        return figure(row.metrics.get(key, {}).get("value"), row.path("metrics", key, "value"))

    def interval(self, row: Row, key: str = "") -> list[Number]:
        """Low and high end; empty: there is no interval."""
        key = key or self.key
        own = row.metrics.get(key, {})
        if not all(is_number(own.get(end)) for end in ("value", "low", "high")):
            return []
        return [figure(own[end], row.path("metrics", key, end)) for end in ("low", "high")]

    def with_interval(self, row: Row, key: str = "") -> Cell:
        if not is_number(row.metrics.get(key or self.key, {}).get("value")):
            return "–"
        out: list[Piece] = [self.quality(row, key)]
        if ends := self.interval(row, key):
            out += [" (", ends[0], "–", ends[1], ")"]
        return out

    def level(self, row: Row) -> str:
        level = row.metrics.get(self.key, {}).get("level")
        return f"{level:.0%}".replace("%", " %") if is_number(level) else "95 %"

    def cost(self, row: Row, cost: str) -> tuple[Number, str]:
        """A cost and its unit."""
        key = COST_KEYS[cost]
        value, path = row.values.get(key), row.path(key)
        if not is_number(value):
            return Number("–", None, path), ""
        unit, one = unit_of(cost, value)
        return (scaled(value, path, one), unit) if value else (Number("0", value, path), "")

    def word(self, row: Row) -> str:
        """What it is found to be, in a word or two."""
        if isinstance(row, Beside):
            return "reference"
        best, recommended = (row.name == self.report.get(key) for key in ("best", "recommended"))
        if best or recommended:
            return ", ".join([*(["best"] if best else []), *(["recommended"] if recommended else [])])
        return "stopped" if row.values.get("error") else WORDS.get(str(row.values.get("status")), "not known")


def _look(its: Row, sets: list[str]) -> tuple[int, int]:
    """Colour and shape: a colour for each set of targets, and for each other kind its own."""
    if its.kind == LOW_RANK:
        return (1, 4, 5, 6)[sets.index(its.targets) % 4], 1
    return {FULL: (2, 3), PROBE: (3, 2)}.get(its.kind, (0, 0))


def figure(value: Any, path: str, form: str = ".4g") -> Number:
    """``value`` in the form that ``compare.md`` has it in; a dash without a value where it is none."""
    return Number(format(value, form), value, path) if is_number(value) else Number("–", None, path)


def number(value: Any, path: str, form: str = ".4g") -> Piece:
    """The same in a table: a dash alone where it is none, as ``path`` may then lead nowhere."""
    return figure(value, path, form) if is_number(value) else "–"


def unit_of(cost: str, value: float) -> tuple[str, float]:
    """The unit in which a cost reads well, and its size."""
    if cost == "parameters":
        return "", 1
    if cost == "seconds":
        return next(((unit, one) for unit, one in (("h", 3600), ("min", 60)) if value >= 2 * one), ("s", 1))
    return next(((unit, one) for unit, one in (("GiB", 2**30), ("MiB", 2**20)) if value >= one / 10), ("KiB", 2**10))


def scaled(value: float, path: str, one: float) -> Number:
    """``value`` in units of ``one``; counts and whole seconds without decimals."""
    shown = value / one
    whole = isinstance(value, int) if one == 1 else shown >= 100
    return Number(f"{shown:,.0f}" if whole or shown >= 100 else f"{shown:.3g}", value, path, scale=one)


def share(value: Any, path: str) -> Piece:
    """A share in per cent."""
    if not is_number(value):
        return "–"
    return Number(f"{value:.0%}" if value >= 0.095 else f"{100 * value:.2g}%", value, path)
