"""``lora plan``: what a training run will need, before anything is loaded."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from lora.cli.options import ConfigCommand, config_options

if TYPE_CHECKING:
    from lora.checks.run_plan import RunPlan


@click.command(cls=ConfigCommand)
@click.argument("config_file", required=False, metavar="[CONFIG.yaml]")
@click.option("--length", type=click.IntRange(min=2), help="tokens of a row, in place of those of the data")
@click.option("--device-gib", type=click.FloatRange(min=0, min_open=True), metavar="NUMBER",
              help="memory of a device that you do not have here, weights included")  # fmt: skip
@click.option("--quick", is_flag=True, help="do not look for the largest batch and length, nor for remedies")
@click.option("--json", "as_json", is_flag=True, help="print as JSON")
@config_options()
def command(
    config_file: str | None, length: int | None, device_gib: float | None, quick: bool, as_json: bool,
    overrides: dict[str, Any],
) -> int:  # fmt: skip
    """Say what a training run will need: memory, disk, time, and what fits.

    Options and file are those of `lora train`; no weight is read and nothing is written. Without data, give --length.
    The exit code is 2 where the run does not fit.

    \b
    lora plan --model BASE --data train.jsonl
    lora plan --model BASE --length 1024 --batch-size 8 --device-gib 24
    lora plan config.yaml --json
    """
    from lora.cli import quiet_libraries
    from lora.overrides import load_config

    config = load_config(config_file, overrides)
    quiet_libraries()
    from lora.workflow.planning import plan

    found = plan(config, length=length, device_gib=device_gib, search=not quick)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _show(found)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not found.fits:
        print(_does_not_fit(found), file=sys.stderr)
    return 0 if found.fits else 2


def _show(found: RunPlan) -> None:
    from rich.table import Table

    from lora.cli.show import console
    from lora.training.memory import gib

    table = Table(title=f"Memory for {found.model}", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    for part, size in found.memory.items():
        table.add_row(part, gib(size) if size >= 0 else f"-{gib(-size)}")
    table.add_section()
    table.add_row("peak of the run", gib(found.peak))
    if "checks" in found.phases:
        table.add_row("tensors in the checks before it", gib(found.phases["checks"]))
    table.add_row("the process before it", gib(found.process))
    table.add_row("there is, beside the process", gib(found.available))
    console().print(table)
    for line in _lines(found, gib):
        print(line)


def _lines(found: RunPlan, gib: Any) -> list[str]:
    trained = sum(found.trainable.values())
    by_kind = ", ".join(f"{kind} {count:,}" for kind, count in found.trainable.items())
    share = 100 * trained / max(1, found.parameters)
    out = [
        f"Parameters: {found.parameters:,}; trained: {trained:,} ({share:.2f} %): {by_kind}",
        f"Largest batch: {found.batch} rows of up to {found.length:,} tokens, {found.tokens:,} in a pass, "
        + ("packed" if found.packed else "padded") + (", layers recomputed in the backward" if found.recompute else ""),
        "Disk: " + ", ".join(f"{what} {gib(size)}" for what, size in found.disk.items()),
    ]  # fmt: skip
    out += _pace(found)
    if found.largest_batch is not None:
        out.append(f"Largest batch that fits at this length: {found.largest_batch:,}")
        out.append(f"Largest length that fits at this batch: {found.largest_length:,}")
    return out + found.notes + ([f"fit will say: {found.says}"] if found.says else [])


def _pace(found: RunPlan) -> list[str]:
    if found.pace is None or found.step_seconds is None:
        return []
    least, most = found.step_seconds
    total = ""
    if found.run_seconds is not None:
        total = f"; {found.steps:,} steps: {_time(found.run_seconds[0])} to {_time(found.run_seconds[1])}"
    out = [
        f"Time, an estimate: {least:.3g} to {most:.3g} s a step{total}, without evaluations and saving",
        f"  as measured here just now by {found.pace.how}",
    ]
    if found.pace.busy:
        out.append(
            f"  This machine is busy (load {found.pace.load:.1f} on {found.pace.cores} cores): with it to itself "
            "the run goes faster, beside more work slower"
        )
    return out


def _time(seconds: float) -> str:
    for unit, one in (("h", 3600), ("min", 60)):
        if seconds >= one:
            return f"{seconds / one:.1f} {unit}"
    return f"{seconds:.0f} s"


def _does_not_fit(found: RunPlan) -> str:
    from lora.training.memory import gib

    if found.available <= 0:
        return (
            f"error: no run fits: the process alone takes {gib(found.process)} before the base is loaded, which is all "
            f"that there is or more. This run takes {gib(found.peak)} beside it."
        )
    said = f"error: this run does not fit: it takes {gib(found.peak)}, and there is {gib(found.available)}."
    if found.remedies and found.remedies[-1][1] > found.available:
        said += " Nothing that can be changed here makes it fit. It takes less with, each beside those above it:"
    elif found.remedies:
        said += " What takes less, each beside those above it:"
    for words, peak in found.remedies:
        said += f"\n  {words}: {gib(peak)}" + (", which fits" if peak <= found.available else "")
    return said
