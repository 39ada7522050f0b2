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


def running_text(base: Any, column: str = "text") -> Task | None:
    """The task by which a base of the configuration ``base`` reads running text; None: none of them."""
    found = (kind.for_running_text(base, column) for kind in TASKS.values())
    return next((task for task in found if task is not None), None)


__all__ = ["TASKS", "Encoded", "Input", "Options", "Row", "Task", "from_state", "running_text", "task_class"]
