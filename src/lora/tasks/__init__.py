"""Tasks: the registry. A new task is one file and one line here."""

from __future__ import annotations

from typing import Any

from lora.errors import ConfigError
from lora.tasks.base import Encoded, Row, Task
from lora.tasks.causal import CausalTask
from lora.tasks.classification import ClassificationTask
from lora.tasks.multilabel import MultiLabelTask
from lora.tasks.regression import RegressionTask

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (ClassificationTask, MultiLabelTask, RegressionTask, CausalTask)
}


def task_class(name: str) -> type[Task]:
    """The task called ``name``; raises ConfigError listing the known ones."""
    try:
        return TASKS[name]
    except KeyError:
        raise ConfigError(f"task {name!r} is unknown; known: {', '.join(sorted(TASKS))}") from None


def from_state(state: dict[str, Any]) -> Task:
    """Restore a task from what ``Task.state`` returned (it holds ``"task": name``)."""
    cls = task_class(state["task"])
    return cls(**{key: value for key, value in state.items() if key != "task"})


__all__ = ["TASKS", "Encoded", "Row", "Task", "from_state", "task_class"]
