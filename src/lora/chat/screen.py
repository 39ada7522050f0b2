"""What a conversation looks like: answers as they come, what is said about them dimly, several side by side.

Where standard output is no terminal it holds answers and nothing else; all other words go to standard error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lora.chat.answer import Answer
from lora.plural import number_of

STOPS = {"end": "ended by itself", "length": "reached max-new-tokens", "stopped": "stopped by you"}
NARROW = 32  # characters of a column, below which answers stand one after another

# All control characters but tab and line break: what a model writes must not steer the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """Standard output and error.

    Attributes:
        terminal: whether standard output is one.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self.terminal = sys.stdout.isatty()
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._notes = self._console if self.terminal else Console(
            stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True
        )  # fmt: skip
        self._line_open = False

    def say(self, text: str) -> None:
        """What was asked for."""
        self._console.print(self._safe(text))

    def note(self, text: str) -> None:
        """Something beside it."""
        self._close_line()
        self._notes.print(text, style="dim")

    def error(self, text: str) -> None:
        """What went wrong."""
        self._close_line()
        self._notes.print(f"error: {text}", style="red")

    def begin(self, name: str) -> None:
        """``name`` is about to answer."""
        if self.terminal:
            self._console.print(f"{name}: ", style="bold cyan", end="")

    def piece(self, text: str) -> None:
        """A piece of an answer, shown at once."""
        sys.stdout.write(self._safe(text))
        sys.stdout.flush()
        self._line_open = True

    def head(self, name: str) -> None:
        """What stands above the answer of ``name``, of several."""
        self._console.print(f"{name}:", style="bold cyan")

    def end_line(self) -> None:
        """The text of an answer is there."""
        print(flush=True)
        self._line_open = False

    def done(self, answer: Answer) -> None:
        """The answer is there."""
        self.end_line()
        for note in answer.notes:
            self.note(note)
        speed = answer.tokens / max(answer.seconds, 1e-9)
        kept = f", {answer.kept} of them from before" if answer.kept else ""
        own, prompt = number_of(answer.tokens, "token"), number_of(answer.prompt, "token")
        self.note(f"{own}, {speed:.1f} tokens/s, {STOPS[answer.stop]}; prompt {prompt}{kept}")

    @contextmanager
    def comparing(self, names: Sequence[str]) -> Iterator[Callable[[int, str | None], None]]:
        """Show pieces of answers of ``names``, by their places, as they come: side by side where there is room, else
        one after another, of which the first that is not whole yet is written on while the others wait."""
        texts = [""] * len(names)
        if self.terminal and self._console.width // len(names) >= NARROW:
            from rich.live import Live

            with Live(
                console=self._console, get_renderable=lambda: self._table(names, texts), refresh_per_second=8,
                vertical_overflow="visible",
            ) as live:  # fmt: skip

                def add(place: int, piece: str | None) -> None:
                    texts[place] += piece or ""

                yield add
                live.refresh()
            return
        shown = _InTurn(self, names)
        yield shown.put
        shown.close()

    def compared(self, answers: Sequence[Answer]) -> None:
        """What is to be said of answers that `comparing` has shown."""
        for note in dict.fromkeys(note for answer in answers for note in answer.notes):
            self.note(note)
        for answer in answers:
            self.note(f"{answer.name}: {number_of(answer.tokens, 'token')}, {STOPS[answer.stop]}")
        seconds = max(answers[0].seconds, 1e-9)
        total = sum(answer.tokens for answer in answers)
        self.note(f"{number_of(total, 'token')} in one batch, {total / seconds:.1f} tokens/s")

    def _table(self, names: Sequence[str], texts: Sequence[str]) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(expand=True)
        for name in names:
            table.add_column(Text(name), ratio=1, overflow="fold", header_style="bold cyan")
        table.add_row(*[Text(self._safe(text)) for text in texts])
        return table

    def _close_line(self) -> None:
        if self._line_open:
            print(flush=True)
            self._line_open = False

    def _safe(self, text: str) -> str:
        return _CONTROL.sub("", text) if self.terminal else text


class _InTurn:
    """Answers that come at once, shown one after another: the first that is not whole as it comes, the others then."""

    def __init__(self, screen: Screen, names: Sequence[str]) -> None:
        self._screen, self._names = screen, names
        self._waiting, self._whole, self._now = [""] * len(names), set[int](), 0
        screen.head(names[0])

    def put(self, place: int, piece: str | None) -> None:
        if piece is None:
            self._whole.add(place)
        elif place == self._now:
            self._screen.piece(piece)
        else:
            self._waiting[place] += piece
        while self._now in self._whole:
            self._screen.end_line()
            self._now += 1
            if self._now < len(self._names):
                self._screen.head(self._names[self._now])
                self._screen.piece(self._waiting[self._now])

    def close(self) -> None:
        for place in range(self._now, len(self._names)):
            self.put(place, None)
