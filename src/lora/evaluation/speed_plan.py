"""What `lora.evaluation.speed_grid` is asked to measure, what it measured, and what one measurement is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lora.config import SPEED_SECONDS
from lora.errors import ConfigError

if TYPE_CHECKING:
    from lora.model.lora import LoRA

PERCENTILES = (50, 95, 99)

clock = time.perf_counter


@dataclass(frozen=True)
class SpeedPlan:
    """What is measured.

    Attributes:
        batch_sizes: rows of one pass.
        lengths: tokens of a row, each a length that rows of the data have or the nearest to it; default: the 10th, 50th
            and 90th percentile of the data's.
        seconds: budget of the whole grid, half of it for writing where the task writes. Passes that were begun are
            ended, every shape is passed once before, and writing behind the fewest prompts is measured at least once.
        new_tokens: that are written behind a prompt.
        merged: measure each adapter merged into a copy of the base too.
    """

    batch_sizes: Sequence[int] = (1, 8, 32)
    lengths: Sequence[int] | None = None
    seconds: float = SPEED_SECONDS
    new_tokens: int = 32
    merged: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "lengths"):
            values = getattr(self, name)
            if values is not None and (not values or any(value < 1 for value in values)):
                raise ConfigError(f"speed.{name} is {values!r}; numbers of at least 1 are needed")
        if self.seconds <= 0 or self.new_tokens < 2:
            raise ConfigError("speed: seconds must be above 0 and new_tokens at least 2")


@dataclass
class SpeedGrid:
    """What was measured.

    Attributes:
        passes: of each batch size and length ``batch_size``, ``length`` (tokens of each row, no padding),
            ``repetitions``, ``none`` (percentiles that are None, and why) and ``runs``: by name (``"base"``, an
            adapter, ``"NAME, merged"``) ``p50_ms``, ``p95_ms``, ``p99_ms`` of one forward pass, ``rows_per_second``,
            ``tokens_per_second``, ``peak_memory_bytes`` and ``to_base``, the factor of ``p50_ms`` with its interval.
        generation: of each batch size ``batch_size``, ``prompt_tokens``, ``new_tokens``, ``repetitions``, ``none`` and
            ``runs``: by name ``first_token_p50_ms`` (and 95, 99), ``tokens_per_second`` of all rows together from the
            first token on, ``peak_memory_bytes``, and ``to_base`` with factors of both.
        peak_memory_kind: of what; copies of the base that a run does not use are taken off.
        notes: what was left out, and why, in full sentences.
    """

    passes: list[dict[str, Any]] = field(default_factory=list)
    generation: list[dict[str, Any]] = field(default_factory=list)
    peak_memory_kind: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Run:
    """One thing that is timed: a model, the adapter of its rows, and the bytes of weights that are its own copy."""

    model: LoRA
    adapter: str
    own: int = 0


@dataclass
class Job:
    """One shape: what a run does once, giving the seconds that count, and what becomes of them all."""

    said: str
    once: Callable[[Run], list[float]]
    put: Callable[[dict[str, list[list[float]]], dict[str, int]], None]


def percentiles(seconds: Sequence[float], prefix: str = "") -> dict[str, float | None]:
    """``p50_ms``, ``p95_ms``, ``p99_ms``: each only with so many repetitions that one is expected to lie above it."""
    return {
        f"{prefix}p{share}_ms": 1000 * float(np.percentile(seconds, share)) if len(seconds) >= needed(share) else None
        for share in PERCENTILES
    }


def needed(share: int) -> int:
    """Repetitions that a percentile above the median needs: 20 for the 95th, 100 for the 99th."""
    return 1 if share == 50 else round(100 / (100 - share))


def why(repetitions: int) -> dict[str, str]:
    """Percentiles that so few repetitions have not, and why."""
    return {
        f"p{share}": f"needs {needed(share)} repetitions, and there were {repetitions}"
        for share in PERCENTILES
        if repetitions < needed(share)
    }
