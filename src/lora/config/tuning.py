"""Section ``tune``: what a search for settings tries, how, and for how long."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lora.settings import Settings

Sampler = Literal["tpe", "random", "grid", "cmaes"]
Pruner = Literal["halving", "median", "none"]


class Domain(Settings):
    """Values that a setting may take in a search: a range, or choices.

    >>> Domain.make({"low": 1e-5, "high": 1e-3, "log": True})
    >>> Domain.make({"choices": ["linear", "cosine"], "when": {"variant": "plain"}})
    """

    low: float | int | None = Field(default=None, description="smallest value of a range")
    high: float | int | None = Field(default=None, description="largest value of a range")
    log: bool = Field(default=False, description="draw its logarithm evenly: for rates, where factors count")
    step: float | int | None = Field(default=None, gt=0, description="distance of the values of a range")
    points: int = Field(default=5, ge=2, description="values of a range without steps in a grid")
    choices: list[Any] | None = Field(default=None, description="single values")
    when: dict[str, Any] = Field(
        default_factory=dict,
        description="only where other searched settings have these values (one, or a list of them); else the setting "
        "stays as the configuration has it",
    )

    @field_validator("choices")
    @classmethod
    def _some(cls, value: list[Any] | None) -> list[Any] | None:
        if value is not None and not value:
            raise ValueError("names no value")
        if value is not None and any(value.count(each) > 1 for each in value):
            raise ValueError("names a value twice")
        return value

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if (self.choices is None) == (self.low is None and self.high is None):
            raise ValueError("needs either choices, or low and high")
        if self.choices is not None:
            if self.log or self.step is not None:
                raise ValueError("log and step are for a range, not for choices")
            return self
        if self.low is None or self.high is None:
            raise ValueError(f"{'high' if self.high is None else 'low'} is needed beside the other end of the range")
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low:g}) must be above 0 for a logarithm")
        if self.log and self.step is not None:
            raise ValueError("log and step cannot be had together; name choices")
        return self

    @property
    def whole(self) -> bool:
        """Whether the values of the range are whole numbers."""
        ends = [end for end in (self.low, self.high, self.step) if end is not None]
        return bool(ends) and all(isinstance(end, int) for end in ends)

    def values(self) -> list[Any]:
        """Those of a grid."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None, "checked"
        if self.step is not None:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return [self.low + k * self.step for k in range(count)]
        shares = [k / (self.points - 1) for k in range(self.points)]
        if self.log:
            out = [float(f"{self.low * (self.high / self.low) ** share:.4g}") for share in shares]
        else:
            out = [float(f"{self.low + (self.high - self.low) * share:.6g}") for share in shares]
        return list(dict.fromkeys(round(value) for value in out)) if self.whole else out

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is one of these."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None and self.high is not None, "checked"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return self.low <= value <= self.high and abs(steps - round(steps)) < 1e-9


class TuningConfig(Settings):
    """How good settings are searched for."""

    space: list[str] | dict[str, Any] = Field(
        default_factory=list,
        description="settings to search: names, each with its usual range, or a table of ranges and choices; default: "
        "learning_rate, rank, batch_size and dropout",
    )
    sampler: Sampler = Field(default="tpe", description="who proposes settings")
    pruner: Pruner | None = Field(
        default=None, description="who stops losing trials; default: halving, with several objectives none"
    )
    # 20: half of them drawn at random, which the sampler learns from, and as many that it proposes.
    trials: int | None = Field(
        default=None, ge=1, description="how many; default: 20, of a grid all, with another budget any number"
    )
    minutes: float | None = Field(default=None, gt=0, description="no trial begins after so long")
    tokens: int | None = Field(default=None, ge=1, description="no trial begins after so many tokens have been trained")
    objectives: list[str] = Field(
        default_factory=list,
        description="metrics on the validation rows, and size (trained parameters) or latency (ms per row); "
        "default: the metric that picks checkpoints",
    )
    # A run that won a search was lucky too. Fresh seeds, the same for both sides, say what the settings are worth.
    seeds: int = Field(
        default=3, ge=0, description="fresh runs of the winner, and as many of the default; 0: none, and no verdict"
    )
    test: str | None = Field(default=None, description="test data; default: the source's test split, else split off")
    storage: str | None = Field(
        default=None, description="database of the study, shared with others; default: study.db in the output folder"
    )
    study: str = Field(default="tune", min_length=1, description="name of the study in that database")
    quick: bool = Field(default=False, description="a short probe of learning rates, and nothing else")

    @field_validator("objectives")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if any(value.count(each) > 1 for each in value):
            raise ValueError("names one twice")
        return value

    @model_validator(mode="after")
    def _one_objective_to_prune_by(self) -> Self:
        if len(self.objectives) > 1 and self.pruner not in (None, "none"):
            raise ValueError("pruner: with several objectives nobody knows who is losing; leave it out")
        return self
