"""What a section of the page is made of; the template has a macro for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from lora.evaluation.grid import Cell, Grid, Number


@dataclass(frozen=True)
class Table:
    """A `Grid`; ``heading`` false where the section's own says enough. Long ones scroll in a box."""

    grid: Grid
    heading: bool = True
    sortable: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Panel:
    """A chart with its heading; ``tables`` have the same numbers for those who cannot see it."""

    title: str
    svg: Markup
    tables: Sequence[Grid] = ()
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Panels:
    """Charts side by side, as many as there is room for."""

    panels: Sequence[Panel]
    kind: ClassVar[str] = "panels"


@dataclass(frozen=True)
class Text:
    """A text that is shown as it is; ``more`` is the rest of it, folded, and ``left_out`` what the page has not."""

    said: str
    more: str = ""
    left_out: int = 0


@dataclass(frozen=True)
class Answer:
    """A text beside others: who says it, in what colour."""

    name: str
    text: Text
    place: int


@dataclass(frozen=True)
class Card:
    """A row of the data, and what was answered."""

    head: Sequence[tuple[str, Cell]]
    text: Text
    answers: Sequence[Answer] = ()


@dataclass(frozen=True)
class Cards:
    """Rows one below the other; the first ones open, ``folded`` behind a line that says so."""

    title: str
    cards: Sequence[Card]
    folded: Sequence[Card] = ()
    below: Sequence[Cell] = ()
    kind: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Lines:
    """Sentences; as points, where ``points``."""

    lines: Sequence[Cell]
    points: bool = False
    heading: str = ""
    kind: ClassVar[str] = "lines"


@dataclass(frozen=True)
class Code:
    """A text of a fixed width; ``path`` says where in the report what it writes stands."""

    said: str
    path: str = ""
    summary: str = ""
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Fold:
    """Blocks behind a line."""

    summary: str
    blocks: Sequence[Block]
    kind: ClassVar[str] = "fold"


Block = Table | Panels | Cards | Lines | Code | Fold


@dataclass(frozen=True)
class Section:
    """A part of the page; none is shown without blocks. ``hint`` says in a sentence how it is read."""

    key: str
    title: str
    blocks: Sequence[Block]
    hint: str = ""


FAILED = "This part of the report has a shape that is not known here, so it is not shown; the JSON has it: "


def section(key: str, title: str, blocks: Callable[[], Sequence[Block]], hint: str = "") -> Section:
    """A section; where its part of the report is none that this version can read, it says so, and the others stand."""
    try:
        return Section(key, title, blocks(), hint)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return Section(key, title, [Lines([f"{FAILED}{type(error).__name__}: {error}"])])


@dataclass(frozen=True)
class Tile:
    """A number at the head of the page: what it is, how sure, against what."""

    label: str
    number: Number
    unit: str = ""
    interval: Cell = ""
    beside: Cell = ""
    verdict: str = ""
    style: str = ""
    place: int = 1


@dataclass(frozen=True)
class Head:
    """What stands at the head of the page: of what ``kind`` it is, whose, the outcome in a sentence or a few."""

    kind: str
    name: str
    task: str
    said: Cell
    tiles: Sequence[Tile] = ()


@dataclass
class Keys:
    """Names for elements that others refer to, no two alike on a page."""

    made: int = field(default=0)

    def __call__(self) -> str:
        self.made += 1
        return f"c{self.made}"
