"""What the C library holds of main memory while tensors come and go: more than they take, where freed pieces are small.

glibc cuts memory for tensors out of one heap, which grows at its end and shrinks there alone: a freed piece below
something that is in use stays with the process, and is used again for what fits in. Large pieces are mapped by
themselves and go back at once; but "large" grows with each that is freed, up to 32 MB. Which rules these are is written
in glibc's manual (3.2.3.6, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD) and its malloc.c; followed here are those that act on
pieces of a kilobyte and more.
"""

from __future__ import annotations

import bisect
import os
import platform
from collections.abc import Iterable

_ALIGN, _HEADER, _SMALLEST = 64, 16, 32  # torch asks for multiples of 64; glibc's own on 64 bits
_PAGE, _TOP_PAD = 4096, 128 << 10
_MMAP_THRESHOLD, _MMAP_MOST = 128 << 10, 32 << 20
_IGNORED = 1024  # smaller pieces come from lists of their own, and are reused at once


class Heap:
    """glibc's heap, followed through what is asked of it.

    Args:
        threshold: size from which a piece is mapped by itself, if it is fixed (``MALLOC_MMAP_THRESHOLD_``); None: it
            moves.

    Attributes:
        held: bytes of the process now; the most so far is ``peak``.
    """

    def __init__(self, threshold: int | None = None) -> None:
        self.moves = threshold is None
        self.threshold = _MMAP_THRESHOLD if threshold is None else threshold
        self.trim = _TOP_PAD
        self.end = 0  # of the heap
        self.top = 0  # where the free rest at its end begins
        self.mapped = 0
        self.peak = 0
        self._used: dict[int, tuple[int, int]] = {}  # number -> (start, size); start -1: mapped
        self._free: list[tuple[int, int]] = []  # (size, start), sorted
        self._starts: dict[int, int] = {}  # of free pieces: start -> size
        self._ends: dict[int, int] = {}  # end -> start

    @property
    def held(self) -> int:
        return self.end + self.mapped

    def make(self, number: int, size: int) -> None:
        """A piece of ``size`` bytes, to be known by ``number``."""
        if size < _IGNORED:
            return
        need = -(-(size + _HEADER) // _HEADER) * _HEADER
        asked = need + _ALIGN + _SMALLEST  # room to begin at a multiple; what is left over goes back
        place = bisect.bisect_left(self._free, (asked, -1))
        if place < len(self._free):
            whole, start = self._free[place]
            self._take(start)
            self._put(start + need, whole - need)
        elif self.end - self.top >= asked + _SMALLEST:
            start = self.top
            self.top += need
        elif asked >= self.threshold:
            start, need = -1, -(-(asked + _HEADER) // _PAGE) * _PAGE
            self.mapped += need
        else:
            start = self.top
            self.end = -(-(self.top + asked + _TOP_PAD) // _PAGE) * _PAGE
            self.top += need
        self._used[number] = (start, need)
        self.peak = max(self.peak, self.held)

    def give_back(self, number: int) -> None:
        """Piece ``number`` is no more."""
        if number not in self._used:
            return
        start, size = self._used.pop(number)
        if start < 0:
            self.mapped -= size
            if self.moves and self.threshold < size <= _MMAP_MOST:
                self.threshold, self.trim = size, 2 * size
            return
        if start + size in self._starts:
            size += self._take(start + size)
        if start in self._ends:
            before = self._ends[start]
            size += self._take(before)
            start = before
        if start + size != self.top:
            self._put(start, size)
            return
        self.top = start
        if self.end - self.top >= self.trim:
            self.end = -(-(self.top + _TOP_PAD) // _PAGE) * _PAGE

    def _put(self, start: int, size: int) -> None:
        if size <= 0:
            return
        bisect.insort(self._free, (size, start))
        self._starts[start], self._ends[start + size] = size, start

    def _take(self, start: int) -> int:
        size = self._starts.pop(start)
        del self._ends[start + size]
        del self._free[bisect.bisect_left(self._free, (size, start))]
        return size


def resident(events: Iterable[int]) -> int:
    """The most bytes that a process holds for tensors that come and go by ``events`` (see `shells.Ledger`)."""
    heap, number = Heap(_fixed()), 0
    for event in events:
        if event < 0:
            heap.give_back(-event)
        else:
            number += 1
            heap.make(number, event)
    return heap.peak


def _fixed() -> int | None:
    value = os.environ.get("MALLOC_MMAP_THRESHOLD_", "")
    return int(value) if value.isdigit() else None


def is_glibc() -> bool:
    """Whether this is the C library in use, and no other allocator was put before it."""
    return platform.libc_ver()[0] == "glibc" and not os.environ.get("LD_PRELOAD")
