"""``lora inspect``: what an adapter folder or a base model holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("path", metavar="ADAPTER|BASE")
@click.option("--json", "as_json", is_flag=True, help="print as JSON")
@click.option(
    "--rank", type=click.IntRange(min=1), default=None, help="rank for the presets' parameter counts (a base model)"
)
@click.option("--trust-remote-code", is_flag=True, help="let the base model's repository run its own code")
def command(path: str, as_json: bool, rank: int | None, trust_remote_code: bool) -> None:
    """Show an adapter folder (settings, modules, lineage), or a base model and what each preset would adapt."""
    from lora.cli import quiet_libraries

    quiet_libraries()
    from lora.io.atomic import recover
    from lora.io.describe import describe_adapter, describe_base
    from lora.io.peft import CONFIG, resolve_folder

    place = Path(path).expanduser()
    recover(place)
    folder = resolve_folder(place) if place.exists() else place
    if (folder / CONFIG).is_file():
        facts = describe_adapter(folder)
    else:
        facts = describe_base(path, rank, trust_remote_code)
    print(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else "\n".join(_lines(facts)))


def _lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list):
            lines += [f"{indent}{key}:", *(f"{indent}  {item}" for item in value)]
        else:
            lines.append(f"{indent}{key}: {f'{value:,}' if type(value) is int else value}")
    return lines
