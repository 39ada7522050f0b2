"""p-values of several comparisons, corrected for their number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lora.errors import ConfigError, DataError
from lora.statistics.rows import Array

CORRECTIONS = ("holm", "bh", "none")


def corrected(p_values: ArrayLike, method: str = "holm") -> Array:
    """Corrected p-values in the order given; nan stays nan and counts for nothing.

    Args:
        method: ``holm``: the chance of one wrong finding among all is held (Holm, 1979); under any dependence. ``bh``:
            the expected share of wrong ones among the findings is held (Benjamini and Hochberg, 1995); of independent
            or positively dependent ones. ``none``.

    Raises:
        ConfigError: another method. DataError: a value outside 0 to 1.
    """
    if method not in CORRECTIONS:
        raise ConfigError(f"correction is {method!r}; there are {', '.join(CORRECTIONS)}")
    p = np.asarray(p_values, dtype=np.float64)
    there = ~np.isnan(p)
    if ((p[there] < 0) | (p[there] > 1)).any():
        raise DataError("p-values lie between 0 and 1")
    out = p.copy()
    if method == "none" or not there.any():
        return out
    order = np.argsort(p[there], kind="stable")
    ordered, many = p[there][order], int(there.sum())
    if method == "holm":
        moved = np.maximum.accumulate(ordered * np.arange(many, 0, -1))
    else:
        moved = np.minimum.accumulate((ordered * many / np.arange(1, many + 1))[::-1])[::-1]
    back = np.empty(many)
    back[order] = np.minimum(moved, 1.0)
    out[there] = back
    return out
