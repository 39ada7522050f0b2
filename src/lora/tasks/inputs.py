"""What training and evaluation both need before the first token: rows, task, tokenizer, length.

Rows may come as anything that callers call data; the rest follows from the model, its adapters and the settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, overload

from lora.config import DataConfig, Source, TrainingConfig
from lora.data.hub import stream_dataset
from lora.data.rows import Row, as_python, located
from lora.data.streams import ListOrStream, RowStream, chunks, too_large
from lora.data.tables import name_classes
from lora.errors import ConfigError, DataError
from lora.model.base import load_tokenizer, longest_row
from lora.tasks import Task, from_state, task_class
from lora.tasks.recognise import check_roles, recognise

if TYPE_CHECKING:
    from lora.model.lora import LoRA

Sources = str | Path | Source | Sequence[str | Path | Source]
Data = Sources | Iterable[Row]


def is_sources(data: Any) -> TypeGuard[Sources]:
    """Whether ``data`` names where rows are, and is no rows itself."""
    kinds = (str, Path, Source)
    return isinstance(data, kinds) or (isinstance(data, (list, tuple)) and bool(data) and isinstance(data[0], kinds))


@overload
def as_rows(data: Any, what: str) -> list[Row]: ...
@overload
def as_rows(data: Any, what: str, stream: bool | None) -> ListOrStream: ...
def as_rows(data: Any, what: str, stream: bool | None = False) -> ListOrStream:
    """Rows from a list, a ``datasets.Dataset`` or any iterable of dicts; ``what`` they are is said in messages.

    ``stream``: a data set of the library ``datasets`` is not to be held in memory; None: if it is large.

    Raises DataError: no rows, or something that is no row.
    """
    if isinstance(data, Mapping):
        splits = ", ".join(map(str, data))
        raise DataError(
            f"{what}: one data set is needed, and this is a {type(data).__name__} of several ({splits}); pass one of "
            "them"
        )
    if not isinstance(data, Iterable):
        raise DataError(f"{what}: must be a path, rows as dicts or a datasets.Dataset, not {type(data).__name__}")
    if type(data).__name__ == "DataFrame":
        frame: Any = data  # of pandas, or of polars
        data = frame.to_dicts() if hasattr(frame, "to_dicts") else frame.to_dict("records")
    if _in_parts(data, stream):
        return stream_dataset(data, what)
    features = getattr(data, "features", None)
    rows = [row if isinstance(row, dict) or not isinstance(row, Mapping) else dict(row) for row in data]
    wrong = next((index for index, row in enumerate(rows) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise DataError(
            f"{what}: row {wrong + 1} is a {type(rows[wrong]).__name__}; "
            "each row must be a dict such as {'text': ..., 'label': ...}"
        )
    if not rows:
        raise DataError(f"{what}: there are no rows")
    rows = [as_python(row) for row in rows]
    if features is not None and hasattr(features, "to_dict"):
        name_classes(rows, features.to_dict())
    return located(rows, what)


def _in_parts(data: Any, stream: bool | None) -> bool:
    kind = type(data).__name__
    if stream is False or kind not in ("Dataset", "IterableDataset") or not hasattr(data, "iter"):
        return False
    # Of an IterableDataset no size is known.
    return bool(stream) or kind == "IterableDataset" or too_large(data.data.nbytes)


def task_for(rows: ListOrStream, config: DataConfig, base: Any = None) -> tuple[Task, str]:
    """The task that ``rows`` are for, with what it learns from them, and a few sentences about it. Raises DataError.

    ``base``: transformers' configuration of the base model.
    """
    columns = recognise(rows, config, base)
    task = learned(columns.task, rows, columns.roles, config)
    return task, " ".join([columns.how, *task.remarks()])


def learned(name: str, rows: ListOrStream, roles: Mapping[str, str], config: DataConfig) -> Task:
    """The task ``name`` with what it learns from ``rows``, and with the options of ``config``. Raises DataError."""
    kind = task_class(name)
    task = kind.from_chunks(chunks(rows), roles) if isinstance(rows, RowStream) else kind.from_rows(rows, roles)
    return with_options(task, config)


def with_columns(task: Task, config: DataConfig) -> Task:
    """``task`` reading the columns, and with the options, that ``config`` names in place of those it was trained with.

    Raises ConfigError: an unknown option.
    """
    check_roles(config)
    state = task.state()
    named = {role: name for role, name in config.named_columns().items() if role in state}
    changed = {role: name for role, name in named.items() if name != state[role]}
    return with_options(from_state({**state, **changed}) if changed else task, config)


def with_options(task: Task, config: DataConfig) -> Task:
    """``task`` with the options of ``config``. Raises ConfigError: it has none, or none of that name."""
    if not config.options:
        return task
    if not task.options.model_fields:
        raise ConfigError(f"data.options: the task {task.name} has none (given: {', '.join(config.options)})")
    state = task.state()
    # With those that it has already: some go together, and some do not.
    before = {name: state[name] for name in task.options.model_fields}
    given = {task.options.canonical(name): value for name, value in config.options.items()}
    return from_state({**state, **task.options.make({**before, **given}, "data.options").model_dump(mode="json")})


def tokenizer_of(model: LoRA) -> Any:
    """The tokenizer that the adapters have for their own tokens, else that of the base model's folder.

    Raises ConfigError, ModelError.
    """
    own = {id(tokenizer): tokenizer for tokenizer in model.tokenizers.values()}
    if len(own) == 1:
        return next(iter(own.values()))
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not name:
        raise ConfigError("this base model does not say where it was loaded from; pass tokenizer=")
    return load_tokenizer(name)


def length_for(model: LoRA, names: Sequence[str], tokenizer: Any, wanted: int | None) -> int:
    """Tokens kept of a row: ``wanted``, else the least that the adapters ``names`` were trained with, else the model's.

    Raises ModelError where more is wanted than the model takes.
    """
    trained = [length for name in names if (length := model.notes.get(name, {}).get("max_length"))]
    return longest_row(tokenizer, model.base, wanted or min(trained, default=None))


def check_arguments(**given: Any) -> None:
    """Raise ConfigError for what is often given in place of what is needed; ``given`` by the names of parameters."""
    from lora.model.lora import LoRA

    if "model" in given and not isinstance(given["model"], LoRA):
        raise ConfigError(f"model: a LoRA is needed, as in LoRA(base, rank=8), not {type(given['model']).__name__}")
    for key, kind, remedy in (
        ("task", Task, "to name one: data=DataConfig(task='classification')"),
        ("config", TrainingConfig, "settings may be given as keywords too: learning_rate=1e-3"),
        ("data", DataConfig, "as in data=DataConfig(text_column='review')"),
    ):
        value = given.get(key)
        if value is not None and not isinstance(value, kind):
            raise ConfigError(f"{key}: a {kind.__name__} is needed, not {type(value).__name__}; {remedy}")
    if given.get("tokenizer") is not None and not callable(given["tokenizer"]):
        raise ConfigError("tokenizer: a tokenizer is needed, as AutoTokenizer.from_pretrained gives it, not a name")
