"""What tensors took while something ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

GIVEN_BACK = -(1 << 62)  # among a ledger's events: the C library was told to give back what is free


@dataclass(eq=False)
class Phase:
    """A part of the work.

    Attributes:
        before, peak, after: bytes alive at its beginning, at the most, and at its end.
        start, stop: its place among the ledger's events.
        held: the most that the process holds meanwhile (see `lora.checks.heap`).
    """

    before: int
    peak: int
    after: int = 0
    start: int = 0
    stop: int = 0
    held: int = 0


@dataclass
class Ledger:
    """What tensors took.

    Attributes:
        alive: bytes of tensors alive now.
        peak: the most so far.
        events: in order, a size for a tensor made, and minus its number (from 1) for one given back; or `GIVEN_BACK`.
        operations: multiplications and additions of matrix products, two for each pair of numbers.
        phases: by name, in order.
    """

    alive: int = 0
    peak: int = 0
    events: list[int] = field(default_factory=list)
    operations: int = 0
    phases: list[tuple[str, Phase]] = field(default_factory=list)
    _made: int = 0
    _open: list[Phase] = field(default_factory=list)

    def make(self, size: int) -> int:
        """Count a tensor of ``size`` bytes; returns its number."""
        self._made += 1
        self.events.append(size)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        for phase in self._open:
            phase.peak = max(phase.peak, self.alive)
        return self._made

    def give_back(self, number: int, size: int) -> None:
        """Tensor ``number`` is no more."""
        self.events.append(-number)
        self.alive -= size

    def trim(self) -> None:
        """The C library is told to give back what is free (`lora.checks.heap.trim`)."""
        self.events.append(GIVEN_BACK)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch the block as ``name``."""
        phase = Phase(self.alive, self.alive, start=len(self.events))
        self._open.append(phase)
        try:
            yield
        finally:
            self._open.remove(phase)
            phase.after, phase.stop = self.alive, len(self.events)
            self.phases.append((name, phase))
