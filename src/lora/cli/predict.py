"""``lora predict``: apply a trained adapter to new rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from lora.config import EVAL_BATCH_SIZE, MAX_NEW_TOKENS
from lora.errors import ConfigError, DataError
from lora.io.places import file_to_write


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
@click.option("--output", "-o", metavar="FILE", help="write JSON lines here instead of printing them")
@click.option("--model", "-m", metavar="BASE", help="the base model (default: the one the adapter names)")
@click.option("--batch-size", type=click.IntRange(min=1), default=EVAL_BATCH_SIZE, show_default=True)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=MAX_NEW_TOKENS,
    show_default=True,
    help="longest completion of a generating model",
)
@click.option("--overwrite", is_flag=True, help="replace the file that --output names")
@click.option("--trust-remote-code", is_flag=True, help="let the base model's repository run its own code")
@click.option("--allow-other-base", is_flag=True, help="use the adapter on a base it was not trained on")
def command(
    adapter: str, texts: tuple[str, ...], data: str | None, output: str | None, model: str | None, batch_size: int,
    max_new_tokens: int, overwrite: bool, trust_remote_code: bool, allow_other_base: bool,
) -> None:  # fmt: skip
    """Predict labels or completions with ADAPTER (an adapter or a run's folder), for TEXTs or a file of rows.

    \b
    lora predict run "where is my parcel?"
    lora predict run --data new.jsonl --output predictions.jsonl
    """
    from lora.cli import quiet_libraries

    if bool(texts) == bool(data):
        raise ConfigError("give texts to predict, or --data with a file of them (not both)")
    file = file_to_write(output, "--output", overwrite, reads=data) if output else None
    quiet_libraries()
    from lora.evaluation.predict import predict_iter
    from lora.io.atomic import write_text
    from lora.workflow import load_tuned

    rows = _rows(texts, data)
    tuned, name, tokenizer, task = load_tuned(
        adapter, model, trust_remote_code=trust_remote_code, allow_other_base=allow_other_base
    )
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens} if task.generates else {}
    predictions = predict_iter(
        tuned, rows, adapter=name, tokenizer=tokenizer, task=task, batch_size=batch_size, **options
    )
    lines = (json.dumps(prediction, ensure_ascii=False) for prediction in predictions)
    if file:
        # Whole or not at all: a file cut short would look like a result.
        done = list(lines)
        write_text(file, "".join(line + "\n" for line in done))
        print(f"{len(done)} predictions: {file}")
    else:
        for line in lines:
            print(line)


def _rows(texts: tuple[str, ...], data: str | None) -> list[Any] | Path:
    if texts:
        return list(texts)
    if data == "-":
        rows: list[Any] = _lines()
        if not rows:
            raise DataError("standard input: there are no lines")
        return rows
    assert data is not None
    return Path(data)


def _lines() -> list[str]:
    """Lines of standard input. An empty one among them is a row at fault: left out, it would shift the answers."""
    lines = [line.rstrip("\r\n") for line in sys.stdin]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines
