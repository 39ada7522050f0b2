"""A look at data as a run would take them: read, recognised, split and encoded by the code that trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora.checks.data import DataReport, look
from lora.checks.examples import Choice
from lora.checks.remarks import Part
from lora.config import NEARLY_THE_SAME, DataConfig, TrainingConfig
from lora.errors import ConfigError
from lora.model.base import load_base_config
from lora.model.vocabulary import tokenizer_for
from lora.tasks.inputs import Data
from lora.training.prepare import prepare, read_rows
from lora.workflow.tuned import adapter_folder, base_of, task_of


def describe_data(
    data: Data,
    model: str | None = None,
    *,
    validation: Data | bool | None = None,
    config: DataConfig | None = None,
    training: TrainingConfig | None = None,
    start: str | Path | None = None,
    new_tokens: Sequence[str] = (),
    near: float = NEARLY_THE_SAME,
    show: Choice | None = None,
    trust_remote_code: bool = False,
) -> DataReport:
    """What training on ``data`` would see, and what is wrong with it. Of the base no weight is loaded.

    Args:
        data: a path or hub id, rows as dicts, or a ``datasets.Dataset``.
        model: the base, a folder or hub id.
        validation: held-out data; None: as training does it; False: none.
        config: columns, task, length and the like.
        training: batches and epochs, for steps and padding; its seed splits the held-out rows off.
        start: an adapter whose task is gone on with; it names the base too.
        new_tokens: special tokens that training adds to the tokenizer.
        near: Jaccard index of word triples from which on two inputs are told as nearly the same.
        show: which examples; None: a few of different lengths.

    Raises:
        DataError: rows cannot be used, as in training.
        ConfigError, ModelError, AdapterFileError: settings, base or adapter.
    """
    # All rows are looked at side by side, so they are held in memory, whatever a run does with them.
    config = (config or DataConfig()).model_copy(update={"streaming": False, "cache": False})
    training = training or TrainingConfig()
    if not 0 < near <= 1:
        raise ConfigError(f"near: must be above 0 and at most 1 (given: {near:g})")
    folder = adapter_folder(start) if start else None
    name = model or (base_of(folder) if folder else None)
    if not name:
        raise ConfigError("model: is needed: the base whose tokenizer makes tokens of the data")
    kind = load_base_config(str(name), trust_remote_code)
    rows = read_rows(data, validation, config, training.seed, task_of(folder) if folder else None, kind)
    if rows.replay is not None:
        rows.notes.append(f"Replay is left out of this look: give {rows.replay.name} as data to see it.")
        rows.replay = None
    tokenizer = tokenizer_for(str(name), new_tokens, folder, trust_remote_code)
    # All that `prepare` asks of a model is its configuration.
    base: Any = SimpleNamespace(base=SimpleNamespace(config=kind), notes={})
    prepared = prepare(base, rows, tokenizer, config.max_length)
    splits = {"training": (rows.train, prepared.train), "held-out": (rows.held, prepared.held)}
    splits["test"] = (rows.test, prepared.test)
    parts = [Part(split, list(its), made) for split, (its, made) in splits.items() if its and made]
    encoding = {note for part in parts for note in part.encoded.notes}
    notes = [note for note in prepared.notes if note.partition(" data: ")[2] not in encoding and note not in encoding]
    return look(
        parts, prepared.task, tokenizer, prepared.max_length, prepared.pad_token_id, training,
        model=str(name), sources=list(dict.fromkeys(source["name"] for source in rows.sources)), notes=notes,
        near=near, choice=show,
    )  # fmt: skip
