"""What a task's contract (`lora.tasks.base`) is spoken of in: its columns, its settings, rows as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lora.data.problems import text_problem
from lora.errors import DataError
from lora.settings import Settings

# Of a part of an example its name, its token ids, and the labels of these; None: no token of it is learned by itself.
ExamplePart = tuple[str, list[int], list[int] | None]


class Options(Settings):
    """Settings that a task has for itself, given as ``data.options``. Those that have none leave it at this."""


class NoneLeft(DataError):
    """All rows were left out. ``notes``, ``truncated``: what `Encoded` would have had."""

    def __init__(self, message: str, notes: list[str], truncated: int) -> None:
        super().__init__(message)
        self.notes = notes
        self.truncated = truncated


@dataclass
class Encoded:
    """Rows as token ids, with what happened to them on the way.

    Attributes:
        examples: one dict per kept row: ``input_ids`` (list of int) and whatever else the task's ``collate`` needs.
            Where there are many they are read from the disk one by one (`lora.data.stored`).
        lengths: number of tokens of each example.
        supervised: number of supervised positions (tokens or labels) of each example.
        truncated: how many rows were longer than ``max_length``, those left out among them, those of replay not.
        notes: what a user should know, in full sentences (truncation, dropped rows).
        answers: of each example the text that is its answer, as the data have it; empty where that is not kept.
        ends: token ids with which answers end that were only met among the rows, see `Task.met`.
        shares: examples and weight of each source, one after another (see `BatchPlan`); empty: one source.
        digest: SHA-256 of all examples, where it is known already.
        of_rows: how many rows the examples come from, where it is known already.
        replay: how many of them, the last, are of ``data.replay``.
    """

    examples: Sequence[dict[str, Any]]
    lengths: Sequence[int]
    supervised: Sequence[int]
    truncated: int = 0
    notes: list[str] = field(default_factory=list)
    answers: Sequence[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    shares: list[tuple[int, float]] = field(default_factory=list)
    digest: str | None = None
    of_rows: int | None = None
    replay: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def own(self) -> int:
        """How many of the examples, the first, are of the data themselves."""
        return len(self) - self.replay

    @property
    def rows(self) -> int:
        """How many rows the examples come from; a long one may have become several, which then say their ``row``."""
        if self.of_rows is not None:
            return self.of_rows
        return len({example.get("row", place) for place, example in enumerate(self.examples)})


@dataclass(frozen=True)
class Input:
    """A column that the model sees.

    Attributes:
        blank: whether its text may be empty. A blank prompt is a wish like others; a blank text was not filled in.
        optional: whether a row may lack it.
        divisible: whether a row's text may be cut, each part being a row like the whole: running text.
    """

    column: str
    blank: bool = False
    optional: bool = False
    divisible: bool = False

    def problem(self, value: Any) -> str | None:
        """What is wrong with a cell as text; None: nothing. Columns of something else (messages, words) are of a class
        of their own, which says what they take."""
        return text_problem(value, self.blank)

    def asked(self, value: Any) -> str:
        """What of a cell the model is asked with: rows in which it is the same are the same question."""
        return "" if value is None else str(value)


def resized(values: Sequence[int], length: int) -> list[int]:
    """``values`` with each of them repeated, or some left out, evenly, until they are ``length``; the first and the
    last stay, since models look for an end."""
    step = (len(values) - 1) / max(1, length - 1)
    return [values[round(place * step)] for place in range(length - 1)] + [values[-1]]
