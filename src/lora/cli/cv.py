"""``lora cv``: cross-validation, learning curves and ablations on one's own data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from lora.cli.options import ConfigCommand, config_options
from lora.config import CrossValidationConfig
from lora.errors import ConfigError

SECTION = "cv"  # of the YAML file


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"shares: numbers with commas are needed, as in 0.1,0.3,1 (given: {text!r})") from None


def _ablations(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``adapter.rank=1,8`` as a setting and its values, each read as YAML."""
    import yaml

    out: dict[str, list[Any]] = {}
    for text in texts:
        key, sign, values = text.partition("=")
        if not sign or not values.strip():
            raise ConfigError(f"ablate: a setting and its values are needed, as in adapter.rank=1,8 (given: {text!r})")
        try:
            found = yaml.safe_load(values if values.strip().startswith("[") else f"[{values}]")
        except yaml.YAMLError:
            raise ConfigError(f"ablate: the values of {key.strip()} are no YAML list (given: {values!r})") from None
        out[key.strip()] = found
    return out


@click.command(cls=ConfigCommand)
@click.argument("config_file", required=False, metavar="[CONFIG.yaml]")
@click.option("--folds", type=int, metavar="N", help="parts, each of which is held out once (default: 5)")
@click.option("--repeats", type=int, metavar="N", help="times that the rows are divided anew (default: 1)")
@click.option("--seeds", type=int, metavar="N", help="runs of each fold with other starts and orders (default: 1)")
@click.option("--stratify/--no-stratify", default=None, help="the same share of each label in every fold")
@click.option("--group-column", metavar="NAME", help="rows with the same value in it are never on both sides")
@click.option("--time-column", metavar="NAME", help="train on earlier rows, answer later ones (expanding window)")
@click.option("--shares", metavar="0.1,0.3,1", help="learning curve: shares of the training rows, all at once")
@click.option(
    "--ablate", metavar="KEY=V1,V2", multiple=True,
    help="values of a setting beside the configuration as it stands, as in adapter.rank=1,8; may be repeated",
)  # fmt: skip
@click.option("--metric", metavar="NAME", help="metric that is told first and compared (default: the task's own)")
@click.option("--keep-adapters/--no-keep-adapters", default=None, help="keep the adapter of every run")
@click.option("--resume", "resume_folder", metavar="FOLDER", help="go on with the cross-validation in this folder")
@click.option("--overwrite", is_flag=True, help="replace the cross-validation that the output folder holds")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
@click.option("--quiet", "-q", is_flag=True, help="print the result alone")
@config_options()
def command(
    config_file: str | None, resume_folder: str | None, overwrite: bool, as_json: bool, quiet: bool,
    overrides: dict[str, Any], **asked: Any,
) -> None:  # fmt: skip
    """Measure settings by cross-validation: --model, --data and --output are enough.

    Every row is answered by models that were not trained on it. All folds, repeats, seeds, shares of the data and
    ablations are adapters on one base, trained at once. Options and file are those of `lora train`; the options here
    may stand in the file's section cv.

    \b
    lora cv --model BASE --data rows.jsonl --output runs/cv
    lora cv -m BASE -d rows.jsonl -o out --folds 10 --repeats 3 --group-column author
    lora cv -m BASE -d rows.jsonl -o out --shares 0.1,0.3,1 --ablate adapter.rank=1,4 --ablate adapter.dropout=0.1
    lora cv --resume runs/cv
    """
    from lora.cli import quiet_libraries
    from lora.overrides import load_config, section_beside

    given = {key: value for key, value in asked.items() if value not in (None, ())}
    config: Any = resume_folder
    wanted: CrossValidationConfig | None = None
    if resume_folder:
        if config_file or overwrite or given or overrides:
            raise ConfigError("--resume goes on under the cross-validation's own settings; leave other options out")
    else:  # errors in settings before the seconds that torch takes
        if "shares" in given:
            given["shares"] = _shares(given["shares"])
        if "ablate" in given:
            given["ablate"] = _ablations(given["ablate"])
        wanted = CrossValidationConfig.make({**section_beside(config_file, SECTION), **given})
        config = load_config(config_file, overrides, beside=(SECTION,))
    quiet_libraries()
    from lora.cli.show import console, say
    from lora.cross_validation.cross_validate import cross_validate

    found = cross_validate(
        config, wanted, resume=bool(resume_folder), overwrite=overwrite, say=None if quiet else say,
        progress=False if quiet else None,
    )  # fmt: skip
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    for table in found.tables():
        console().print(table)
    print(f"report:      {found.output}/cv.md")
    print(f"predictions: {found.output}/predictions.jsonl")
