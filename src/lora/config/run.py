"""A run: its sections, and what it has beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from lora.config.adapter import AdapterConfig
from lora.config.data import DataConfig
from lora.config.training import TrainingConfig
from lora.settings import Settings


class RunConfig(Settings):
    """Everything one run needs; the YAML file of ``lora train``."""

    aliases = {"base": "model", "model_name_or_path": "model", "base_model": "model", "output_dir": "output"}

    model: str | None = Field(default=None, description="base model: a folder or a hub id")
    output: str | None = Field(default=None, description="the run's folder")
    start: str | None = Field(
        default=None, description="a run or adapter folder whose adapter is trained further; default: a fresh one"
    )
    data: DataConfig = Field(default_factory=DataConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    trust_remote_code: bool = Field(default=False, description="let the base model's repository run its own code")
    adapters: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="several adapters trained at once, by name: settings of each in sections data, adapter, training",
    )
    at_once: int | None = Field(
        default=None, ge=1, description="how many of them at the same time; default: found by a short measurement"
    )
    new_tokens: list[str] = Field(
        default_factory=list,
        description="special tokens added to the tokenizer; their embeddings are trained, and kept with the adapter",
    )
    memory_gib: float | None = Field(
        default=None,
        gt=0,
        description="GiB that training may use beside the weights; default: 70 % of what is free when it begins",
    )
    check: bool = Field(
        default=True,
        description="verify before training that it can succeed (see `lora check`), and after it what came of it",
    )
    probe: str | None = Field(
        default=None,
        description="general text on which base and adapter are compared after training; default: built-in",
    )
    slices: list[str] = Field(
        default_factory=list,
        description="columns by whose values the report parts the rows that it measures, beside labels and length",
    )
    robustness: list[str] = Field(
        default_factory=list, description="noises in the texts that the report measures too: typos, case, ..., or some"
    )
    # Of the run and not of an adapter: they choose what the shared passes are computed by.
    compile: bool = Field(
        default=False, description="element-wise parts of decoders by torch's compiler: faster steps, a slow first one"
    )
    liger: bool = Field(default=False, description="the same by Liger's kernels, on CUDA (extra: liger)")

    @field_validator("new_tokens")
    @classmethod
    def _tokens(cls, value: list[str]) -> list[str]:
        for token in value:
            if not token.strip() or value.count(token) > 1:
                raise ValueError(f"{token!r} is named twice" if token.strip() else "a token is empty")
        return value

    @field_validator("adapters", mode="before")
    @classmethod
    def _named_sections(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        out: dict[str, Any] = {}
        for name, own in value.items():
            # `a:` alone, and `a: file.jsonl` for `a: {data: {train: file.jsonl}}`
            own = {} if own is None else {"data": own} if isinstance(own, (str, Path, list)) else own
            if isinstance(own, dict):
                own = {key: {} if section is None else section for key, section in own.items()}
                if isinstance(own.get("data"), (str, Path, list)):
                    own["data"] = {"train": own["data"]}
            else:
                raise ValueError(f"{name}: sections data, adapter and training are needed, or a data file")
            out[str(name)] = own
        return out

    @field_validator("data", "adapter", "training", mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        # `adapter:` with every line below it commented out
        return {} if value is None else value

    @field_validator("data", mode="before")
    @classmethod
    def _data_as_path(cls, value: Any) -> Any:
        return {"train": value} if isinstance(value, (str, Path, list)) else value
