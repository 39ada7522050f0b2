"""What the tasks share whose rows go through a chat template: its settings, its format, the messages in a cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

from pydantic import Field

from lora.data.conversations import Message, holds_messages, read_messages, to_answer
from lora.data.formats import Format, settle
from lora.data.problems import text_problem
from lora.data.rendering import Renderer
from lora.tasks.base import Input, Options, Row, Task


class TemplateOptions(Options):
    """Settings of all tasks that put a chat template around their rows."""

    template: str | None = Field(
        default=None, description="a named chat template, a .jinja file or its text; default: the tokenizer's own"
    )
    template_options: dict[str, Any] = Field(
        default_factory=dict, description="further variables of the template, as in {enable_thinking: false}"
    )
    system_prompt: str | None = Field(default=None, description="system message of rows that have none")


@dataclass(frozen=True)
class MessagesInput(Input):
    """A column of messages; a string is one message of ``role``."""

    role: str = "user"

    def problem(self, value: Any) -> str | None:
        return problem_of(lambda its: to_messages(its, self.role), value)

    def asked(self, value: Any) -> str:
        """All before the last answer; of a cell that holds no answer, all."""
        try:
            messages = to_answer(to_messages(value, self.role))
        except ValueError:
            return super().asked(value)
        return "\n".join(f"{one['role']}: {one['content']} {one.get('tool_calls', '')}" for one in messages)


def problem_of(read: Callable[[Any], Any], value: Any) -> str | None:
    """Why ``read`` cannot read a cell; None: it can."""
    try:
        read(value)
    except ValueError as error:
        return str(error)
    return None


class Templated(Task):
    """A task whose rows go through a chat template. ``format`` is what `with_tokenizer` found, kept in ``state``."""

    options: ClassVar[type[Options]] = TemplateOptions
    settings: TemplateOptions
    chat = True  # whether a template is put around its rows

    def __init__(self, format: Format | None, options: dict[str, Any]) -> None:
        """Raises ConfigError: unknown options, or bad values."""
        self.format = format
        self.settings = cast("TemplateOptions", self.options.make(options))
        self._remarks: list[str] = []

    def with_tokenizer(self, tokenizer: Any) -> Self:
        """With the template in force, and what it makes of a fixed conversation.

        Raises:
            ConfigError: there is no such template, or the tokenizer lacks its tokens.
            DataError: the adapter was trained with a tokenizer that makes other tokens of that conversation.
        """
        if not self.chat:
            return self
        state = {key: value for key, value in self.state().items() if key != "task"}
        made, _, notes = settle(self.format, self.settings.template, self.settings.template_options, tokenizer)
        task = type(self)(**{**state, "format": made})
        task._remarks = notes
        return task

    def remarks(self) -> list[str]:
        return self._remarks

    def ends(self) -> list[int]:
        return list((self.format or {}).get("ends", ()))

    def _rendering(self, tokenizer: Any) -> tuple[Self, Renderer]:
        """The task with its format settled, and what renders messages by it. Raises as `with_tokenizer`."""
        task = self if self.format is not None else self.with_tokenizer(tokenizer)
        assert task.format is not None
        return task, Renderer(tokenizer, task.format["template"], self.settings.template_options)


def to_messages(value: Any, role: str = "user") -> list[Message]:
    """Messages of a cell; a text that is no list of them is one message of ``role``. Raises ValueError."""
    if isinstance(value, str) and not holds_messages(value):
        if problem := text_problem(value, blank=role == "user"):
            raise ValueError(problem)
        return [{"role": role, "content": value}]
    return read_messages(value)


def named_error(column: str, read: Any, row: Row) -> Any:
    try:
        return read(row.get(column))
    except ValueError as error:
        mark = ":" if str(error).startswith("message ") else ""
        raise ValueError(f"{column}{mark} {error}") from None
