"""What a training run will need, before anything is loaded."""

from __future__ import annotations

from typing import Any

from lora.tasks import Encoded, Task, task_class
from lora.training.prepare import Prepared


def made_up(task: str, length: int, rows: int, held: int = 0, labels: int = 8) -> Prepared:
    """Rows of ``length`` tokens, all of them supervised, where there are no data."""
    kind: Any = task_class(task)
    made: Task
    if task == "causal":
        made = kind(text="text")
    else:
        made = kind.from_rows([{"text": "-", "label": f"{n}"} for n in range(labels)], {"text": "text", "label": "label"})
    example = {"input_ids": [1] * length, "labels": [1] * length} if task == "causal" else {"input_ids": [1] * length, "label": "0"}

    def some(count: int) -> Encoded:
        return Encoded([example] * count, [length] * count, [length - 1 if task == "causal" else 1] * count)

    return Prepared(made, None, some(rows), some(held) if held else None, None, length, 0, "right", [], "")
