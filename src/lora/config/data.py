"""Section ``data``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from lora.registry import TASKS, unknown
from lora.settings import Settings


class Source(Settings):
    """One of several sources of training rows."""

    path: str = Field(min_length=1, description="as data.train where that is a single one")
    weight: float = Field(
        default=1.0, gt=0, le=100, description="how often an epoch takes each of its rows: 0.5 takes half of them"
    )
    columns: dict[str, str] = Field(default_factory=dict, description="as data.columns, of this source alone")


class Replay(Settings):
    """General text that is learned beside the training rows, so that less of it is forgotten."""

    path: str = Field(min_length=1, description="a file, folder or hub id; '#500' takes the first 500 rows")
    share: float = Field(default=0.1, gt=0, le=0.9, description="part of the examples of an epoch that are its")
    columns: dict[str, str] = Field(default_factory=dict, description="as data.columns, of this source alone")


class DataConfig(Settings):
    """Where the rows come from and how they are read."""

    aliases = {
        "path": "train", "dataset": "train", "eval": "validation", "dev": "validation", "cutoff_len": "max_length",
        "max_seq_length": "max_length", "max_seq_len": "max_length", "text": "text_column", "label": "label_column",
        "val_size": "held_out", "eval_fraction": "held_out", "test_size": "held_out", "task_options": "options",
    }  # fmt: skip

    train: str | list[str | Source] | None = Field(
        default=None,
        description="a jsonl, json, csv, tsv, parquet, txt or conll file, a folder, or a hub id; "
        "'#500' takes the first 500 rows; or several of them, '#x2' takes each row of one twice an epoch",
        json_schema_extra={"repeatable": True},
    )
    validation: str | None = Field(
        default=None, description="held-out data of the same kind; default: split off from train"
    )
    replay: str | Replay | None = Field(
        default=None,
        description="general text, or rows like those of train, learned beside them against forgetting: a file or hub "
        "id, as a tenth of each epoch's examples; or {path: FILE, share: 0.2}",
    )
    held_out: float | None = Field(
        default=None,
        ge=0,
        le=0.9,
        description="share split off where no validation data is given, at most 0.9; 0: none",
    )
    task: str = Field(default="auto", description=f"{', '.join(TASKS)}; auto reads it from the columns and the base")
    text_column: str | None = Field(default=None, description="column of the text (default: recognised)")
    text_pair_column: str | None = Field(default=None, description="column of a second text (default: recognised)")
    label_column: str | None = Field(default=None, description="column of the label(s) (default: recognised)")
    prompt_column: str | None = Field(default=None, description="column of the prompt (default: recognised)")
    completion_column: str | None = Field(default=None, description="column of the completion (default: recognised)")
    columns: dict[str, str] = Field(
        default_factory=dict, description="columns by what they are to the task, as in {context: background}"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings that a task has for itself, as in {learn: last}"
    )
    max_length: int | None = Field(
        default=None, ge=2, description="tokens kept of a row; default: what the model takes, at most 1024"
    )
    cache: bool | str = Field(
        default=True, description="keep the token ids of many rows for another run; in YAML also the folder for them"
    )

    @field_validator("train", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if isinstance(value, (dict, Source)):
            value = [value]
        if not isinstance(value, (list, tuple)):
            return str(value) if isinstance(value, Path) else value
        if not value:
            raise ValueError("names no source; leave it out, or name one at least")
        return [
            # By hand: of a union of types pydantic would tell what is wrong with each of them.
            Source.make(entry, f"source {number}") if isinstance(entry, dict) else
            str(entry) if isinstance(entry, Path) else entry
            for number, entry in enumerate(value, start=1)
        ]  # fmt: skip

    @field_validator("replay", mode="before")
    @classmethod
    def _path_or_table(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return Replay.make(value, "replay")
        return str(value) if isinstance(value, Path) else value

    @property
    def replayed(self) -> Replay | None:
        """``replay`` with its share."""
        return Replay(path=self.replay) if isinstance(self.replay, str) else self.replay

    streaming: bool | None = Field(
        default=None, description="read training rows in parts instead of holding them in memory; default: large files"
    )

    @field_validator("streaming", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @field_validator("cache", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        words = {"": False, "true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        return words.get(value.strip().lower(), value) if isinstance(value, str) else value

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        if value not in ("auto", *TASKS):
            raise ValueError(unknown(value, ("auto", *TASKS)))
        return value

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        for role, name in self.columns.items():
            if getattr(self, f"{role}_column", None) not in (None, name):
                raise ValueError(f"{role}_column and columns name different columns for {role!r}; keep one of them")
        return self

    def named_columns(self) -> dict[str, str]:
        """Role -> column, for every column that is named."""
        ending = "_column"
        own = {key.removesuffix(ending): getattr(self, key) for key in type(self).model_fields if key.endswith(ending)}
        return {role: name for role, name in own.items() if name is not None} | self.columns

    def setting_of(self, role: str) -> str:
        """The setting that names the column of ``role``."""
        return f"data.columns.{role}" if role in self.columns else f"data.{role}_column"
