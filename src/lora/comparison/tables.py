"""Tables of a comparison, from what ``compare.json`` holds: on its page, in ``compare.md``, in a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from lora.comparison.alone import STEPS
from lora.comparison.told import Row, Told, number, share
from lora.evaluation.grid import Cell, Grid, Number, Piece, escape, text
from lora.evaluation.lenient import dicts, entries, is_number, mapping

FRONTS = {"parameters": "trained parameters", "memory": "peak memory", "seconds": "training time",
          "stored": "stored size", "all": "all of them together"}  # fmt: skip
UPDATES = ("", "effective rank, median", "rank for 90 %", "rank for 99 %", "rank 1 keeps", "used most", "used least")
ABOUT_UPDATES = (
    "Effective rank: exp of the entropy of the singular values of ΔW (Roy and Vetterli, 2007). Rank for 90 %: the "
    "smallest whose best approximation keeps that share of the sum of squares; the median layer's, and the largest. "
    "Energy is not quality: a small part of it may be what counts."
)


def about_quality(margin: float) -> str:
    """How to read the table of quality."""
    return (
        f"Enough: not found worse than the best, and shown to be within {margin:.3g} of it. Seeds ±: standard "
        "deviation between runs. To: difference and p, corrected for the number of candidates (Holm)."
    )


def about_costs(memory_kind: str | None, at_the_end: bool) -> list[str]:
    """How to read the table of costs."""
    out = []
    if memory_kind:
        out.append(
            f"Memory and time: of {STEPS} steps alone, in a process of its own; the time is that of a whole run at "
            f"that speed, evaluations left out. Memory: {memory_kind}. Full fine-tuning keeps the frozen base beside "
            "its own weights."
        )
    return out + (["!: the last rate that was tried, so that a better one may lie beyond."] if at_the_end else [])


def overview(told: Told) -> Grid:
    """Quality of each candidate, and what the tests say."""
    rows = mapping(told.report.get("rows"))
    headers = ["", "found", f"{told.metric} (95 %)", "seeds ±", "to the best", "to full"]
    test = f" on {rows['test']:,} test rows" if is_number(rows.get("test")) else ""
    grid = Grid(f"{len(told.candidates)} candidates{test}", headers, [], left=2)
    for its in told.measured:
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
    if (beside := told.reference) is not None:
        grid.below.append(
            f"{beside.name}: {beside.values.get('said')}. Who is not better than that is not shown to have learned."
        )
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
    alive = [its for its in told.measured if its.metrics]
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


def grids(told: Told) -> list[Grid]:
    """All tables that there is something for, as ``compare.md`` has them."""
    every = (overview(told), costs(told), fronts(told), metrics(told), rates(told), updates(told))
    return [grid for grid in every if grid.rows]


def markdown(report: Mapping[str, Any]) -> str:
    """A comparison, as ``compare.json`` holds it, in Markdown; headings of level 1 and 2."""
    told = Told.of(report)
    out = ["# LoRA against full fine-tuning", "", escape(str(report.get("recommendation") or "")), ""]
    if adapter := report.get("adapter"):
        out += [f"Adapter: `{adapter}`", ""]
    out += [grid.markdown() for grid in grids(told)]
    for title, lines in (("Protocol", told.sentences("protocol")), ("Notes", told.sentences("notes"))):
        if lines:
            out += [f"## {title}", "", *(f"- {escape(text(line))}" for line in lines), ""]
    return "\n".join(out)
