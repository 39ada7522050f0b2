"""Rows done, rows per second, time left: a bar where standard error is a terminal, a line a minute where it is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

PERIOD = 60.0  # seconds between lines


class RowProgress:
    """Progress over rows, for a ``with`` block.

    Arguments:
        total: rows in all.
        done: of them, before this began.
        unit: what is counted.
        show: false: nothing is shown.
    """

    def __init__(self, total: int, done: int = 0, unit: str = "rows", show: bool = True) -> None:
        self.total, self.done, self.unit = total, done, unit
        self._show, self._begun, self._last, self._first = show, time.monotonic(), time.monotonic(), done
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self._show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn(self.unit), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"), TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task("", total=self.total, completed=self.done, speed="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """``count`` more are done."""
        self.done += count
        now = time.monotonic()
        speed = (self.done - self._first) / max(now - self._begun, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, speed=f"{speed:,.1f} {self.unit}/s")
        elif self._show and now - self._last >= PERIOD:
            self._last = now
            left = (self.total - self.done) / speed
            print(
                f"{self.done} of {self.total} {self.unit}, {speed:,.1f} {self.unit}/s, {duration(left)} left",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def expect(self, count: int) -> None:
        """``count`` more are to be done than was known."""
        self.total += count
        if self._bar is not None:
            self._bar.update(self._task, total=self.total)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``90`` -> ``1:30``, ``5000`` -> ``1:23:20``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
