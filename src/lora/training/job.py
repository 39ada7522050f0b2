"""What one adapter is to learn: the unit that `fit` takes several of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora.config import AdapterConfig, DataConfig, TrainingConfig
from lora.errors import ConfigError, DataError
from lora.settings import Settings
from lora.tasks import Task
from lora.tasks.inputs import check_arguments
from lora.training.prepare import Data, Prepared

if TYPE_CHECKING:
    from lora.model.lora import LoRA

Evaluate = Callable[["LoRA", str], dict[str, Any]]


@dataclass
class Job:
    """Data and settings of one adapter, in a `fit` that trains several.

    Attributes:
        data: its training data, as `fit` takes them.
        eval_data: held-out data; None: split off from ``data``; False: none.
        adapter: settings of the adapter, made when it joins; None: those of `AdapterConfig`, or the adapter of that
            name that the model already has.
        training: settings that differ from those given to `fit` for all.
        columns: column names, task, length of its data.
        task: default: read from the columns.
        prepared: data already tokenised, in place of ``data``.
        evaluate: ``(model, name) -> metrics`` in place of the task's own on the held-out data.
    """

    data: Data | None = None
    eval_data: Data | bool | None = None
    adapter: AdapterConfig | Mapping[str, Any] | None = None
    training: TrainingConfig | Mapping[str, Any] | None = None
    columns: DataConfig | Mapping[str, Any] | None = None
    task: Task | None = None
    prepared: Prepared | None = None
    evaluate: Evaluate | None = None

    def __post_init__(self) -> None:
        check_arguments(task=self.task)
        for key in ("adapter", "training", "columns"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, (Mapping, Settings)):
                raise ConfigError(f"{key}: expected settings, as a dict, not {value!r}")

    def settings(self, name: str, common: TrainingConfig) -> TrainingConfig:
        """This job's training settings: its own over ``common``. Raises ConfigError naming the adapter."""
        if isinstance(self.training, TrainingConfig):
            return self.training.model_copy()
        own = {TrainingConfig.canonical(key): value for key, value in (self.training or {}).items()}
        return TrainingConfig.make({**common.model_dump(), **own}, f"adapters.{name}.training")

    def adapter_settings(self, name: str) -> AdapterConfig:
        """Raises ConfigError naming the adapter."""
        if isinstance(self.adapter, AdapterConfig):
            return self.adapter
        return AdapterConfig.make(dict(self.adapter or {}), f"adapters.{name}.adapter")

    def data_settings(self, name: str, common: DataConfig) -> DataConfig:
        """How its data are read: its own over ``common``. Raises ConfigError naming the adapter."""
        if isinstance(self.columns, DataConfig):
            return self.columns
        own = {DataConfig.canonical(key): value for key, value in (self.columns or {}).items()}
        return DataConfig.make({**common.model_dump(), **own}, f"adapters.{name}.data")


def jobs_of(train_data: Mapping[str, Any], eval_data: Any, task: Task | None) -> dict[str, Job]:
    """A `Job` for each name; ``eval_data`` may hold some of them by name, or be one for all."""
    if type(train_data).__name__ in ("DatasetDict", "IterableDatasetDict"):
        raise DataError(
            f"training data: this is a {type(train_data).__name__} of the splits {', '.join(train_data)}; pass one of "
            "them. A dict trains one adapter for each of its names"
        )
    if not train_data:
        raise DataError("training data: the dict names no adapter")
    held = eval_data if isinstance(eval_data, Mapping) else {}
    if unknown := sorted(set(held) - set(train_data)):
        raise ConfigError(
            f"eval_data: names {', '.join(map(repr, unknown))}, and the training data {', '.join(train_data)}"
        )
    jobs = {}
    for name, value in train_data.items():
        if isinstance(value, Job):
            job = Job(**vars(value))
        else:
            job = Job(value)
        if job.eval_data is None:
            job.eval_data = held.get(name) if isinstance(eval_data, Mapping) else eval_data
        job.task = job.task or task
        jobs[str(name)] = job
    return jobs


@contextmanager
def named_errors(name: str | None) -> Iterator[None]:
    """Say of which adapter of a set the settings or data are that fail in the block."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if name is None or str(error).startswith(f"adapters.{name}"):
            raise
        raise type(error)(f"adapters.{name}: {error}") from error
