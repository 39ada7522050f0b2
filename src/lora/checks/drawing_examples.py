"""Examples for the eye, token by token: learned or not, special or not, where tokens end, white space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from lora.checks.characters import visible
from lora.checks.examples import Example
from lora.checks.remarks import counted
from lora.checks.stretches import Piece, Stretch

HEAD, TAIL = 40, 20  # tokens shown of a longer run
RUN = 80  # tokens of a run that is still shown whole
FIRST, LAST = 4, 2  # parts shown of a longer conversation
NAMES = 9  # characters for the names of parts
SPACES = str.maketrans({" ": "·", "\t": "→"})
LEARNED, OTHER, SPECIAL, SPECIAL_LEARNED = "bold green", "dim", "magenta", "bold green reverse"


@dataclass(frozen=True)
class Way:
    """How tokens are told apart: by colour, or by marks."""

    colour: bool

    def legend(self) -> Text:
        if self.colour:
            return Text.assemble(
                ("learned", LEARNED), "  ", ("not·learned", OTHER), "  ", ("<special>", SPECIAL), "  ",
                ("<special,·learned>", SPECIAL_LEARNED), "  ", "every", ("·other", "underline"), "·token",
                "  · space  → tab  ⏎ line break",
            )  # fmt: skip
        return Text("⟦learned⟧  not·learned  «special»  | between tokens  · space  → tab  ⏎ line break")

    def text(self, pieces: Sequence[Piece | str], width: int, other: str = OTHER) -> Text:
        """``pieces`` and, as they are, remarks between them; lines are broken between tokens.

        ``other``: the style of tokens that are not learned.
        """
        out, used, inside, number = Text(), 0, False, 0

        def add(lead: str, shown: str, style: str, tail: str = "") -> None:
            nonlocal used
            if used and used + cell_len(lead + shown + tail) > width:
                out.append("⟧" if lead.startswith("⟧") else "")
                out.append("\n")
                lead, used = lead.strip("|⟧"), 0
            out.append(lead)
            out.append(shown, style)
            out.append(tail)
            used += cell_len(lead + shown + tail)

        for piece in pieces:
            end = "⟧" if inside and not self.colour else ""
            if isinstance(piece, str):
                add(end, piece, "dim italic")
                inside = False
                continue
            number += 1
            shown = visible_token(piece)
            if self.colour:
                add("", shown, _style(piece, other) + (" underline" if number % 2 == 0 else ""))
            else:
                change = piece.learned != inside
                lead = ("⟦" if piece.learned else end) if change else "|" if used else ""
                add(lead, f"«{shown}»" if piece.special else shown, "")
            inside = piece.learned
            if "\n" in piece.text:
                out.append("\n")
                used = 0
        out.rstrip()
        if inside and not self.colour:
            out.append("⟧")
        return out


def _style(piece: Piece, other: str) -> str:
    if piece.special:
        return SPECIAL_LEARNED if piece.learned else SPECIAL
    return LEARNED if piece.learned else other


def visible_token(piece: Piece) -> str:
    """The text of a token in one line, with all that is in it."""
    text = piece.text.replace("\n", "⏎").translate(SPACES)
    shown = "".join(char if char in "⏎→·" else visible(char) for char in text)
    return shown or f"<{'·'.join(map(str, piece.ids))}>"  # a token without a text, by its number


def draw_examples(examples: Sequence[Example], console: Console, full: bool) -> None:
    """Print ``examples`` with a legend."""
    way = Way(console.color_system is not None and not console.no_color)
    console.print()
    console.print(Rule(Text("Examples", style="bold"), align="left", style="dim"))
    console.print(way.legend())
    for example in examples:
        console.print()
        console.print(Text(_title(example), style="italic"))
        other = "" if example.learned is None else OTHER  # where a label is learned all tokens are alike
        table = Table.grid(padding=(0, 1))
        table.add_column(style="cyan", justify="right", min_width=NAMES)
        table.add_column(overflow="fold")
        for name, pieces in _parts(example, full):
            table.add_row(name, way.text(pieces, console.width - NAMES - 2, other))
        if example.label is not None:
            shown = ", ".join(map(str, example.label)) if isinstance(example.label, list) else str(example.label)
            label = shown or "(none)"
            table.add_row("label", Text(label, style=LEARNED) if way.colour else Text(f"⟦{label}⟧"))
        console.print(Padding(table, (0, 0, 0, 1)))


def _title(example: Example) -> str:
    parts = [f"{example.split} {example.place}", counted(example.tokens, "token")]
    if example.learned is not None:
        parts.append(f"{example.learned:,} learned")
    if example.parts > 1:
        parts.append(f"part {example.part} of {example.parts} of its row")
    if example.cut:
        parts.append(f"{example.cut[0]:,} more cut away")
    if example.left_out:
        parts.append("LEFT OUT: too long; shown uncut")
    if example.why:
        parts.append(example.why)
    return " · ".join(parts)


def _parts(example: Example, full: bool) -> Iterator[tuple[str, list[Piece | str]]]:
    """What to print of each part: pieces, and remarks where some are passed over."""
    stretches = example.stretches
    hidden = len(stretches) - FIRST - LAST
    done = 0
    for number, stretch in enumerate(stretches):
        if hidden > 1 and not full and FIRST <= number < len(stretches) - LAST:
            if number == FIRST:
                tokens = sum(len(piece.ids) for one in stretches[FIRST:-LAST] for piece in one.pieces)
                yield "…", [f"{hidden} more parts, {tokens:,} tokens"]
        else:
            yield stretch.name, _shortened(_with_cut(stretch, example, done), full)
        done += sum(len(piece.ids) for piece in stretch.pieces)
    if example.padding:
        yield "padding", [f"{counted(example.padding, 'token')} in its batch of the first epoch"]


def _with_cut(stretch: Stretch, example: Example, done: int) -> list[Piece | str]:
    """The pieces, with a remark where ``max_length`` took something away. ``done``: tokens of parts before."""
    out = list[Piece | str]()
    for piece in stretch.pieces:
        if example.cut and done <= example.cut[1] < done + len(piece.ids):
            out.append(f"✂ {counted(example.cut[0], 'token')} cut ✂")
        out.append(piece)
        done += len(piece.ids)
    return out


def _shortened(pieces: list[Piece | str], full: bool) -> list[Piece | str]:
    """Runs of tokens that are all learned, or all not, without their middle where they are long."""
    if full:
        return pieces
    runs = list[list[Piece | str]]()
    for piece in pieces:
        same = (
            runs
            and isinstance(piece, Piece)
            and isinstance(runs[-1][0], Piece)
            and runs[-1][0].learned == piece.learned
        )
        if same:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    out = list[Piece | str]()
    for run in runs:
        if len(run) <= RUN:
            out += run
        else:
            out += [*run[:HEAD], f" … {len(run) - HEAD - TAIL:,} more … ", *run[-TAIL:]]
    return out
