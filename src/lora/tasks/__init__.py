"""Tasks: one file each, and a line in `lora.registry`."""

from __future__ import annotations

from typing import Any

from lora import registry
from lora.errors import ConfigError
from lora.tasks.base import Encoded, Input, Options, Row, Task

TASKS: dict[str, type[Task]] = {name: registry.load(place) for name, place in registry.TASKS.items()}


def task_class(name: str) -> type[Task]:
    """The task called ``name``; raises ConfigError listing the known ones."""
    try:
        return TASKS[name]
    except KeyError:
        raise ConfigError(f"task {name!r} is {registry.unknown(name, TASKS)}") from None


def from_state(state: dict[str, Any]) -> Task:
    """Restore a task from what ``Task.state`` returned (it holds ``"task": name``)."""
    cls = task_class(state["task"])
    return cls(**{key: value for key, value in state.items() if key != "task"})


__all__ = ["TASKS", "Encoded", "Input", "Options", "Row", "Task", "from_state", "task_class"]
