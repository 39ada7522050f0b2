"""What a look at data finds, in a form that can be printed, written as JSON and weighed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora.data.rows import Row, SourceRow, origins, places
from lora.plural import number_of
from lora.tasks import Encoded

counted = number_of

# mend: results would be wrong or worthless; look: often a mistake, sometimes meant; note: good to know.
Level = Literal["mend", "look", "note"]
LISTED = 100  # rows that the JSON names of each finding
SHOWN = 60  # characters of a text that are quoted


@dataclass(frozen=True)
class Part:
    """The rows of a split as they were read, and the examples that they became."""

    name: str  # training, held-out or test
    rows: list[Row]
    encoded: Encoded


@dataclass(frozen=True)
class Remark:
    """Something found in rows.

    Attributes:
        kind: a word for programs.
        what: for people, counts included.
        why: why it matters, and what to do.
        rows: how many rows have it.
        places: where, as in errors: ``lines 3, 17 and 4 more``.
        at: the first hundred of them, each with its source and its number there.
        quotes: a few of them, as they are.
    """

    kind: str
    level: Level
    what: str
    why: str
    rows: int = 0
    places: str = ""
    at: list[dict[str, Any]] = field(default_factory=list)
    quotes: list[str] = field(default_factory=list)


def found(
    kind: str, level: Level, what: str, why: str, rows: Sequence[Row], indices: Sequence[int],
    quotes: Sequence[str] = (),
) -> Remark:  # fmt: skip
    """A finding at the 0-based ``indices`` of ``rows``."""
    at = [located(rows, index) for index in indices[:LISTED]]
    return Remark(kind, level, what, why, len(indices), where(rows, indices), at, list(quotes))


def located(rows: Sequence[Row], index: int) -> dict[str, Any]:
    row = rows[index]
    known = isinstance(row, SourceRow)
    return {"source": row.origin.name, "number": row.number} if known else {"source": "", "number": index + 1}  # type: ignore[attr-defined]


def where(rows: Sequence[Row], indices: Sequence[int]) -> str:
    """`places`, with the names of files, and not their folders, where there are several."""
    sources = [origin.name for origin in origins(rows)]
    text = places(rows, indices, with_names=len(set(sources)) > 1)
    short = {name: Path(name).name for name in sources if name}
    if len(set(short.values())) == len(short):
        for name, shorter in short.items():
            text = text.replace(name, shorter)
    return text


def share(part: float, whole: float) -> str:
    """A percentage that is not rounded to nothing."""
    value = 100 * part / whole if whole else 0.0
    if 0 < value < 0.05:
        return "< 0.1 %"
    return f"{value:.1f} %" if 0 < value < 99.95 and value != round(value) else f"{value:.0f} %"


def quote(text: str, width: int = SHOWN) -> str:
    """``text`` in one line, cut."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
