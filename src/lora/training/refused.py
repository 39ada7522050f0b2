"""Settings that compare what is said of a row with something else, and the tasks that have no place for it."""

from __future__ import annotations

from lora.config import TrainingConfig
from lora.errors import ConfigError
from lora.tasks import Encoded, Task


def check_kl(task: Task, data: Encoded, settings: TrainingConfig) -> None:
    """Raise ConfigError where nothing of the task can be held to the base, or there are no rows to be."""
    if settings.kl and not task.holds_to_base:
        why = "its loss holds it to the base already: set data.options {beta: ...} instead" if task.generates else (
            "its head is no part of what the base could do: a lower rate, fewer steps or a smaller rank forget less"
        )  # fmt: skip
        raise ConfigError(f"training.kl: is for tasks that learn to write, and this is {task.name}; {why}")
    if settings.kl and settings.kl_on == "replay" and not data.replay:
        raise ConfigError("training.kl_on: 'replay' needs data.replay, general text that is learned beside the rows")
    if not settings.kl and settings.kl_on != "all":
        raise ConfigError("training.kl_on: says on which rows training.kl acts, which is 0; set it too")


def check_r_drop(task: Task, settings: TrainingConfig) -> None:
    """Raise ConfigError where there is nothing in two passes that could be held to each other, or it is too much."""
    if settings.r_drop and not task.agrees:
        raise ConfigError(
            f"training.r_drop: two passes of a row are compared by what they say of it, and {task.name} says which of "
            "two answers is better, each in its own row; leave it out"
        )
    if settings.r_drop and settings.kl:
        raise ConfigError(
            "training.r_drop: not together with training.kl, since each has every token compared with what another "
            "pass says of it; choose one"
        )
