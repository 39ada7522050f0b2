"""``lora merge``: write an adapter into a plain copy of its base model."""

from __future__ import annotations

from pathlib import Path

import click

from lora.errors import ConfigError
from lora.io.places import is_of_a_model


@click.command()
@click.argument("adapter", metavar="ADAPTER")
@click.option("--output", "-o", required=True, metavar="FOLDER", help="where the merged model goes")
@click.option("--model", "-m", metavar="BASE", help="the base model (default: the one the adapter names)")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="type of the merged weights",
)
@click.option("--overwrite", is_flag=True, help="replace what the output folder holds")
@click.option("--trust-remote-code", is_flag=True, help="let the base model's repository run its own code")
@click.option("--allow-other-base", is_flag=True, help="use the adapter on a base it was not trained on")
def command(
    adapter: str,
    output: str,
    model: str | None,
    dtype: str,
    overwrite: bool,
    trust_remote_code: bool,
    allow_other_base: bool,
) -> None:
    """Merge ADAPTER (an adapter or a run's folder) into its base: the result is a plain model folder of transformers.

    \b
    lora merge run --output merged
    """
    from lora.cli import quiet_libraries

    folder = Path(output)
    if folder.is_file():
        raise ConfigError(f"--output {output}: is a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ConfigError(f"--output {output}: is not empty; name another folder, or say --overwrite")
    others = [path.name for path in sorted(folder.iterdir()) if not is_of_a_model(path)] if folder.is_dir() else []
    if others:
        raise ConfigError(
            f"--output {output}: holds {others[0]}, which is no part of a model folder and would be lost; "
            "name another folder"
        )
    quiet_libraries()
    from lora.workflow import merge_folder

    difference = merge_folder(
        adapter, folder, model, dtype=dtype, trust_remote_code=trust_remote_code, allow_other_base=allow_other_base
    )
    print(f"merged model: {folder}")
    print(f"largest difference between merged and unmerged outputs on a probe: {difference:.1e}")
