"""From whatever the caller calls data to token ids: which adapters, which task, which rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora.config import DataConfig
from lora.core.routing import BASE
from lora.data.sources import SourceFile, load_rows_and_files
from lora.errors import AdapterFileError, ConfigError, DataError
from lora.model.base import pad_token_id
from lora.model.lora import LoRA
from lora.tasks import Encoded, Row, Task, from_state
from lora.tasks.inputs import as_rows, length_for, task_for, tokenizer_of, with_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora.data.streams import RowStream


@dataclass
class Inputs:
    """Tokenised rows and all that a pass over them needs.

    Attributes:
        source: file, folder or hub id; None for rows given directly.
        notes: what a user should know, in full sentences.
        rows: as they were before they were tokenised; None where that is not known.
        stream: the same, where they are read again rather than held.
        encode: tokenises other rows as these were.
        files: that the rows were read from.
    """

    task: Task
    encoded: Encoded
    pad_token_id: int
    source: str | None = None
    notes: list[str] = field(default_factory=list)
    rows: list[Row] | None = None
    stream: RowStream | None = None
    encode: Callable[[list[Row]], Encoded] | None = None
    files: list[SourceFile] = field(default_factory=list)


def prepare(
    model: LoRA,
    data: Any,
    names: Sequence[str],
    tokenizer: Any = None,
    task: Task | None = None,
    max_length: int | None = None,
    config: DataConfig | None = None,
) -> Inputs:
    """Tokenise labelled ``data`` for the adapters ``names``.

    Raises:
        ConfigError: no task is known, or the adapters have different ones.
        DataError: rows that cannot be used, or none.
        ModelError: no tokenizer, or ``max_length`` is above what the model takes.
    """
    config = config or DataConfig()
    task = task or stored_task(model, names)
    if isinstance(data, Inputs):
        inputs = replace(data, notes=list(data.notes))
    elif isinstance(data, Encoded):
        if task is None:
            raise ConfigError("tokenised data need a task: pass task=, or use an adapter that stores its own")
        inputs = Inputs(task, data, _pad_id(model, tokenizer))
    else:
        rows, source, notes, files = rows_of(data)
        if task is None:
            task, note = task_from_rows(model, rows, config)
            notes.append(note)
        task = with_columns(task, config)
        tokenizer = tokenizer or tokenizer_of(model)
        ready = task.with_tokenizer(tokenizer)
        length = length_for(model, names, tokenizer, max_length or config.max_length)
        notes += _unlike_alone(model, names, length) if not (max_length or config.max_length) else []

        def encode(some: list[Row]) -> Encoded:
            return ready.encode(some, tokenizer, length)

        pad = pad_token_id(tokenizer, model.base)
        inputs = Inputs(ready, encode(rows), pad, source, notes, rows, encode=encode, files=files)
    if not len(inputs.encoded):
        raise DataError("there are no rows to evaluate on")
    if not sum(inputs.encoded.supervised):
        raise DataError(
            "the tokenised rows carry no labels, so there is nothing to compare with; encode them with supervised=True"
        )
    inputs.notes += inputs.encoded.notes
    return inputs


def _unlike_alone(model: LoRA, names: Sequence[str], length: int) -> list[str]:
    """A note where adapters were trained on rows cut at different lengths: all are measured at the least of these."""
    trained = {name: its for name in names if (its := model.notes.get(name, {}).get("max_length"))}
    if len(set(trained.values())) < 2:
        return []
    said = ", ".join(f"{name} {its}" for name, its in trained.items())
    return [
        f"The adapters keep different numbers of tokens of a row ({said}); here all read the first {length}, so that "
        "they are compared on the same ones. Alone, one may have other numbers; max_length sets it."
    ]


def chosen_adapters(model: Any, adapters: Sequence[str] | str | None, baseline: bool = False) -> list[str]:
    """Names to run, each once: those given, else all of the model's; with ``baseline`` the base comes first."""
    if not isinstance(model, LoRA):
        raise ConfigError(
            f"a LoRA model is needed, not {type(model).__name__}; for one without adapters: LoRA(model, name=None)"
        )
    given = [adapters] if isinstance(adapters, str) else list(model.adapters if adapters is None else adapters)
    model.router.check(given)
    return list(dict.fromkeys([BASE, *given] if baseline or not given else given))


def stored_task(model: LoRA, names: Sequence[str]) -> Task | None:
    """The task that the adapters ``names`` store; None where none stores one. For the base alone, its adapters' task.

    Raises ConfigError where they differ: one set of metrics cannot compare different tasks.
    """
    of = [name for name in names if name != BASE] or list(model.adapters)
    states = {name: state for name in of if (state := model.notes.get(name, {}).get("task"))}
    if not states:
        return None
    first, state = next(iter(states.items()))
    check_same_task(states, f"(adapters={first!r}), or pass the task= to measure both by")
    try:
        return from_state(state)
    except (KeyError, TypeError) as error:
        raise AdapterFileError(
            f"adapter {first!r}: the task stored with it cannot be read here ({error}); pass task="
        ) from None


def check_same_task(states: Mapping[str, Mapping[str, Any]], remedy: str = "") -> None:
    """Raise ConfigError where the tasks, as they are stored, are not all one; ``remedy``: what else can be done."""
    first = next(iter(states), None)
    for name, state in states.items():
        if first is not None and state != states[first]:
            raise ConfigError(
                f"adapters {first!r} and {name!r} were trained for different tasks (or labels, or columns): "
                f"{different(first, states[first], name, state)}; evaluate them one at a time {remedy}".rstrip()
            )


def different(
    a: str, state_a: Task | Mapping[str, Any] | None, b: str, state_b: Task | Mapping[str, Any] | None
) -> str:  # fmt: skip
    """In words, what the tasks of the adapters ``a`` and ``b`` differ by."""
    states = [dict(its.state() if isinstance(its, Task) else its or {}) for its in (state_a, state_b)]
    kinds = [str(its.get("task", "language model")) for its in states]
    if kinds[0] != kinds[1]:
        return f"{a} is for {kinds[0]}, {b} for {kinds[1]}"
    key = next(key for key in [*states[0], *states[1]] if states[0].get(key) != states[1].get(key))
    of_a, of_b = (its.get(key) for its in states)
    if isinstance(of_a, list) and isinstance(of_b, list):
        only = {a: [item for item in of_a if item not in of_b], b: [item for item in of_b if item not in of_a]}
        parts = [f"{name} alone has {_listed(its)}" for name, its in only.items() if its]
        return f"{key}: " + (", ".join(parts) or f"{a} and {b} have the same ones in another order")
    return f"{key} is {_quoted(of_a)} of {a}, {_quoted(of_b)} of {b}"


def _listed(values: Sequence[Any], most: int = 5) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(_quoted, values[:most])) + more


def _quoted(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:60]}…"


def task_from_rows(model: LoRA, rows: list[Row], config: DataConfig) -> tuple[Task, str]:
    """Task and labels read from the rows, and a sentence about it. Labels are in the model's order, if it says one."""
    task, how = task_for(rows, config, getattr(model.base, "config", None))
    order = _labels_of(model, task.labels)
    if order:
        task = from_state({**task.state(), "labels": order})
    return task, f"No task is stored with the adapter, so it was read from these rows. {how}"


def _labels_of(model: LoRA, found: Sequence[str]) -> list[str]:
    """The model's own label names if they cover ``found``; class numbers where it has only LABEL_0, …; else none."""
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    ordered = [str(names[place]) for place in sorted(names)]
    if not found:
        return []
    if all(re.fullmatch(r"LABEL_\d+", name) for name in ordered):
        # A class that is missing from these rows must not shift the others to the left.
        ordered = [str(place) for place in range(len(ordered))]
    return ordered if set(found) <= set(ordered) else []


def rows_of(data: Any) -> tuple[list[Row], str | None, list[str], list[SourceFile]]:
    """Rows, where they came from, notes and files, from a path or hub id, a list of dicts or a ``datasets.Dataset``."""
    if isinstance(data, (str, Path)):
        rows, files, notes = load_evaluation_rows(str(data))
        return rows, str(data), notes, files
    return as_rows(data, "evaluation data"), None, [], []


def load_evaluation_rows(source: str) -> tuple[list[Row], list[SourceFile], list[str]]:
    """The test rows of ``source``, else its validation rows, and files; a source without splits is taken as it is.

    A source that has training rows only is an error: measuring on those must be asked for by the file's name.
    """
    try:
        return *load_rows_and_files(source, "test"), []
    except DataError as error:
        if "has no test split" not in str(error):
            raise
    return *load_rows_and_files(source, "validation"), [f"{source} has no test split; its validation split was used."]


def _pad_id(model: LoRA, tokenizer: Any) -> int:
    if tokenizer is not None:
        return pad_token_id(tokenizer, model.base)
    found = getattr(getattr(model, "config", None), "pad_token_id", None)
    # Padding is masked by length, so any id will do where the model itself asks for none.
    return 0 if found is None else int(found)
