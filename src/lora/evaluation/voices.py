"""How each adapter is asked, and what ends its answers: by the task that is stored with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora.core.routing import BASE
from lora.errors import ConfigError
from lora.evaluation.generation import ends_of
from lora.evaluation.inputs import stored_task
from lora.tasks import TASKS, Row, Task

if TYPE_CHECKING:
    from lora.model.lora import LoRA


@dataclass(frozen=True)
class Voice:
    """An adapter that writes.

    Attributes:
        task: with the tokenizer's format settled.
        ends: token ids that end its texts.
    """

    name: str
    task: Task
    ends: frozenset[int]

    @property
    def chats(self) -> bool:
        """Whether it is asked with messages in a chat template, and not with a bare text."""
        return self.task.format is not None

    @property
    def column(self) -> str:
        """The column of its prompt."""
        return self.task.inputs()[0].column

    @property
    def tools(self) -> str | None:
        """The column of the functions that it may call; None: it knows of none."""
        return self.task.tools

    def prompts(self, rows: list[Row], tokenizer: Any, max_length: int) -> tuple[list[list[int]], list[str]]:
        """Token ids that its text follows, of each of ``rows``, and what a user should know. Raises DataError."""
        encoded = self.task.encode(rows, tokenizer, max_length, supervised=False)
        return [example["input_ids"] for example in encoded.examples], encoded.notes


def voices_of(
    model: LoRA, names: Sequence[str], tokenizer: Any, tasks: Mapping[str, Task] | None = None
) -> dict[str, Voice]:
    """A voice for each of ``names``. The base is asked as the model's first adapter is, else as `base_task` says.

    Args:
        tasks: of adapters that store none.

    Raises:
        ConfigError: an adapter's task is not known, or writes no text.
        DataError: the tokenizer is not the one that an adapter was trained with.
    """
    out = {}
    for name in names:
        task = _task_of(model, name, tasks or {}, tokenizer)
        if not task.generates:
            raise ConfigError(
                f"the adapter {name!r} was trained for the task {task.name}, which writes no text; use predict"
            )
        task = task.with_tokenizer(tokenizer)
        out[name] = Voice(name, task, ends_of(model, tokenizer, task))
    return out


def _task_of(model: LoRA, name: str, tasks: Mapping[str, Task], tokenizer: Any) -> Task:
    if name in tasks:
        return tasks[name]
    if name == BASE:
        first = next(iter(model.adapters), None)
        if first:
            return _task_of(model, first, tasks, tokenizer)
        return base_task(tokenizer, getattr(model.base, "config", None))
    stored = stored_task(model, [name])
    if stored is None:
        raise ConfigError(f"no task is stored with the adapter {name!r} (PEFT keeps none); pass tasks={{...}}")
    return stored


def base_task(tokenizer: Any, base: Any, chat: bool = False) -> Task:
    """How a base without adapters is asked: in its tokenizer's chat template, else with the bare prompt.

    Args:
        base: its configuration.
        chat: with messages in any case, where it can be.
    """
    messages = chat or bool(getattr(tokenizer, "chat_template", None))
    found = (kind.for_texts(base, messages) for kind in TASKS.values())
    return next(task for task in found if task is not None)
