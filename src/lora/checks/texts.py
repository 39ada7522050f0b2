"""What rows say, whatever their task: what is asked, what is to be answered, and every text in them.

A task names its columns by role, and says which of them the model sees; more is not known of it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lora.data.conversations import Message, holds_messages, read_messages, to_answer
from lora.data.problems import is_missing
from lora.tasks import Row, Task


@dataclass(frozen=True)
class Said:
    """One row.

    Attributes:
        asked: what the model sees, of all its columns; of a conversation all before the last answer.
        answers: what it should give: a label, a completion, or the chosen and the rejected answer.
        texts: every text of these, as they are.
        messages: of its conversation; empty: it holds none.
    """

    asked: str
    answers: tuple[str, ...]
    texts: tuple[str, ...]
    messages: tuple[Message, ...] = ()

    @property
    def key(self) -> str:
        """What is asked, case and white space aside; empty where nothing is, which is the same as nothing else."""
        return plain(self.asked)


def plain(text: str) -> str:
    """``text``, case and white space aside: as the held-out split takes inputs for the same."""
    return " ".join(text.casefold().split())


def columns_of(task: Task) -> dict[str, str]:
    """The columns that ``task`` reads, by role."""
    state = task.state()
    return {role: state[role] for role in task.roles if state.get(role)}


def read(task: Task, row: Row) -> Said:
    """What ``row`` says to ``task``."""
    seen = [given.column for given in task.inputs()]
    asked, answers, texts, conversation = list[str](), list[str](), list[str](), list[Message]()
    for column in dict.fromkeys([*seen, *columns_of(task).values()]):
        value = row.get(column)
        if is_missing(value):
            continue
        messages = messages_in(value)
        if not messages:
            (asked if column in seen else answers).append(_flat(value))
            texts += strings(value)
            continue
        before = to_answer(messages)
        answer = messages[len(before) :]
        if column in seen:
            asked += map(_line, before)
            conversation = conversation or messages
        else:
            answer = answer or messages
        if answer:
            answers.append("\n".join(map(_line, answer)))
        texts += [text for message in messages for text in strings(message)]
    return Said("\n".join(asked), tuple(answers), tuple(texts), tuple(conversation))


def messages_in(value: Any) -> list[Message]:
    """The messages of a cell; none where it holds none."""
    if not holds_messages(value):
        return []
    try:
        return read_messages(value)
    except ValueError:  # a list of tools, of which each is a dict as well
        return []


def strings(value: Any) -> Iterator[str]:
    """Every text in a cell."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            if key != "role":
                yield from strings(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from strings(part)


def _line(message: Message) -> str:
    calls = f" {message['tool_calls']}" if message.get("tool_calls") else ""
    return f"{message['role']}: {message['content']}{calls}"


def _flat(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
