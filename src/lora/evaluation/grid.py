"""A table that is written once and shown twice: in Markdown for a file, by rich for a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

Cell = str | tuple[str, str]  # text, or text and rich style


@dataclass
class Grid:
    """A table; the first column is left-aligned, the others right-aligned.

    Attributes:
        below: lines under the table, in full sentences.
        texts: all columns are left-aligned.
    """

    title: str
    headers: list[str]
    rows: list[list[Cell]]
    below: list[str] = field(default_factory=list)
    texts: bool = False

    def markdown(self) -> str:
        """Heading, table and lines below it."""
        lines = [f"## {self.title}", ""]
        if self.rows:
            others = ":--" if self.texts else "--:"
            lines += [_line(self.headers), _line([":--", *[others] * (len(self.headers) - 1)])]
            lines += [_line([escape(text(cell)) for cell in row]) for row in self.rows]
            lines.append("")
        for sentence in self.below:
            lines += [escape(sentence), ""]
        return "\n".join(lines)

    def rich(self) -> Table:
        """The same for a terminal."""
        from rich.table import Table
        from rich.text import Text

        out = Table(
            title=self.title, caption=Text("\n".join(self.below)) if self.below else None, caption_justify="left"
        )
        for place, header in enumerate(self.headers):
            out.add_column(Text(header), justify="right" if place and not self.texts else "left", overflow="fold")
        for row in self.rows:
            # Text, never markup: a class may be called "[red]".
            out.add_row(*[Text(cell) if isinstance(cell, str) else Text(cell[0], style=cell[1]) for cell in row])
        return out


def text(cell: Cell) -> str:
    """A cell's text without its style."""
    return cell if isinstance(cell, str) else cell[0]


def escape(value: str) -> str:
    """``value`` in one line of Markdown, where a bar would end the cell and a tag would be markup."""
    return " ".join(value.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
