"""``lora compare``: LoRA against full fine-tuning, on one's own data."""

from __future__ import annotations

import json
from typing import Any

import click

from lora.cli.options import ConfigCommand, config_options, listed
from lora.config import ComparisonConfig
from lora.errors import ConfigError


@click.command(cls=ConfigCommand)
@click.argument("config_file", required=False, metavar="[CONFIG.yaml]")
@click.option("--ranks", metavar="1,4,16", help="ranks of the LoRA candidates (default: 1,4,16,64)")
@click.option(
    "--target-sets", metavar="SETS",
    help="targets of the LoRA candidates, as in all-linear,attention; of several names: q_proj+v_proj",
)  # fmt: skip
@click.option("--rate-factors", metavar="0.33,1,3", help="learning rates tried: times each kind's own default")
@click.option("--seeds", type=int, metavar="N", help="runs of each candidate at its chosen rate (default: 3)")
@click.option("--margin", type=float, metavar="NUMBER", help="loss of the metric that would not matter")
@click.option("--test", metavar="DATA", help="test data (default: the source's test split, else split off)")
@click.option("--linear-probe/--no-linear-probe", default=None, help="the base with its task head trained alone")
@click.option("--full/--no-full", default=None, help="full fine-tuning")
@click.option("--alone/--no-alone", default=None, help="measure memory and time of each in a process of its own")
@click.option("--resume", "resume_folder", metavar="FOLDER", help="go on with the comparison in this folder")
@click.option("--overwrite", is_flag=True, help="replace the comparison that the output folder holds")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
@click.option("--quiet", "-q", is_flag=True, help="print the result alone")
@config_options()
def command(
    config_file: str | None, resume_folder: str | None, overwrite: bool, as_json: bool, quiet: bool,
    overrides: dict[str, Any], **asked: Any,
) -> None:  # fmt: skip
    """Compare LoRA with full fine-tuning: --model, --data and --output are enough.

    The base with a trained head, LoRA of several ranks and targets, and full fine-tuning, on the same rows and for as
    many epochs, each with its learning rate chosen on validation rows. Options and file are those of `lora train`; they
    hold for all candidates.

    \b
    lora compare --model BASE --data folder --output runs/compared
    lora compare -m BASE -d rows.jsonl -o out --ranks 1,8 --target-sets attention,mlp --seeds 1
    lora compare --resume runs/compared
    """
    from lora.cli import quiet_libraries
    from lora.overrides import load_config

    given = {key: value for key, value in asked.items() if value is not None}
    for key in ("ranks", "rate_factors", "target_sets"):
        if key in given:
            given[key] = listed(given[key])
    if "target_sets" in given:
        given["target_sets"] = [one.split("+") if "+" in one else one for one in given["target_sets"]]
    config: Any = resume_folder
    wanted: ComparisonConfig | None = None
    if resume_folder:
        if config_file or overwrite or given or overrides:
            raise ConfigError("--resume goes on under the comparison's own settings; leave other options out")
    else:  # errors in settings before the seconds that torch takes
        wanted, config = ComparisonConfig.make(given), load_config(config_file, overrides)
    quiet_libraries()
    from lora.cli.show import console, say
    from lora.comparison.compare import compare

    found = compare(
        config, wanted, resume=bool(resume_folder), overwrite=overwrite, say=None if quiet else say,
        progress=False if quiet else None,
    )  # fmt: skip
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    for table in found.tables():
        console().print(table)
    print(f"\n{found.recommendation}\n")
    if (adapter := found.adapter()) is not None:
        print(f"adapter: {adapter}")
        print(f"again:   lora train {found.output}/winner.yaml")
    print(f"report:  {found.output}/compare.html")
