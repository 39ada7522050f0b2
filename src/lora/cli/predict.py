"""``lora predict``: apply a trained adapter to new rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from lora.cli.progress import RowProgress
from lora.cli.writing import base_options, file_options, job_of, output_file, read_rows, write_answers
from lora.config import EVAL_BATCH_SIZE, MAX_NEW_TOKENS
from lora.errors import ConfigError

BATCHES = 8  # of completions, whose rows are sorted by length together and answered at once


@click.command()
@click.argument("adapter", metavar="ADAPTER")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--data",
    "-d",
    "data",
    metavar="FILE",
    help="rows to predict, in any format that training takes; '-': lines of standard input",
)
@file_options
@click.option("--batch-size", type=click.IntRange(min=1), default=EVAL_BATCH_SIZE, show_default=True)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=MAX_NEW_TOKENS,
    show_default=True,
    help="longest completion of a generating model",
)
@click.option("--calibrated", is_flag=True, help="probabilities at the temperature that training fitted")
@base_options
def command(
    adapter: str, texts: tuple[str, ...], data: str | None, output: str | None, resume: bool, overwrite: bool,
    batch_size: int, max_new_tokens: int, calibrated: bool, model: str | None, loading: dict[str, Any],
) -> None:  # fmt: skip
    """Predict labels or completions with ADAPTER (an adapter or a run's folder), for TEXTs or a file of rows.

    \b
    lora predict run "where is my parcel?"
    lora predict run --data new.jsonl --output predictions.jsonl
    """
    from lora.cli import quiet_libraries

    if bool(texts) == bool(data):
        raise ConfigError("give texts to predict, or --data with a file of them (not both)")
    file = output_file(output, resume, overwrite, data)
    quiet_libraries()
    from lora.evaluation.predict import checked_rows, predict_iter
    from lora.tasks.inference import AT_ONCE
    from lora.workflow import load_tuned
    from lora.workflow.tuned import adapter_folder

    rows = read_rows(texts, data)
    tuned, name, tokenizer, task = load_tuned(adapter, model, **loading)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens} if task.generates else {}
    options |= {"adapter": name, "tokenizer": tokenizer, "task": task, "batch_size": batch_size}
    options |= {"calibrated": True} if calibrated else {}
    if not file:
        for prediction in predict_iter(tuned, rows, **options):
            print(json.dumps(prediction, ensure_ascii=False))
        return
    checked_rows(task, rows, 0)  # before the first is answered
    settings = {"--batch-size": batch_size, "--max-new-tokens": max_new_tokens}
    settings |= {"--calibrated": True} if calibrated else {}
    job = job_of(rows, tuned.base, {"": adapter_folder(adapter)}, settings)
    # As many as `lora eval` makes batches of, so that both give the same probabilities; of texts a few.
    at_once = BATCHES * batch_size if task.generates else AT_ONCE

    def answers(first: int, progress: RowProgress) -> Iterator[dict[str, Any]]:
        for answer in predict_iter(tuned, rows[first:], first=first, at_once=at_once, on_note=progress.say, **options):
            yield answer
            progress.advance()

    write_answers(file, job, rows, 1, at_once, answers, "predictions")
