"""``predict``: an adapter on rows without labels, or on plain strings."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora.config import EVAL_BATCH_SIZE, MAX_NEW_TOKENS
from lora.core.routing import BASE
from lora.data.problems import Problems
from lora.data.rows import Origin, SourceRow
from lora.data.sources import load_rows
from lora.errors import ConfigError, DataError, RoutingError
from lora.evaluation.calibrating import at_temperature, stored_temperature
from lora.evaluation.generation import asked_with, complete, prompt_length
from lora.evaluation.inputs import chosen_adapters, stored_task
from lora.model.base import pad_token_id
from lora.tasks import Input, Row, Task
from lora.tasks.inference import AT_ONCE, infer
from lora.tasks.inputs import length_for, tokenizer_of
from lora.tasks.sequence import REMEDY

if TYPE_CHECKING:
    from lora.model.lora import LoRA

log = logging.getLogger(__name__)

Rows = Path | Iterable[Row | str]


def predict(
    model: LoRA,
    rows: Rows,
    *,
    adapter: str | None = None,
    tokenizer: Any = None,
    task: Task | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    max_length: int | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """One answer per row, in the order of the rows: `predict_iter` as a list.

    All rows are checked before the first is answered.

    >>> predict(model, ["where is my parcel?"])
    [{"label": "delivery", "score": 0.93, "probabilities": {"delivery": 0.93, ...}}]
    """
    given = given_rows(rows)
    listed = given if isinstance(given, list) else list(given)
    name, task = _task(model, adapter, task)
    checked_rows(task, listed, 0)
    answers = predict_iter(
        model,
        listed,
        adapter=name,
        tokenizer=tokenizer,
        task=task,
        batch_size=batch_size,
        max_length=max_length,
        **options,
    )
    return list(answers)


def predict_iter(
    model: LoRA,
    rows: Rows,
    *,
    adapter: str | None = None,
    tokenizer: Any = None,
    task: Task | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    at_once: int | None = None,
    first: int = 0,
    calibrated: bool = False,
    on_note: Callable[[str], None] = log.warning,
    **generation: Any,
) -> Iterator[dict[str, Any]]:
    """Answers one by one, in the order of the rows, which are read as they are needed.

    Args:
        rows: dicts with the columns the adapter was trained on (labels may be absent and are not looked at), plain
            strings, or a ``Path`` to a data file.
        adapter: default: the only one; ``"base"`` is the base model.
        tokenizer: default: that of the base model's folder.
        task: default: the one stored with the adapter.
        batch_size: rows of one forward pass.
        max_length: tokens kept of a row; default: as in training, else what the model takes. Of a decoder's prompt: its
            last ones; default: as many as leave room for the completion.
        max_new_tokens: length of a completion; for tasks that write one, as are all further options, which go to
            ``generate``.
        at_once: rows answered at a time, so many after another: their answers come out together; default: `AT_ONCE`.
        first: number of the first of ``rows``, for one who goes on: messages count from there.
        calibrated: give probabilities at the temperature that is stored with the adapter; answers stay the same.
        on_note: called with what a user should know (rows that were cut); default: a warning in the log.

    Yields:
        classification: ``{"label", "score", "probabilities": {class: p}}``; multi-label:
        ``{"labels", "probabilities"}``; regression: ``{"value"}``; token classification: ``{"words", "tags",
        "scores", "spans"}``; reward: ``{"reward"}``; tasks that write (causal, chat, preference, seq2seq): ``{"prompt",
        "completion"}``, the completion without the prompt, of conversations ``{"messages", "completion"}``.

    Raises:
        ConfigError, RoutingError: no task stored, which adapter is open, options that the task does not have.
        DataError: no rows, a column that is missing, cells that are no text; row numbers count over all rows.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    name, task = _task(model, adapter, task)
    tokenizer = tokenizer or tokenizer_of(model)
    task = task.with_tokenizer(tokenizer)
    options = {**generation, **({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens})}
    if options and not task.generates:
        raise ConfigError(f"{', '.join(options)}: the task {task.name} gives a label or a number and generates nothing")
    if task.generates:
        options.setdefault("max_new_tokens", MAX_NEW_TOKENS)
        if options["max_new_tokens"] < 1:
            raise ConfigError(f"max_new_tokens is {options['max_new_tokens']}; it must be at least 1")
    if task.generates:
        length = prompt_length(model, [name], tokenizer, max_length, options["max_new_tokens"])
    else:
        length = length_for(model, [name], tokenizer, max_length)
    temperature = stored_temperature(model, name, task) if calibrated else None
    done, at_once = first, at_once or AT_ONCE
    for chunk in chunks(given_rows(rows), at_once):
        ready = checked_rows(task, chunk, done)
        encoded = task.encode(ready, tokenizer, length, supervised=False)
        for note in encoded.notes:
            of_all = len(chunk) < at_once and done == 0
            on_note(note if of_all else f"Rows {done + 1} to {done + len(chunk)}: {note}")
        if task.generates:
            completions = complete(model, task, encoded, name, tokenizer, batch_size=batch_size, **options)
            yield from (
                {**asked_with(task, row), "completion": its.text} for row, its in zip(ready, completions, strict=True)
            )
        else:
            pad = pad_token_id(tokenizer, model.base)
            found = infer(model, task, encoded, [name], pad_token_id=pad, batch_size=batch_size, supervised=False)
            said = found[name].predictions
            if temperature is not None:
                said = at_temperature(task, said, temperature)
            yield from task.answers(ready, encoded, said)
        done += len(chunk)
    if done == first:
        raise DataError("there are no rows to predict on")


def _task(model: LoRA, adapter: str | None, task: Task | None) -> tuple[str, Task]:
    """The adapter's name and its task."""
    names = chosen_adapters(model, adapter)
    if adapter is None and len(names) > 1:
        raise RoutingError(f"predict: name one of the adapters: {', '.join(names)}")
    task = task or stored_task(model, names)
    if task is None:
        source = "the base stores no task" if names[0] == BASE else f"no task is stored with the adapter {names[0]!r}"
        raise ConfigError(f"{source} (PEFT keeps none); pass task=, e.g. ClassificationTask(labels=[...])")
    return names[0], task


def given_rows(rows: Any) -> Iterable[Any]:
    if isinstance(rows, str):
        raise DataError("rows is a single string; pass a list ([text]), or a pathlib.Path for a file")
    if isinstance(rows, Path):
        return load_rows(str(rows), "test")
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise DataError(f"rows must be a list of dicts or strings, or a Path, not {type(rows).__name__}")
    return rows


def chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def checked_rows(task: Task, rows: list[Any], before: int) -> list[Row]:
    """``rows`` as dicts that know their number. Raises DataError naming all at fault; ``before``: rows before these."""
    inputs = [given for given in task.inputs() if not given.optional]
    origin = Origin(unit="row")
    out: list[Row] = []
    for number, row in enumerate(rows, start=before + 1):
        cells = {inputs[0].column: row} if isinstance(row, str) else row if isinstance(row, Mapping) else {}
        if len(inputs) == 1 and list(cells) == ["text"]:  # a text alone, such as a txt file gives, is like a string
            cells = {inputs[0].column: cells["text"]}
        place = (row.origin, row.number) if isinstance(row, SourceRow) else (origin, number)
        out.append(SourceRow(cells, *place))
    problems = Problems(out)
    for index, row in enumerate(rows):
        if isinstance(row, str) and len(inputs) > 1:
            names = ", ".join(given.column for given in inputs)
            problems.add(f"a string, but the adapter reads {len(inputs)} texts ({names}): pass dicts", index)
        elif not isinstance(row, (str, Mapping)):
            problems.add(f"neither a dict nor a string ({type(row).__name__})", index)
        else:
            for problem in filter(None, (_cell_problem(out[index], given) for given in inputs)):
                problems.add(problem, index)
    if not rows:
        raise DataError("there are no rows to predict on")
    problems.raise_if_any(REMEDY)
    return out


def _cell_problem(row: Row, given: Input) -> str | None:
    name = given.column
    if name not in row:
        return f"no column {name!r} (there are: {', '.join(map(str, row)) or 'none'})"
    problem = given.problem(row[name])
    return f"{name} {problem}" if problem else None
