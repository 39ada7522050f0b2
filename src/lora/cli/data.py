"""``lora data``: look at data before they cost anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora.cli.options import ConfigCommand, config_options
from lora.config import NEARLY_THE_SAME, RunConfig
from lora.errors import ConfigError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Look at data before they cost anything."""


@command.command(cls=ConfigCommand, short_help="What training would see of data, and what is wrong.")
@click.argument("source", required=False, metavar="[DATA|CONFIG.yaml|RUN]")
@click.option("--rows", metavar="3,17", help="show the examples of these rows, by their numbers as messages give them")
@click.option("--shortest", is_flag=True, help="show the shortest examples")
@click.option("--longest", is_flag=True, help="show the longest examples")
@click.option("--random", "random_seed", type=int, metavar="SEED", help="show examples drawn with this seed")
@click.option("--examples", type=click.IntRange(min=0), default=3, show_default=True, help="how many of each; 0: none")
@click.option("--full", is_flag=True, help="show long examples to the end")
@click.option("--near", type=float, default=NEARLY_THE_SAME, show_default=True, metavar="JACCARD",
              help="likeness of word triples from which on two inputs are nearly the same")  # fmt: skip
@click.option("--adapter", metavar="NAME", help="of a file with several adapters, the one whose data are meant")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
@config_options(
    "model", "start", "new_tokens", "trust_remote_code", "data", "training.batch_size", "training.accumulation",
    "training.epochs", "training.max_steps", "training.packing", "training.length_grouped", "training.seed",
)  # fmt: skip
def show(
    source: str | None, rows: str | None, shortest: bool, longest: bool, random_seed: int | None, examples: int,
    full: bool, near: float, adapter: str | None, as_json: bool, overrides: dict[str, Any],
) -> None:  # fmt: skip
    """Show what training would see of DATA, token by token, and what is wrong with it.

    Rows are read, split and encoded as by `lora train` with the same options. Of the base only tokenizer and
    configuration are loaded.

    \b
    lora data show train.jsonl --model BASE
    lora data show config.yaml --rows 3,17
    lora data show runs/mine --longest
    """
    from lora.cli import quiet_libraries

    config = _config(source, adapter, overrides)
    if not config.data.train:
        raise ConfigError("data.train: is needed: lora data show DATA --model BASE")
    numbers = _numbers(rows)
    quiet_libraries()
    import json

    from lora.checks.drawing import draw
    from lora.checks.examples import Choice
    from lora.cli.show import console
    from lora.workflow.look import describe_data

    choice = Choice(numbers, shortest, longest, random_seed is not None, examples, random_seed or 0)
    report = describe_data(
        config.data.train, config.model, validation=config.data.validation, config=config.data,
        training=config.training, start=config.start, new_tokens=config.new_tokens,
        near=near, show=choice, trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    if as_json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        draw(report, console(), full)


def _config(source: str | None, adapter: str | None, overrides: dict[str, Any]) -> RunConfig:
    """The configuration that ``source`` is, holds, or stands for as data; of several adapters that of one."""
    from lora.overrides import each_adapter, load_config

    path = Path(source).expanduser() if source else None
    file = None
    if path and path.suffix.lower() in (".yaml", ".yml"):
        file = path
    elif path and (path / "config.yaml").is_file():
        file = path / "config.yaml"
    elif source:
        if "data.train" in overrides:
            raise ConfigError(f"data.train: is given twice, as {source} and as {overrides['data.train']}; keep one")
        overrides = {"data.train": source, **overrides}
    config = load_config(file, overrides)
    if not config.adapters:
        if adapter:
            raise ConfigError("--adapter: there is no set of adapters of which to name one")
        return config
    each = each_adapter(config)
    if adapter not in each:
        raise ConfigError(f"--adapter: {source} holds several adapters; name one of {', '.join(each)}")
    return each[adapter]


def _numbers(text: str | None) -> list[int]:
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(f"--rows: numbers are needed, as in 3,17 (given: {text!r})") from None
