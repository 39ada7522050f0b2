"""Tables of speed by batch size and length: a line for each of base, adapter and merged adapter."""

from __future__ import annotations

from typing import Any

from lora.evaluation.grid import Cell, Grid
from lora.evaluation.speed_grid import PERCENTILES, SpeedGrid, needed
from lora.evaluation.tables import Metric, shown, times

MILLISECONDS, RATE = Metric("", ",.2f", -1), Metric("", ",.0f")


def speed_tables(grid: SpeedGrid) -> list[Grid]:
    """Forward passes, and writing where it was timed; what was left out stands below."""
    out = []
    if grid.passes:
        headers = ["batch × tokens", "", *_titles("p{}"), "× base (p50)", "tokens/s", "MiB", "times"]
        rows = [line for cell in grid.passes for line in _lines(cell, f"{cell['batch_size']} × {cell['length']}")]
        out.append(Grid("Speed: one forward pass", headers, rows))
    if grid.generation:
        headers = ["prompts", "", *_titles("first token p{}"), "× base (p50)", "tokens/s", "× base", "MiB", "times"]
        rows = [line for cell in grid.generation for line in _written(cell)]
        new = grid.generation[0]["new_tokens"]
        out.append(Grid(f"Speed: writing {new} tokens", headers, rows))
    if out:
        least = ", ".join(f"{needed(share)} times for the {share}th percentile" for share in PERCENTILES[1:])
        out[-1].below += [
            "×: how many times the base's, with its 95 % interval; one that holds 1 shows no difference. A dash: too "
            f"few times ({least}). MiB: peak memory, {grid.peak_memory_kind}; copies of the base in use elsewhere "
            "are taken off.",
        ]
    if not out and grid.notes:
        out.append(Grid("Speed", [], []))
    if out:
        out[-1].below += grid.notes
    return out


def _titles(form: str) -> list[str]:
    return [f"{form.format(share)}, ms" for share in PERCENTILES]


def _lines(cell: dict[str, Any], label: str) -> list[list[Cell]]:
    return [
        [
            label if not place else "", name, *_percentiles(run, ""), _factor(run, "p50_ms", MILLISECONDS),
            shown(run["tokens_per_second"], RATE), *_end(run, cell),
        ]
        for place, (name, run) in enumerate(cell["runs"].items())
    ]  # fmt: skip


def _written(cell: dict[str, Any]) -> list[list[Cell]]:
    label = f"{cell['batch_size']} × {cell['prompt_tokens']} tokens"
    return [
        [
            label if not place else "", name, *_percentiles(run, "first_token_"),
            _factor(run, "first_token_p50_ms", MILLISECONDS), shown(run["tokens_per_second"], RATE),
            _factor(run, "tokens_per_second", RATE), *_end(run, cell),
        ]
        for place, (name, run) in enumerate(cell["runs"].items())
    ]  # fmt: skip


def _percentiles(run: dict[str, Any], prefix: str) -> list[Cell]:
    return [shown(run[f"{prefix}p{share}_ms"], MILLISECONDS) for share in PERCENTILES]


def _factor(run: dict[str, Any], key: str, metric: Metric) -> Cell:
    return times(run["to_base"][key], metric) if "to_base" in run else ""


def _end(run: dict[str, Any], cell: dict[str, Any]) -> list[Cell]:
    return [f"{run['peak_memory_bytes'] / 2**20:,.0f}", str(cell["repetitions"])]
