"""``lora train``: fine-tune an adapter on one's own data."""

from __future__ import annotations

from typing import Any

import click

from lora.cli.options import ConfigCommand, config_options
from lora.errors import ConfigError


@click.command(cls=ConfigCommand)
@click.argument("config_file", required=False, metavar="[CONFIG.yaml]")
@click.option(
    "--resume", "resume_folder", metavar="RUN", help="go on with the run in this folder, exactly where it stopped"
)
@click.option("--overwrite", is_flag=True, help="replace the run that the output folder holds")
@click.option("--quiet", "-q", is_flag=True, help="print the result alone")
@config_options()
def command(
    config_file: str | None, resume_folder: str | None, overwrite: bool, quiet: bool, overrides: dict[str, Any]
) -> None:
    """Fine-tune an adapter. --model, --data and --output are enough.

    A YAML file may hold everything; options win over it.

    \b
    lora train --model BASE --data train.jsonl --output run
    lora train config.yaml --learning-rate 1e-3
    lora train --resume run
    lora train --start run --data more.jsonl --output run2
    lora train several.yaml        (with an entry for each under `adapters:`)
    """
    from lora.cli import quiet_libraries
    from lora.overrides import load_config

    if resume_folder and (config_file or overwrite):
        raise ConfigError("--resume goes on under the run's own configuration; leave CONFIG.yaml and --overwrite out")
    if not resume_folder:
        config = load_config(config_file, overrides)  # errors in settings before the seconds that torch takes
    quiet_libraries()
    from lora import workflow
    from lora.cli.show import say, show_result, show_results

    talk, bar = (None, False) if quiet else (say, None)
    if resume_folder:
        result = workflow.resume(resume_folder, talk, bar, overrides)
    elif config.adapters:
        result = workflow.train_many(config, overwrite=overwrite, say=talk, progress=bar)
    else:
        result = workflow.train(config, overwrite=overwrite, say=talk, progress=bar)
    if isinstance(result, dict):
        show_results(result)
    elif result.main:
        show_result(result)
