"""What the C library holds of main memory while tensors come and go: more than they take.

glibc cuts pieces out of one heap, which grows at its end and shrinks there alone: a freed piece below something in use
stays with the process, to be used again for what fits in. Large pieces are mapped by themselves and go back at once;
but "large" grows with each that is freed, up to 32 MB (its manual, 3.2.3.6, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD).

What costs most: torch asks for addresses that are multiples of 64, and for that glibc takes 96 bytes more than it
keeps. What is left over goes to small objects, of which some come with every tensor. A piece with such a neighbour is,
when it is freed, 96 bytes short for another tensor of its size. Followed here are the rules of malloc.c (2.36) for
that; it is a model, and the objects' sizes are fitted to measurements (benchmarks/plan.py).
"""

from __future__ import annotations

import bisect
import ctypes
import os
import platform
from collections import defaultdict
from collections.abc import Iterable

from lora.checks.ledger import GIVEN_BACK

_STEP, _LEAST, _FAST = 16, 32, 128  # bytes of a chunk: a multiple of, at least, and up to this kept for their size
_ALIGNED = 64
_PAGE, _TOP_PAD = 4096, 128 << 10
_MMAP_THRESHOLD, _MMAP_MOST, _CONSOLIDATED = 128 << 10, 32 << 20, 64 << 10
_OBJECT = 48  # bytes of what comes with a tensor; fitted to what was measured (benchmarks/plan.py)


class Heap:
    """glibc's heap, followed through what is asked of it.

    Args:
        threshold: size from which a piece is mapped by itself, where that is fixed (``MALLOC_MMAP_THRESHOLD_``).

    Attributes:
        peak: the most bytes that the process has held.
    """

    def __init__(self, threshold: int | None = None) -> None:
        self.moves = threshold is None
        self.threshold = _MMAP_THRESHOLD if threshold is None else threshold
        self.trim = _TOP_PAD
        self.end = self.top = self.mapped = self.peak = 0  # of the heap; where the free rest at its end begins
        self.absent = 0  # bytes of the heap that were given back from its midst
        self._used: dict[int, tuple[int, int, int]] = {}  # number -> (start, size), and its object; start -1: mapped
        self._free: list[tuple[int, int]] = []  # (size, start), sorted
        self._starts: dict[int, int] = {}  # of free chunks: start -> size
        self._ends: dict[int, int] = {}  # end -> start
        self._fast: dict[int, list[int]] = defaultdict(list)  # size -> starts of small ones, not yet joined

    def make(self, number: int, size: int) -> None:
        """A tensor of ``size`` bytes, to be known by ``number``."""
        companion = self._get(_OBJECT)
        need = max(_LEAST, -(-(size + _STEP // 2) // _STEP) * _STEP)
        asked = need + _ALIGNED + _LEAST
        start = self._get(asked)
        if start < 0:
            need = -(-(asked + _STEP) // _PAGE) * _PAGE
            self.mapped += need
        else:
            lead = -(start + _STEP) % _ALIGNED
            lead += _ALIGNED if 0 < lead < _LEAST else 0
            if lead:
                self._put_back(start, lead)
            start, rest = start + lead, asked - lead - need
            if rest > _LEAST:
                self._put_back(start + need, rest)
            else:
                need += rest
        self._used[number] = (start, need, companion)
        self._look()

    def give_back(self, number: int) -> None:
        """Tensor ``number`` is no more."""
        start, size, companion = self._used.pop(number)
        if start >= 0:
            self._put_back(start, size)
        else:
            self.mapped -= size
            if self.moves and self.threshold < size <= _MMAP_MOST:
                self.threshold, self.trim = size, 2 * size
        self._put_back(companion, _OBJECT)

    def give_back_free(self) -> None:
        """What malloc_trim does: the pages of all free chunks go back. They are taken to be used no more: what would
        come to lie there takes as much memory elsewhere."""
        self._consolidate()
        self.absent += sum(size for size, _ in self._free)
        self._free.clear()
        self._starts.clear()
        self._ends.clear()
        self.end = -(-(self.top + _TOP_PAD) // _PAGE) * _PAGE
        self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, self.end - self.absent + self.mapped)

    def _get(self, size: int) -> int:
        """Where a chunk of ``size`` is; -1: it is mapped by itself."""
        if size <= _FAST and self._fast.get(size):
            return self._fast[size].pop()
        if size > _FAST and self._fast:
            self._consolidate()
        place = bisect.bisect_left(self._free, (size, -1))
        if place < len(self._free):
            whole, start = self._free[place]
            self._take(start)
            if whole - size >= _LEAST:
                self._add(start + size, whole - size)
            return start
        if self.end - self.top < size + _LEAST:
            if size >= self.threshold:
                return -1
            self.end = -(-(self.top + size + _TOP_PAD) // _PAGE) * _PAGE
        self.top += size
        return self.top - size

    def _put_back(self, start: int, size: int) -> None:
        if size <= _FAST:
            self._fast[size].append(start)
        elif self._join(start, size) >= _CONSOLIDATED:
            self._consolidate()
            if self.end - self.top >= self.trim:
                self.end = -(-(self.top + _TOP_PAD) // _PAGE) * _PAGE

    def _consolidate(self) -> None:
        for size, starts in self._fast.items():
            for start in starts:
                self._join(start, size)
        self._fast.clear()

    def _join(self, start: int, size: int) -> int:
        """Make a free chunk one with free neighbours; returns the size that comes of it."""
        if start + size in self._starts:
            size += self._take(start + size)
        if start in self._ends:
            before = self._ends[start]
            size, start = size + self._take(before), before
        if start + size == self.top:
            self.top = start
        else:
            self._add(start, size)
        return size

    def _add(self, start: int, size: int) -> None:
        bisect.insort(self._free, (size, start))
        self._starts[start], self._ends[start + size] = size, start

    def _take(self, start: int) -> int:
        size = self._starts.pop(start)
        del self._ends[start + size]
        del self._free[bisect.bisect_left(self._free, (size, start))]
        return size


def resident(events: Iterable[int], spans: Iterable[tuple[int, int]]) -> list[int]:
    """The most bytes that a process holds within each of ``spans`` (from event, to event), while tensors come and go by
    ``events`` (see `lora.checks.ledger.Ledger`)."""
    heap, number, held = Heap(_fixed()), 0, [0]
    for event in events:
        heap.peak = 0
        if event == GIVEN_BACK:
            heap.give_back_free()
        elif event < 0:
            heap._look()
            heap.give_back(-event)
        else:
            number += 1
            heap.make(number, event)
        held.append(heap.peak)
    return [max(held[start : stop + 1]) for start, stop in spans]


def trim() -> None:
    """Have the C library give back what is free, wherever it lies (malloc_trim); only glibc holds on to much of it."""
    if is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def gives_back() -> bool:
    """Whether the environment has freed memory go back at once."""
    fixed = _fixed()
    return fixed is not None and fixed <= _MMAP_THRESHOLD


def _fixed() -> int | None:
    value = os.environ.get("MALLOC_MMAP_THRESHOLD_", "")
    return int(value) if value.isdigit() else None


def is_glibc() -> bool:
    """Whether this is the C library in use, and no other allocator was put before it."""
    return platform.libc_ver()[0] == "glibc" and not os.environ.get("LD_PRELOAD")
