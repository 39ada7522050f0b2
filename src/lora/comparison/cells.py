"""Tables of a comparison's page: those of ``compare.md``, each number with its place in ``compare.json``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lora.comparison.candidates import FULL, LOW_RANK, PROBE
from lora.comparison.tables import ABOUT_UPDATES, FRONTS, UPDATES, WORDS, about_costs, about_quality
from lora.evaluation.grid import Cell, Grid, Number, Piece, pointer
from lora.evaluation.lenient import dicts, entries, is_number, mapping

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


def overview(told: Told) -> Grid:
    """Quality of each candidate, and what the tests say."""
    rows = mapping(told.report.get("rows"))
    headers = ["", "found", f"{told.metric} (95 %)", "seeds ±", "to the best", "to full"]
    test = f" on {rows['test']:,} test rows" if is_number(rows.get("test")) else ""
    grid = Grid(f"{len(told.candidates)} candidates{test}", headers, [], left=2)
    for its in told.candidates:
        word = told.word(its)
        style = "green" if "recommended" in word else "red" if word in ("worse", "stopped") else ""
        spread = its.metrics.get(told.key, {}).get("spread")
        grid.rows.append([
            its.name, (word, style), told.with_interval(its),
            number(spread, its.path("metrics", told.key, "spread"), ".2g") if is_number(spread) else "",
            *(_difference(its, key) for key in ("against_best", "against_full")),
        ])  # fmt: skip
    if is_number(told.report.get("margin")):
        grid.below.append(about_quality(told.report["margin"]))
    grid.below += [f"{its.name}: {its.values['error']}." for its in told.candidates if its.values.get("error")]
    return grid


def _difference(its: Row, key: str) -> Cell:
    own = mapping(its.values.get(key))
    if not is_number(own.get("difference")):
        return ""
    out: list[Piece] = [number(own["difference"], its.path(key, "difference"), "+.3g")]
    if is_number(own.get("p_corrected")):
        out += [" (p=", number(own["p_corrected"], its.path(key, "p_corrected"), ".2g"), ")"]
    return out


def costs(told: Told) -> Grid:
    """What each candidate takes."""
    headers = ["", "learning rate", "trained", "of the base", "peak memory", "time", "stored"]
    grid, at_the_end = Grid("What they take", headers, []), False
    for its in told.candidates:
        if not is_number(its.values.get("parameters")):
            continue
        rate, end = its.values.get("learning_rate"), bool(its.values.get("rate_at_the_end"))
        at_the_end = at_the_end or end
        chosen: Cell = [number(rate, its.path("learning_rate"), ".3g"), "!" if end else ""] if is_number(rate) else ""
        grid.rows.append([
            its.name, chosen, told.cost(its, "parameters")[0],
            share(its.values.get("parameters_share"), its.path("parameters_share")),
            *(_with_unit(*told.cost(its, cost)) for cost in ("memory", "seconds", "stored")),
        ])  # fmt: skip
    kind = next((kind for its in told.candidates if (kind := its.values.get("memory_kind"))), None)
    grid.below += about_costs(kind and str(kind), at_the_end)
    grid.below += [f"{its.name}: memory and time alone could not be measured ({its.values['alone_error']})."
                   for its in told.candidates if its.values.get("alone_error")]  # fmt: skip
    return grid


def _with_unit(took: Number, unit: str) -> Cell:
    if took.value is None:
        return "–"
    return [took, f" {unit}"] if unit else took


def metrics(told: Told) -> Grid:
    """All metrics of the test rows; nothing where the one that is compared is all there is."""
    alive = [its for its in told.candidates if its.metrics]
    names = {key: str(own.get("metric") or key) for its in alive for key, own in its.metrics.items()}
    rows: list[list[Cell]] = [[its.name, *(told.with_interval(its, key) for key in names)] for its in alive]
    return Grid("All metrics on the test rows (95 %)", ["", *names.values()], rows if len(names) > 1 else [])


def rates(told: Told) -> Grid:
    """The value of every learning rate on the validation rows."""
    grid = Grid("Learning rates", ["", "rate: value"], [], texts=True)
    for its in told.candidates:
        cell = list[Piece]()
        for at, tried in enumerate(entries(its.values.get("rates"))):
            cell += ["; "] if cell else []
            cell += [number(tried.get("learning_rate"), its.path("rates", at, "learning_rate"), ".3g"), ": "]
            value = number(tried.get("value"), its.path("rates", at, "value"))
            cell += ["stopped" if value == "–" and tried.get("error") else value]
            cell += [" ←"] if tried.get("learning_rate") == its.values.get("learning_rate") is not None else []
        if cell:
            grid.rows.append([its.name, cell])
        if is_number(extended := its.values.get("rate_extended")):
            rest = "; the best still lies at the end." if its.values.get("rate_at_the_end") else "."
            grid.below.append([f"{its.name}: the grid was extended to ",
                               number(extended, its.path("rate_extended"), ".3g"), rest])  # fmt: skip
    return grid


def updates(told: Told) -> Grid:
    """What the layers' updates are like."""
    grid = Grid("Which layers used their rank", list(UPDATES), [], left=len(UPDATES))
    for its in told.candidates:
        found, path = mapping(its.values.get("spectrum")), its.path("spectrum")
        if not found:
            continue
        shared = _shared(list(dicts(its.values.get("layers"))))
        cells: list[Cell] = [[number(found.get("effective_rank"), f"{path}/effective_rank", ".1f"), " of ",
                              number(found.get("rank"), f"{path}/rank", ",d")]]  # fmt: skip
        for key in ("rank_90", "rank_99"):
            own = mapping(found.get(key))
            cells.append([number(own.get("median"), f"{path}/{key}/median", "g"), ", ",
                          number(own.get("largest"), f"{path}/{key}/largest", "g")])  # fmt: skip
        kept = mapping(found.get("kept_by_rank"))
        cells.append(share(kept["1"], f"{path}/kept_by_rank/1") if "1" in kept else "")
        for key in ("used_most", "used_least"):
            first = (found.get(key) or [None])[0]
            cells.append(
                [f"{str(first[0]).removeprefix(shared)} (", number(first[1], f"{path}/{key}/0/1", ".1f"), ")"]
                if first
                else ""
            )
        grid.rows.append([its.name, *cells])
        if its.kind == "full" and kept:
            parts: list[Piece] = ["Of the energy of what full fine-tuning changed, in the median layer is kept: "]
            for place, rank in enumerate(kept):
                at = its.path("spectrum", "kept_by_rank", rank)
                parts += [", " if place else "", share(kept[rank], at), f" by rank {rank}"]
            grid.below.append([*parts, "."])
    grid.below.append(ABOUT_UPDATES)
    return grid


def _shared(paths: list[str]) -> str:
    """What the paths of modules begin with alike, up to a dot."""
    levels = zip(*(path.split(".")[:-1] for path in paths), strict=False)
    return "".join(f"{level[0]}." for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels))


def fronts(told: Told) -> Grid:
    """Who lies on which Pareto front."""
    found = mapping(told.report.get("fronts"))
    rows: list[list[Cell]] = [
        [title, ", ".join(map(str, found[cost]))] for cost, title in FRONTS.items() if isinstance(found.get(cost), list)
    ]
    return Grid("Pareto fronts", [f"{told.metric} against", "no other is better in both"], rows, texts=True)
