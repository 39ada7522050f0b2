"""Tables of speed by batch size and length: a line for each of base, adapter and merged adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora.evaluation.grid import Cell, Grid, pointer
from lora.evaluation.shown import COUNT, Metric, mebibytes, number, times
from lora.evaluation.speed_plan import PERCENTILES, SpeedGrid, needed

MILLISECONDS, RATE = Metric("", ",.2f", -1), Metric("", ",.0f")


def speed_tables(grid: SpeedGrid, path: str = "/speed_grid") -> list[Grid]:
    """Forward passes, and writing where it was timed; what was left out stands below.

    Args:
        path: where the grid stands in a report.
    """
    out = []
    if grid.passes:
        headers = ["batch × tokens", "", *_titles("p{}"), "× base (p50)", "tokens/s", "MiB", "times"]
        rows = [line for place, cell in enumerate(grid.passes) for line in _lines(cell, f"{path}/passes/{place}")]
        out.append(Grid("Speed: one forward pass", headers, rows))
    if grid.generation:
        headers = ["prompts", "", *_titles("first token p{}"), "× base (p50)", "tokens/s", "× base", "MiB", "times"]
        rows = [line for place, cell in enumerate(grid.generation)
                for line in _written(cell, f"{path}/generation/{place}")]  # fmt: skip
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


def _lines(cell: dict[str, Any], path: str) -> list[list[Cell]]:
    label = f"{cell['batch_size']} × {cell['length']}"
    return [
        [
            label if not place else "", name, *_percentiles(run, "", at), _factor(run, "p50_ms", MILLISECONDS, at),
            number(run["tokens_per_second"], RATE, f"{at}/tokens_per_second"), *_end(run, cell, at, path),
        ]
        for place, name, run, at in _runs(cell, path)
    ]  # fmt: skip


def _written(cell: dict[str, Any], path: str) -> list[list[Cell]]:
    label = f"{cell['batch_size']} × {cell['prompt_tokens']} tokens"
    return [
        [
            label if not place else "", name, *_percentiles(run, "first_token_", at),
            _factor(run, "first_token_p50_ms", MILLISECONDS, at),
            number(run["tokens_per_second"], RATE, f"{at}/tokens_per_second"),
            _factor(run, "tokens_per_second", RATE, at), *_end(run, cell, at, path),
        ]
        for place, name, run, at in _runs(cell, path)
    ]  # fmt: skip


def _runs(cell: dict[str, Any], path: str) -> Iterator[tuple[int, str, dict[str, Any], str]]:
    for place, (name, run) in enumerate(cell["runs"].items()):
        yield place, name, run, path + pointer("runs", name)


def _percentiles(run: dict[str, Any], prefix: str, path: str) -> list[Cell]:
    keys = [f"{prefix}p{share}_ms" for share in PERCENTILES]
    return [number(run[key], MILLISECONDS, f"{path}/{key}") for key in keys]


def _factor(run: dict[str, Any], key: str, metric: Metric, path: str) -> Cell:
    return times(run["to_base"][key], metric, f"{path}/to_base/{key}") if "to_base" in run else ""


def _end(run: dict[str, Any], cell: dict[str, Any], path: str, above: str) -> list[Cell]:
    return [
        mebibytes(run["peak_memory_bytes"], f"{path}/peak_memory_bytes"),
        number(cell["repetitions"], COUNT, f"{above}/repetitions"),
    ]
