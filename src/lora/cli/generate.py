"""``lora generate``: texts for prompts, of one adapter or of several beside each other."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from lora.cli.writing import (
    base_options,
    file_options,
    job_of,
    output_file,
    read_rows,
    sampling_options,
    write_answers,
)
from lora.config import EVAL_BATCH_SIZE, SamplingConfig
from lora.errors import ConfigError


@click.command()
@click.argument("adapters", nargs=-1, metavar="[ADAPTER]...")
@click.option("--prompt", "-p", "prompts", multiple=True, metavar="TEXT", help="a prompt; may be given several times")
@click.option(
    "--data", "-d", metavar="FILE", help="prompts, in any format that training takes; '-': lines of standard input"
)
@click.option("--adapter", "named", multiple=True, metavar="NAME=FOLDER", help="an adapter, and what it is called")
@click.option("--n", type=click.IntRange(min=1), default=1, show_default=True, help="samples of each prompt")
@file_options
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=EVAL_BATCH_SIZE, show_default=True,
    help="rows of one forward pass, adapters and samples together",
)  # fmt: skip
@sampling_options
@base_options
def command(
    adapters: tuple[str, ...], prompts: tuple[str, ...], data: str | None, named: tuple[str, ...], n: int,
    output: str | None, resume: bool, overwrite: bool, batch_size: int, sampling: dict[str, Any], model: str | None,
    loading: dict[str, Any],
) -> None:  # fmt: skip
    """Write texts with each ADAPTER (an adapter's or a run's folder; base: the base model) for prompts or a file.

    \b
    lora generate runs/mine --prompt "Write a haiku."
    lora generate runs/a runs/b base --data prompts.jsonl --output texts.jsonl --temperature 0.7 --n 4
    """
    from lora.cli import quiet_libraries

    if bool(prompts) == bool(data):
        raise ConfigError("give --prompt, or --data with a file of prompts (not both)")
    settings = SamplingConfig.make(sampling)
    if n > 1 and not settings.temperature:
        raise ConfigError(f"--n {n}: without a temperature all are alike; give one, as in --temperature 0.7")
    file = output_file(output, resume, overwrite, data)
    quiet_libraries()
    from lora.evaluation.generate import check_prompts, generate_iter, rows_at_once
    from lora.workflow import choose, load_several

    chosen = choose(adapters, named, model)
    rows = read_rows(prompts, data)
    loaded = load_several(chosen, writes=True, **loading)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    options: dict[str, Any] = {"adapters": loaded.names, "tasks": loaded.tasks, "tokenizer": loaded.tokenizer}
    for note in check_prompts(loaded.model, rows, **options):  # before the first is answered
        print(note, file=sys.stderr)
    options |= {"n": n, "batch_size": batch_size, **sampling}

    if not file:
        for text in generate_iter(loaded.model, rows, **options):
            print(json.dumps(text, ensure_ascii=False), flush=True)
        return
    given = {f"--{name.replace('_', '-')}": value for name, value in settings.model_dump().items()}
    job = job_of(
        rows, loaded.model.base, loaded.folders,
        {"answering": ", ".join(loaded.names), "--n": n, "--batch-size": batch_size, **given},
    )  # fmt: skip
    write_answers(
        file, job, rows, len(loaded.names) * n, rows_at_once(batch_size, len(loaded.names), n),
        lambda first, progress: generate_iter(
            loaded.model, rows[first:], first=first, on_note=progress.say, on_texts=progress.advance, **options
        ),
        "texts",
    )  # fmt: skip
