"""A table that is written once and shown everywhere: in Markdown, on a page, by rich for a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Number:
    """A number as it is shown, and where in ``report.json`` it stands.

    Attributes:
        value: what the file holds (of a difference: the difference itself); None where it is undefined.
        path: JSON pointer (RFC 6901) to it. Of a difference the minuend's, and ``minus`` the subtrahend's.
        scale: what the value was divided by before it was written, such as 2**20 for bytes as MiB.
        style: of rich.
    """

    text: str
    value: float | None
    path: str
    minus: str = ""
    scale: float = 1
    style: str = ""


Piece = str | tuple[str, str] | Number  # text; text and rich style; a number
Cell = Piece | list[Piece]


def pointer(*keys: object) -> str:
    """The JSON pointer (RFC 6901) that leads along ``keys``."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


@dataclass
class Grid:
    """A table; the first column is left-aligned, the others right-aligned.

    Attributes:
        below: lines under the table, in full sentences.
        texts: all columns are left-aligned.
        left: so many columns from the first on are left-aligned where not all are.
    """

    title: str
    headers: list[str]
    rows: list[list[Cell]]
    below: list[Cell] = field(default_factory=list)
    texts: bool = False
    left: int = 1

    def markdown(self) -> str:
        """Heading, table and lines below it."""
        lines = [f"## {escape(self.title)}", ""]
        if self.rows:
            sides = [":--" if self.is_left(place) else "--:" for place in range(len(self.headers))]
            lines += [_line([escape(header) for header in self.headers]), _line(sides)]
            lines += [_line([escape(text(cell)) for cell in row]) for row in self.rows]
            lines.append("")
        for sentence in self.below:
            lines += [escape(text(sentence)), ""]
        return "\n".join(lines)

    def is_left(self, column: int) -> bool:
        """Whether that column is left-aligned."""
        return self.texts or column < self.left

    def rich(self) -> Table:
        """The same for a terminal."""
        from rich.table import Table
        from rich.text import Text

        out = Table(
            title=self.title,
            caption=Text("\n".join(map(text, self.below))) if self.below else None,
            caption_justify="left",
        )
        for place, header in enumerate(self.headers):
            out.add_column(Text(header), justify="left" if self.is_left(place) else "right", overflow="fold")
        for row in self.rows:
            # Text, never markup: a class may be called "[red]".
            parts = [[(text(piece), style(piece)) for piece in pieces(cell)] for cell in row]
            out.add_row(*[Text(*own[0]) if len(own) == 1 else Text.assemble(*own) for own in parts])
        return out


def pieces(cell: Cell) -> list[Piece]:
    """A cell's parts, one after another."""
    return cell if isinstance(cell, list) else [cell]


def text(cell: Cell) -> str:
    """A cell's text without its style."""
    if isinstance(cell, list):
        return "".join(map(text, cell))
    if isinstance(cell, Number):
        return cell.text
    return cell if isinstance(cell, str) else cell[0]


def style(piece: Piece) -> str:
    """The rich style of a part."""
    if isinstance(piece, Number):
        return piece.style
    return "" if isinstance(piece, str) else piece[1]


def escape(value: str) -> str:
    """``value`` in one line of Markdown, where a bar would end the cell and a tag would be markup."""
    return " ".join(value.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
