"""What one sees while training: a bar in a terminal, TensorBoard events, nothing where output is no terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lora.training.device import memory_in_use


class Progress:
    """Progress bar with loss, learning rate, tokens per second, memory and time left; silent when not shown."""

    def __init__(self, total: int, done: int, show: bool | None = None) -> None:
        self._bar: Any = None
        if sys.stderr.isatty() if show is None else show:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"), TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task("training", total=total, completed=done, facts="")
            self._bar.start()

    def step(self, step: int, loss: float, rate: float, tokens_per_second: float) -> None:
        if self._bar is not None:
            memory = memory_in_use() / 2**30
            facts = f"loss {loss:.4f}  rate {rate:.2e}  {tokens_per_second:,.0f} tokens/s  {memory:.1f} GiB"
            self._bar.update(self._task, completed=step, facts=facts)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class Events:
    """TensorBoard events, where the package is installed; otherwise nothing."""

    def __init__(self, folder: Path | None, purge_step: int | None = None) -> None:
        self._writer: Any = None
        if folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        if self._writer is not None:
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
