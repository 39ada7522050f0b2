"""What is wrong with the rows, collected, so that one error names all of it."""

from __future__ import annotations

import math
from typing import Any, NoReturn

from lora.errors import DataError

SHOWN = 5  # rows named of each kind of problem; the rest is counted


class Problems:
    """Rows at fault, grouped by what is wrong with them. Row numbers start at 1, as in an editor."""

    def __init__(self) -> None:
        self._rows: dict[str, list[int]] = {}

    def add(self, what: str, index: int) -> None:
        """Note that the row at 0-based ``index`` has the problem ``what``."""
        self._rows.setdefault(what, []).append(index + 1)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __str__(self) -> str:
        return "\n".join(f"  {what}: {_rows(numbers)}" for what, numbers in self._rows.items())

    def fail(self, total: int, remedy: str) -> NoReturn:
        """Raise DataError with every problem; ``total`` is how many rows were looked at."""
        bad = len({number for numbers in self._rows.values() for number in numbers})
        raise DataError(f"{bad} of {total} rows cannot be used (rows counted from 1):\n{self}\n{remedy}")

    def raise_if_any(self, total: int, remedy: str) -> None:
        """As ``fail``, where there are problems; nothing otherwise."""
        if self:
            self.fail(total, remedy)


def _rows(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN]))
    more = len(numbers) - SHOWN
    return f"row{'s' if len(numbers) > 1 else ''} {shown}" + (f" and {more} more" if more > 0 else "")


def is_missing(value: Any) -> bool:
    """None and NaN (how pandas and parquet write an empty cell)."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def excerpt(value: Any, width: int = 40) -> str:
    """``value`` for an error message: its repr, cut at ``width`` characters."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"
