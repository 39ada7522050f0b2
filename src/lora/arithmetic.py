"""Sums that do not depend on how many rows there are: what MKL is asked for before it is first used.

By default MKL picks the kernel of a matrix product by its size, and with it the order of additions: the last bits of a
row then depend on the number of its neighbours (seen up to 15 rows of fp32 on processors with AMX). In its strict mode
they do not (Intel, oneMKL developer guide, "Conditional numerical reproducibility", strict CNR mode: AVX2 and AVX-512,
Intel's own processors). Times of large products did not change where they were measured.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

SETTING = "MKL_CBWR"
STRICT = "AUTO,STRICT"  # the code path that MKL would take anyway


def ask_for_strict_sums() -> None:
    """Set ``MKL_CBWR`` for this process and those it starts, where MKL has the mode and the user has set nothing.

    MKL reads it at its first product: a program that multiplied before ``import lora`` sets it itself.
    """
    if SETTING not in os.environ and _by_intel():
        os.environ[SETTING] = STRICT


def _by_intel() -> bool:
    """Elsewhere the same setting means MKL's slowest code path, or nothing."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return any("GenuineIntel" in line for line, _ in zip(lines, range(8), strict=False))
    except OSError:
        return "GenuineIntel" in platform.processor()  # Windows
