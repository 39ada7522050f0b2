"""A comparison of LoRA with full fine-tuning."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from lora.settings import Settings

RANKS = (1, 4, 16, 64)  # a factor of 4 apart: neighbours seldom differ by more than chance


class ComparisonConfig(Settings):
    """What a comparison of LoRA with full fine-tuning trains, and how it judges."""

    ranks: list[int] | None = Field(default=None, description=f"of the LoRA candidates; default: {RANKS}, as they fit")
    target_sets: list[str | list[str]] = Field(
        default=["all-linear", "attention"], description="of the LoRA candidates, each with every rank"
    )
    linear_probe: bool = Field(default=True, description="the base with its task head trained alone")
    full: bool = Field(default=True, description="full fine-tuning")
    # A step of about 3 loses little to the best rate in between, and the best is seldom below a third of the default.
    rate_factors: list[float] = Field(
        default=[1 / 3, 1, 3, 10], description="learning rates tried: times each kind's own default"
    )
    # The first run picks the rate; two more show how far runs of one setting differ.
    seeds: int = Field(default=3, ge=1, description="runs of each candidate at its chosen rate")
    margin: float | None = Field(
        default=None,
        gt=0,
        description="loss of the metric that would not matter; default: 0.01 of a share, else 1 % of the best's",
    )
    test: str | None = Field(default=None, description="test data; default: the source's test split, else split off")
    alone: bool = Field(default=True, description="measure memory and time of each by itself, in a process of its own")

    @field_validator("ranks", "rate_factors", "target_sets")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        if value is None:
            return None
        if not value:
            raise ValueError("names none")
        if any(isinstance(each, (int, float)) and each <= 0 for each in value):
            raise ValueError("each must be above 0")
        if any(value.count(each) > 1 for each in value):
            raise ValueError("names one twice")
        return value if isinstance(value[0], (str, list)) else sorted(value)
