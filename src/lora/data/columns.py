"""The columns of a table, found by name, and what a task says of them.

Names are compared without regard to case; an exact spelling wins. Which names mean what to a task stands in the task's
own file, and `lora.tasks.recognise` compares what the tasks say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from lora.data.kinds import Kind, kind_of_labels
from lora.data.rows import named
from lora.data.streams import ListOrStream, looked_at
from lora.errors import DataError

# What people call a text. Where several are there, the first counts.
TEXT = (
    "text", "sentence", "content", "review", "message", "utterance", "comment", "tweet", "document", "query",
    "question", "body",
)  # fmt: skip
# What they call its label.
LABEL = (
    "label", "labels", "intent", "category", "class", "sentiment", "emotion", "emotions", "topic", "target", "score",
    "rating", "stars",
)  # fmt: skip
# What they call a conversation.
MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")


class Sign(IntEnum):
    """How clearly columns ask for a task. The clearest task is taken; among equals the first in the registry."""

    LEFT = 1  # nothing else fits: a lone column of text
    WEAK = 2  # names that other tasks use as well: a category beside a text
    USUAL = 3  # names that belong together: a prompt and a completion
    CLEAR = 4  # a name that means this and nothing else: a label beside a text
    NAMED = 5  # a setting names a column that this task reads


@dataclass(frozen=True)
class Claim:
    """What a task says of a table's columns.

    Attributes:
        sign: how clearly they are meant for it.
        roles: the columns it would read, by role, in the order in which they are told.
        why: a few words for the log.
        others: columns (quoted) that would have done as well.
        problem: why it cannot read them although it is meant; raised where no other claim is clearer.
    """

    sign: Sign
    roles: dict[str, str] = field(default_factory=dict)
    why: str = ""
    others: list[str] = field(default_factory=list)
    problem: DataError | None = None


@dataclass(frozen=True)
class Columns:
    """The task that was recognised and the columns it reads, by role; ``how`` says so in a sentence for the log."""

    task: str
    roles: dict[str, str]
    how: str = ""


class Table:
    """Rows seen as columns.

    Arguments:
        rows: at least one; a column is there if any row has it, of a stream any of its sample.
        named: columns that the settings name, by role, as the rows spell them.
    """

    def __init__(self, rows: ListOrStream, named: dict[str, str] | None = None) -> None:
        self.rows = looked_at(rows)
        self._every = rows
        self.named = named or {}
        self.all = list(dict.fromkeys(str(key) for row in self.rows for key in row))
        self._lower = {name.lower(): name for name in reversed(self.all)}
        self._kinds: dict[str, tuple[Kind, str]] = {}

    def get(self, *aliases: str) -> str | None:
        """The column of the first alias that is there."""
        return next(iter(self.every(aliases)), None)

    def every(self, aliases: tuple[str, ...]) -> list[str]:
        """The columns of all aliases that are there, in the order of the aliases."""
        found = [alias if alias in self.all else self._lower.get(alias.lower()) for alias in aliases]
        return [name for name in found if name is not None]

    def pair(self, pairs: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
        """The first pair of aliases whose columns are both there."""
        for first, second in pairs:
            one, two = self.get(first), self.get(second)
            if one and two:
                return one, two
        return None

    def holds_lists(self, name: str) -> bool:
        """Whether any cell of the column is a list."""
        return any(isinstance(row.get(name), list) for row in self.rows)

    def kind(self, name: str) -> tuple[Kind, str]:
        """What the column holds, taken as labels, and how that is seen. Several tasks ask; rows are read once."""
        if name not in self._kinds:
            self._kinds[name] = kind_of_labels(row.get(name) for row in self._every)
        return self._kinds[name]

    def error(self, message: str) -> DataError:
        """To raise: ``message`` after the file's name, and the columns there are."""
        return DataError(f"{named(self.rows)}{message}\ncolumns there are: {', '.join(self.all)}")
