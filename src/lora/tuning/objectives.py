"""What trials are compared by: metrics on the validation rows, the adapter's size, its latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora.config import RunConfig
from lora.errors import ConfigError
from lora.model.lora import LoRA
from lora.tasks import Encoded, Task
from lora.tasks.inference import infer
from lora.training.participant import FitResult
from lora.training.prepare import Prepared
from lora.training.trainee import greater_is_better

SIZE, LATENCY = "size", "latency"
TIMED = 32  # rows that latency is the median of


@dataclass(frozen=True)
class Objective:
    """One of them.

    Attributes:
        key: a metric of the task, ``size`` (trained parameters) or ``latency`` (milliseconds of a row by itself).
        greater: whether more of it is better.
    """

    key: str
    greater: bool

    @property
    def is_metric(self) -> bool:
        return self.key not in (SIZE, LATENCY)

    @property
    def direction(self) -> str:
        return "maximize" if self.greater else "minimize"


def objectives(asked: Sequence[str], config: RunConfig, task: Task) -> list[Objective]:
    """Those of a search; the first metric picks the checkpoint of each trial, and goes into ``config``.

    Raises:
        ConfigError: a metric that the task does not measure, or none at all.
    """
    names = list(asked) or [config.training.best_metric or task.best_metric]
    problems, out = list[str](), list[Objective]()
    for name in names:
        if name in (SIZE, LATENCY):
            out.append(Objective(name, False))
        elif name in task.measures:
            out.append(Objective(name, greater_is_better(name, config.training, task)))
        else:
            known = ", ".join([*task.measures, SIZE, LATENCY])
            problems.append(f"tune.objectives: {name!r} is not measured for the task {task.name}; known: {known}")
    if not problems and not any(its.is_metric for its in out):
        problems.append("tune.objectives: size and latency alone are best where nothing is learned; add a metric")
    if problems:
        raise ConfigError("\n".join(problems))
    picks = next(its for its in out if its.is_metric)
    if asked and config.training.best_metric not in (None, picks.key):
        raise ConfigError(
            f"training.best_metric: {config.training.best_metric!r} would pick checkpoints by another metric than "
            f"tune.objectives ({picks.key}); leave it out"
        )
    config.training.best_metric = picks.key
    return out


def metrics_of(result: FitResult) -> dict[str, Any]:
    """The evaluation of the checkpoint that was kept."""
    lines = [line for line in result.history if line.get("step") == result.best_step and "eval" in line]
    return dict(lines[-1]["eval"]) if lines else {}


def values_of(
    wanted: Sequence[Objective], model: LoRA, prepared: Prepared, name: str, result: FitResult
) -> list[float]:
    """What a finished trial is worth; NaN where a metric is undefined. Its adapter is on the model."""
    found = metrics_of(result)
    measured = {
        SIZE: lambda: float(parameters_of(model, name)),
        LATENCY: lambda: latency(model, prepared, name),
    }
    return [
        float(found.get(its.key, float("nan"))) if its.is_metric else measured[its.key]() for its in wanted
    ]  # fmt: skip


def parameters_of(model: LoRA, name: str) -> int:
    """Parameters that adapter ``name`` trains."""
    return sum(parameter.numel() for parameter in model.adapter_parameters(name).values())


def latency(model: LoRA, prepared: Prepared, name: str) -> float:
    """Median milliseconds of validation rows one by one, the adapter unmerged."""
    held = prepared.held
    assert held is not None, "there are validation rows"
    times = []
    for at in range(min(TIMED, len(held)) + 1):  # the first one warms up
        row = slice(max(0, at - 1), max(1, at))
        one = Encoded(held.examples[row], held.lengths[row], held.supervised[row])
        begun = time.perf_counter()
        infer(model, prepared.task, one, [name], pad_token_id=prepared.pad_token_id, batch_size=1,
              padding_side=prepared.padding_side)  # fmt: skip
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times[1:])
