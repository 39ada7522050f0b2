"""What a conversation looks like: answers as they come, what is said about them dimly, several side by side.

Where standard output is no terminal it holds answers and nothing else; all other words go to standard error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

from lora.chat.session import Answer
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

    def done(self, answer: Answer) -> None:
        """The answer is there."""
        print(flush=True)
        self._line_open = False
        for note in answer.notes:
            self.note(note)
        speed = answer.tokens / max(answer.seconds, 1e-9)
        kept = f", {answer.kept} of them from before" if answer.kept else ""
        own, prompt = number_of(answer.tokens, "token"), number_of(answer.prompt, "token")
        self.note(f"{own}, {speed:.1f} tokens/s, {STOPS[answer.stop]}; prompt {prompt}{kept}")

    def answers(self, answers: Sequence[Answer]) -> None:
        """Several answers to the same, side by side where there is room."""
        for note in dict.fromkeys(note for answer in answers for note in answer.notes):
            self.note(note)
        if self.terminal and self._console.width // len(answers) >= NARROW:
            self._console.print(self._table(answers))
        else:
            for answer in answers:
                self._console.print(f"{answer.name}:", style="bold cyan")
                self.say(answer.text)
                self.note(f"{number_of(answer.tokens, 'token')}, {STOPS[answer.stop]}")
        seconds = max(answers[0].seconds, 1e-9)
        total = sum(answer.tokens for answer in answers)
        self.note(f"{number_of(total, 'token')} in one batch, {total / seconds:.1f} tokens/s")

    def _table(self, answers: Sequence[Answer]) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(expand=True)
        for answer in answers:
            table.add_column(
                Text(answer.name), ratio=1, overflow="fold", header_style="bold cyan",
                footer=Text(f"{number_of(answer.tokens, 'token')}, {STOPS[answer.stop]}", style="dim"),
            )  # fmt: skip
        table.show_footer = True
        table.add_row(*[Text(self._safe(answer.text)) for answer in answers])
        return table

    def _close_line(self) -> None:
        if self._line_open:
            print(flush=True)
            self._line_open = False

    def _safe(self, text: str) -> str:
        return _CONTROL.sub("", text) if self.terminal else text
