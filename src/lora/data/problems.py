"""What is wrong with the rows, collected, so that one error names all of it."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from lora.data.rows import Row, origins, places
from lora.errors import DataError
from lora.plural import number_of

KINDS = 8  # kinds of problem that are told; a column of texts for numbers has as many as it has texts


class Problems:
    """Rows at fault, grouped by what is wrong with them.

    Arguments:
        rows: all that are looked at. They are named by their place in their file; without one, counted from 1.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._found: dict[str, list[int]] = {}

    def add(self, what: str, index: int) -> None:
        """Note that the row at 0-based ``index`` has the problem ``what``."""
        self._found.setdefault(what, []).append(index)

    def __bool__(self) -> bool:
        return bool(self._found)

    def fail(self, remedy: str) -> NoReturn:
        """Raise DataError with every problem."""
        bad = sorted({index for indices in self._found.values() for index in indices})
        sources = origins(self._rows[index] for index in bad)
        known = any(source.name for source in sources)
        start = f"{sources[0].name}: " if known and len(sources) == 1 else ""
        counted = "" if known else " (rows counted from 1)"
        lines = [f"{start}{len(bad)} of {number_of(len(self._rows), 'row')} cannot be used{counted}:"]
        for what, indices in list(self._found.items())[:KINDS]:
            lines.append(f"  {what}: {places(self._rows, indices, with_names=len(sources) > 1)}")
        if len(self._found) > KINDS:
            lines.append(f"  … and {len(self._found) - KINDS} more of the kind")
        raise DataError("\n".join([*lines, remedy]))

    def raise_if_any(self, remedy: str) -> None:
        """As ``fail``, where there are problems; nothing otherwise."""
        if self:
            self.fail(remedy)


def text_problem(value: Any, blank: bool = False) -> str | None:
    """What is wrong with a cell that should hold text; None: nothing. ``blank``: an empty one will do."""
    if is_missing(value):
        return "is missing"
    if not isinstance(value, str):
        return f"is of the type {type(value).__name__}, not text"
    if not blank and not value.strip():
        return "is empty"
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            # JSON's \ud800 without its other half: no tokenizer takes it, no file could hold it.
            return f"holds half a character ({value[error.start]!a} at {error.start + 1})"
    return None


def written_list(text: str) -> list[Any] | None:
    """The list that a cell of a CSV file holds, written as JSON or as Python (and pandas) does; None: it is none."""
    if not (text.lstrip().startswith("[") and text.rstrip().endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list) else None
    return None


def is_missing(value: Any) -> bool:
    """None and NaN (how pandas and parquet write an empty cell)."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def excerpt(value: Any, width: int = 40) -> str:
    """``value`` for an error message: its repr, cut at ``width`` characters."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"
