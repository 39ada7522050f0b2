"""Ctrl-C and termination: finish the step in hand, save, then stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from lora.io.run import how_to_resume

if TYPE_CHECKING:
    from lora.training.participant import Participant


class StopRequest:
    """For the block, SIGINT and SIGTERM set ``asked``; a second SIGINT interrupts at once.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.asked = False
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if self._enabled:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def stopped_at(active: Sequence[Participant], output: Path) -> str:
    """What to say where a run was stopped: how far it is, and how to go on."""
    if len(active) == 1:
        where = f"at step {active[0].label}"
    else:
        where = "; ".join(f"{p.name} at step {p.label}" for p in active) or "between two adapters"
    return f"stopped {where}; everything up to it is saved. Go on with: {how_to_resume(output)}"
