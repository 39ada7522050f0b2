"""A cross-validation."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from lora.settings import Settings


class CrossValidationConfig(Settings):
    """How the rows are divided, and what is trained on the parts."""

    # 5 train on 80 % of the rows and cost half of 10 (Breiman and Spector, 1992; Kohavi, 1995, prefers 10 by a little).
    folds: int = Field(default=5, ge=2, description="parts, each of which is held out once")
    repeats: int = Field(default=1, ge=1, description="times that the rows are divided anew")
    seeds: int = Field(default=1, ge=1, description="runs of each fold: other starts and orders")
    stratify: bool = Field(
        default=True, description="the same share of each label (of a number, each bin) in each fold"
    )
    group_column: str | None = Field(default=None, description="rows with the same value in it are never on both sides")
    time_column: str | None = Field(
        default=None, description="expanding window: training rows are always earlier than held-out ones"
    )
    shares: list[float] = Field(
        default=[], description="learning curve: shares of the training rows to train on, on the same held-out rows"
    )
    ablate: dict[str, list[Any]] = Field(
        default={}, description="settings and the values to try, each alone, beside the configuration as it stands"
    )
    metric: str | None = Field(
        default=None, description="metric that is told first and compared; default: training.best_metric, or the task's"
    )
    keep_adapters: bool = Field(default=False, description="keep the adapter of every run, and not its figures alone")

    @field_validator("shares")
    @classmethod
    def _shares(cls, value: list[float]) -> list[float]:
        if any(not 0 < each <= 1 for each in value):
            raise ValueError("each must be above 0 and at most 1")
        return sorted(set(value))

    @field_validator("ablate", mode="before")
    @classmethod
    def _ablate(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for key, values in value.items():
            section, _, name = str(key).partition(".")
            if section not in ("adapter", "training") or not name:
                raise ValueError(f"{key}: name a setting in full, as in adapter.rank or training.weight_decay")
            if name == "seed":
                raise ValueError(f"{key}: that is what seeds is for")
            if name in ("dtype", "torch_dtype"):
                raise ValueError(f"{key}: is the base's, which all share; compare two cross-validations")
            if not isinstance(values, list) or not values:
                raise ValueError(f"{key}: give a list of values, as in [1, 8]")
            if any(values.count(each) > 1 for each in values):
                raise ValueError(f"{key}: names a value twice")
        return value

    @model_validator(mode="after")
    def _by_time(self) -> CrossValidationConfig:
        if self.time_column and self.repeats > 1:
            raise ValueError("repeats: by time there is one division alone; take more folds, or seeds")
        return self
