"""``lora tune``: good settings for one's own data."""

from __future__ import annotations

import json
from typing import Any

import click

from lora.cli.options import ConfigCommand, config_options
from lora.config.tuning import TuningConfig
from lora.errors import ConfigError


@click.command(cls=ConfigCommand)
@click.argument("config_file", required=False, metavar="[CONFIG.yaml]")
@click.option("--space", metavar="NAMES", help="settings to search in their usual ranges, as in learning_rate,rank")
@click.option("--sampler", type=click.Choice(["tpe", "random", "grid", "cmaes"]), help="who proposes (default: tpe)")
@click.option("--pruner", type=click.Choice(["halving", "median", "none"]), help="who stops losers (default: halving)")
@click.option("--trials", type=int, metavar="N", help="how many (default: 20)")
@click.option("--minutes", type=float, metavar="NUMBER", help="no trial begins after so long")
@click.option("--tokens", type=int, metavar="N", help="no trial begins after so many tokens have been trained")
@click.option("--objectives", metavar="NAMES", help="metrics, size, latency (default: the metric that picks the best)")
@click.option("--seeds", type=int, metavar="N", help="fresh runs of the winner and of the default (default: 3)")
@click.option("--test", metavar="DATA", help="test data (default: the source's test split, else split off)")
@click.option("--storage", metavar="URL", help="database of a study that several processes share")
@click.option("--study", metavar="NAME", help="name of the study in it (default: tune)")
@click.option("--quick", is_flag=True, default=None, help="a short probe of learning rates, and nothing else")
@click.option("--resume", "resume_folder", metavar="FOLDER", help="go on with the search in this folder")
@click.option("--overwrite", is_flag=True, help="replace the search that the output folder holds")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
@click.option("--quiet", "-q", is_flag=True, help="print the result alone")
@config_options()
def command(
    config_file: str | None, resume_folder: str | None, overwrite: bool, as_json: bool, quiet: bool,
    overrides: dict[str, Any], **asked: Any,
) -> None:  # fmt: skip
    """Search settings. --model, --data and --output are enough.

    Every trial is an adapter in one running batch; losers are stopped early and their places refilled. The winner is
    then run with fresh seeds beside the default, on test rows that the search has not seen. A YAML file may hold ranges
    of your own under `tune:`.

    \b
    lora tune --model BASE --data folder --output runs/tuned
    lora tune config.yaml --space learning_rate,rank,variant --trials 30
    lora tune -m BASE -d rows.jsonl -o out --quick
    lora tune --resume runs/tuned
    """
    from lora.cli import quiet_libraries
    from lora.overrides import load_config

    given = {key: value for key, value in asked.items() if value is not None}
    for key in ("space", "objectives"):
        if key in given:
            given[key] = [part.strip() for part in given[key].split(",") if part.strip()]
    config: Any = resume_folder
    tuning: TuningConfig | None = None
    if resume_folder:
        if config_file or overwrite or given or overrides:
            raise ConfigError("--resume goes on under the search's own settings; leave other options out")
    else:  # errors in settings before the seconds that torch takes
        config = load_config(config_file, overrides)
        own = config.tune.model_dump(exclude_unset=True) if config.tune is not None else {}
        tuning = TuningConfig.make({**own, **given})
    quiet_libraries()
    from lora.cli.show import console, say
    from lora.tuning.tune import tune

    found = tune(
        config, tuning, resume=bool(resume_folder), overwrite=overwrite, say=None if quiet else say,
        progress=False if quiet else None,
    )  # fmt: skip
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    for grid in found.tables():
        console().print(grid.rich())
    print(f"\n{found.verdict}\n")
    if found.folder is not None:
        print(f"adapter: {found.folder}")
    print(f"again:   lora train {found.output}/best.yaml")
    print(f"report:  {found.output}/tune.md")
