"""Tables of a comparison: candidates with quality and cost, learning rates, what their updates are like."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

from lora.comparison.alone import STEPS
from lora.comparison.words import percent
from lora.evaluation.grid import Cell, Grid, escape
from lora.statistics.compare import Comparison
from lora.statistics.estimate import Estimate
from lora.training.memory import gib

if TYPE_CHECKING:
    from lora.comparison.result import ComparisonResult

WORDS = {"enough": "enough", "undecided": "cannot tell", "worse": "worse", "unknown": "not known"}
FRONTS = {"parameters": "trained parameters", "memory": "peak memory", "seconds": "training time",
          "stored": "stored size", "all": "all of them together"}  # fmt: skip
UPDATES = ("", "effective rank, median", "rank for 90 %", "rank for 99 %", "rank 1 keeps", "used most", "used least")
ABOUT_UPDATES = (
    "Effective rank: exp of the entropy of the singular values of ΔW (Roy and Vetterli, 2007). Rank for 90 %: the "
    "smallest whose best approximation keeps that share of the sum of squares; the median layer's, and the largest. "
    "Energy is not quality: a small part of it may be what counts."
)


def overview(result: ComparisonResult) -> Grid:
    """Quality of each candidate, and what the test against the best says."""
    headers = ["", f"{result.metric.name} (95 %)", "seeds ±", "to the best", "to full", ""]
    grid = Grid(f"{len(result.measured)} candidates on {result.rows['test']:,} test rows", headers, [])
    for its in result.measured:
        entry = next((entry for entry in result.entries if entry.name == its.name), None)
        if entry is None:
            grid.rows.append([its.name, "–", "", "", "", "stopped"])
            continue
        status = WORDS[result.verdict.word(its.name) or "unknown"]
        if its.name == result.verdict.best:
            status = "best"
        if its.name == result.verdict.recommended:
            status = "recommended" if status != "best" else "best, recommended"
        style = "green" if "recommended" in status else "red" if status == "worse" else ""
        grid.rows.append([
            (its.name, style), interval(entry.quality), spread(list(its.by_seed(result.key).values())),
            _difference(entry.against_best), _difference(entry.against_full), (status, style),
        ])  # fmt: skip
    grid.below.append(about_quality(result.verdict.margin))
    return grid


def about_quality(margin: float) -> str:
    """How to read the table of quality."""
    return (
        f"Enough: not found worse than the best, and shown to be within {margin:.3g} of it. Seeds ±: standard "
        "deviation between runs. To: difference and p, corrected for the number of candidates (Holm)."
    )


def costs(result: ComparisonResult) -> Grid:
    """What each candidate takes."""
    headers = ["", "learning rate", "trained", "of the base", "peak memory", "time", "stored"]
    grid = Grid("What they take", headers, [])
    for its in result.measured:
        if its.parameters is None:
            continue
        took, rate = its.costs(), its.chosen.rate
        grid.rows.append([
            its.name, "" if rate is None else f"{rate:.3g}" + ("!" if its.chosen.at_the_end else ""),
            f"{its.parameters:,}", percent(its.parameters / max(1, result.base_parameters)), _size(took["memory"]),
            _time(took["seconds"]), _size(took["stored"]),
        ])  # fmt: skip
    kind = next((its.alone.get("kind") for its in result.measured if its.alone.get("kind")), None)
    grid.below += about_costs(kind, any(its.chosen.at_the_end for its in result.measured))
    return grid


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


def interval(its: Estimate) -> str:
    if math.isnan(its.value):
        return "–"
    return f"{its.value:.4g}" + ("" if math.isnan(its.low) else f" ({its.low:.4g}–{its.high:.4g})")


def spread(values: list[float]) -> str:
    """`deviation` as a text; nothing of one run."""
    return "" if math.isnan(found := deviation(values)) else f"{found:.2g}"


def deviation(values: list[float]) -> float:
    """Standard deviation between runs; nan of one."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def _difference(its: Comparison | None) -> str:
    if its is None or math.isnan(its.difference):
        return ""
    return f"{its.difference:+.3g}" + ("" if math.isnan(its.p_corrected) else f" (p={its.p_corrected:.2g})")


def _size(size: float | None) -> str:
    return "–" if size is None else gib(size) if size else "0"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, one in (("h", 3600), ("min", 60)):
        if seconds >= 2 * one:
            return f"{seconds / one:.1f} {unit}"
    return f"{seconds:.0f} s"


def rates(result: ComparisonResult) -> Grid:
    """The value of every learning rate on the validation rows."""
    grid = Grid(f"Learning rates: {result.metric.name} on the validation rows", ["", "rate: value"], [], texts=True)
    for its in result.measured:
        cells = []
        for rate, found in sorted(its.chosen.tried.items()):
            value = "stopped" if found.value is None else f"{found.value:.4g}"
            cells.append(f"{rate:.3g}: {value}" + (" ←" if rate == its.chosen.rate else ""))
        if cells:
            grid.rows.append([its.name, "; ".join(cells)])
    for its in result.measured:
        if its.chosen.extended is not None:
            rest = "; the best still lies at the end." if its.chosen.at_the_end else "."
            grid.below.append(f"{its.name}: the grid was extended to {its.chosen.extended:.3g}{rest}")
    return grid


def metrics(result: ComparisonResult) -> Grid:
    """All metrics of the test rows with their intervals."""
    alive = [its for its in result.measured if its.estimates]
    keys = list(dict.fromkeys(key for its in alive for key in its.estimates))
    rows: list[list[Cell]] = [[its.name, *(interval(its.estimates[key]) for key in keys)] for its in alive]
    names = [alive[0].estimates[key].metric for key in keys] if alive else []
    return Grid("All metrics on the test rows (95 %)", ["", *names], rows)


def updates(result: ComparisonResult) -> Grid:
    """What the layers' updates are like: effective ranks, and ranks that keep their energy."""
    grid = Grid("Which layers used their rank", list(UPDATES), [], texts=True)
    for its in result.measured:
        found = its.spectrum
        if found is None:
            continue
        of = f" of {found['rank']}"
        kept = found["kept_by_rank"].get(1)
        grid.rows.append([
            its.name, f"{found['effective_rank']:.1f}{of}",
            *(f"{found[key]['median']:g}, {found[key]['largest']}" for key in ("rank_90", "rank_99")),
            "" if kept is None else f"{kept:.0%}", _layer(found["used_most"]), _layer(found["used_least"]),
        ])  # fmt: skip
        if its.kind == "full" and grid.rows:
            shares = ", ".join(f"{share:.0%} by rank {rank}" for rank, share in found["kept_by_rank"].items())
            grid.below.append(f"Of the energy of what full fine-tuning changed, in the median layer is kept: {shares}.")
    grid.below.append(ABOUT_UPDATES)
    return grid


def _layer(found: list[Any]) -> str:
    return f"{found[0][0]} ({found[0][1]:.1f})" if found else ""


def front(result: ComparisonResult) -> Grid:
    """Who lies on which Pareto front."""
    rows: list[list[Cell]] = [[FRONTS[cost], ", ".join(found)] for cost, found in result.verdict.fronts.items()]
    return Grid("Pareto fronts", [f"{result.metric.name} against", "no other is better in both"], rows, texts=True)


def markdown(result: ComparisonResult) -> str:
    head = ["# LoRA against full fine-tuning", "", escape(result.recommendation), ""]
    adapter = result.adapter()
    if adapter:
        head += [f"Adapter: `{adapter}`", ""]
    grids = [overview(result), costs(result), front(result), metrics(result), rates(result)]
    grids += [grid] if (grid := updates(result)).rows else []
    tail = ["## Protocol", "", *(f"- {escape(line)}" for line in result.protocol), ""]
    stopped = [f"{its.name}: {its.error}." for its in result.measured if its.error]
    if result.notes or stopped:
        tail += ["## Notes", "", *(f"- {escape(line)}" for line in [*stopped, *result.notes]), ""]
    return "\n".join([*head, *(grid.markdown() for grid in grids), *tail])
