"""``lora check``: verify before training that a run can succeed."""

from __future__ import annotations

import json
from typing import Any

import click

from lora.cli.options import ConfigCommand, config_options

MARKS = {"passed": ("✓", "green"), "note": ("!", "yellow"), "failed": ("✗", "bold red"), "skipped": ("–", "dim")}


@click.command(cls=ConfigCommand)
@click.argument("config_file", required=False, metavar="[CONFIG.yaml]")
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
@config_options()
def command(config_file: str | None, as_json: bool, overrides: dict[str, Any]) -> int:
    """Verify that a run can succeed, with the settings of `lora train`.

    Data, base and adapter are loaded as for training, a few rows are tried, nothing is written. `lora train` does the
    same by itself and stops where something failed; --no-check leaves it out there. Exit code 2: something failed.

    \b
    lora check --model BASE --data train.jsonl
    lora check config.yaml --json
    """
    from lora.cli import quiet_libraries
    from lora.overrides import load_config

    config = load_config(config_file, overrides)  # errors in settings before the seconds that torch takes
    quiet_libraries()
    from lora import workflow
    from lora.cli.show import say

    found = workflow.check(config, None if as_json else say)
    failed = any(finding.status == "failed" for its in found.values() for finding in its)
    if as_json:
        print(json.dumps({name: [one.to_dict() for one in its] for name, its in found.items()}, indent=2))
    else:
        _show(found)
    return 2 if failed else 0


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from lora.cli.show import console

    for name, findings in found.items():
        table = Table(title=f"Checks before training: {name}", box=None, show_header=False, title_justify="left")
        for column in range(3):
            table.add_column(overflow="fold", ratio=None if column < 2 else 1)
        for finding in findings:
            mark, style = MARKS[finding.status]
            said = Text(finding.said)
            if finding.status != "passed":
                said.append("".join(f"\n{part}" for part in (finding.why, finding.remedy) if part), style="dim")
            table.add_row(Text(mark, style=style), finding.check, said)
        console().print(table)
        counts = {status: sum(one.status == status for one in findings) for status in MARKS}
        print(", ".join(f"{count} {status}" for status, count in counts.items() if count))
