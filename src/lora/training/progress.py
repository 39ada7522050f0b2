"""What one sees while training: a bar in a terminal, lines where output is none, TensorBoard events."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from lora.training.device import memory_in_use

if TYPE_CHECKING:
    from lora.training.participant import Participant


class Progress:
    """What is shown of the adapters in training. This one shows nothing."""

    def join(self, participant: Participant) -> None:
        """``participant`` begins, or goes on where it stopped."""

    def step(self, participant: Participant) -> None:
        """``participant`` has taken a step."""

    def leave(self, participant: Participant) -> None:
        """``participant`` is done, or was stopped."""

    def say(self, text: str) -> None:
        """A line above the bar."""

    def teller(self, name: str) -> Callable[[str], None]:
        """`say` for the adapter ``name``."""
        return self.say

    def close(self) -> None:
        """Leave the terminal as it is now."""


class Bars(Progress):
    """A bar with loss, learning rate, tokens per second, memory and time left; of several adapters a row for each."""

    def __init__(self, names: Sequence[str], several: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._several = several
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"), TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        self._tasks = {name: self._row(name) for name in names}
        self._passing = set[str]()  # those not known before: there may be hundreds, so that their rows go with them
        if self._several:
            for task in self._tasks.values():
                self._bar.update(task, facts="waiting")
        self._bar.start()

    def _row(self, name: str) -> Any:
        # markup would be read in names
        return self._bar.add_task(escape(name) if self._several else "training", total=None, facts="", start=False)

    def join(self, participant: Participant) -> None:
        if participant.name not in self._tasks:
            self._tasks[participant.name] = self._row(participant.name)
            self._passing.add(participant.name)
        task, trainee = self._tasks[participant.name], participant.trainee
        self._bar.start_task(task)
        self._bar.update(task, total=trainee.total_steps, completed=trainee.step, facts="")

    def step(self, participant: Participant) -> None:
        last = next(entry for entry in reversed(participant.history) if "loss" in entry)
        facts = f"loss {last['loss']:.4f}  rate {last['learning_rate']:.2e}  {last['tokens_per_second']:,.0f} tokens/s"
        if self._several:
            best = participant.trainee.best_value
            facts += "" if best is None else f"  best {participant.metric} {best:.4f}"
        else:
            facts += f"  {memory_in_use() / 2**30:.1f} GiB"
        self._bar.update(self._tasks[participant.name], completed=participant.trainee.step, facts=facts)

    def leave(self, participant: Participant) -> None:
        task = self._tasks[participant.name]
        self._bar.stop_task(task)
        if participant.error:
            self._bar.update(task, facts=f"[red]stopped:[/red] {escape(participant.error.splitlines()[0][:80])}")
        if participant.name in self._passing:
            self._bar.remove_task(self._tasks.pop(participant.name))
            self._passing.remove(participant.name)

    def say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False)

    def teller(self, name: str) -> Callable[[str], None]:
        return (lambda text: self.say(f"{name}: {text}")) if self._several else self.say

    def close(self) -> None:
        self._bar.stop()


class Lines(Progress):
    """For files and pipes: what is said, and where each adapter is, once a minute at most."""

    PERIOD = 60.0  # seconds

    def __init__(self, several: bool) -> None:
        self._several = several
        self._last: dict[str, float] = {}

    def step(self, participant: Participant) -> None:
        now = time.monotonic()
        if now - self._last.setdefault(participant.name, now) < self.PERIOD:
            return
        self._last[participant.name] = now
        last = next(entry for entry in reversed(participant.history) if "loss" in entry)
        self.teller(participant.name)(
            f"step {participant.label}: loss {last['loss']:.4f}, {last['tokens_per_second']:,.0f} tokens/s"
        )

    def leave(self, participant: Participant) -> None:
        if participant.error:
            self.teller(participant.name)(f"stopped: {participant.error.splitlines()[0]}")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def teller(self, name: str) -> Callable[[str], None]:
        return (lambda text: self.say(f"{name}: {text}")) if self._several else self.say


def progress_for(names: Sequence[str], show: bool | None = None, several: bool | None = None) -> Progress:
    """For the adapters ``names``: bars (``show``), silence (not), or by default bars where standard error is a terminal
    and lines where it is none. ``several``: whether more than one will come; default: by the names."""
    several = len(names) > 1 if several is None else several
    if show is None:
        return Bars(names, several) if sys.stderr.isatty() else Lines(several)
    return Bars(names, several) if show else Progress()


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
