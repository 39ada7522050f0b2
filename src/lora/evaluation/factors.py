"""How much slower or faster than the base: a factor from pairs of times, and how far chance alone may have moved it.

Both times of a pair are of the same rows, taken one right after the other. What the rows and the machine's other work
do to both cancels out in their ratio, which is why two medians that differ say less than the median of the ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000  # the ends of a 95 % interval then rest on fifty of them each
FEWEST_PAIRS = 6  # below this the interval is the range of the pairs and looks surer than it is

Numbers = Sequence[float] | NDArray[np.float64]
# (..., pairs) times of the adapter, the same of the base -> (...) factors
Statistic = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def median_ratio(tuned: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of the ratios pair by pair."""
    return np.asarray(np.median(tuned / base, axis=-1))


def p95_ratio(tuned: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    """One 95th percentile over the other: slow passes need not fall on the same rows."""
    return np.asarray(np.percentile(tuned, 95, axis=-1) / np.percentile(base, 95, axis=-1))


def rate_ratio(tuned: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is done per second over what the base does: all its time over all of the adapter's."""
    return np.asarray(base.sum(axis=-1) / tuned.sum(axis=-1))


def factor(tuned: Numbers, base: Numbers, statistic: Statistic) -> dict[str, float | None]:
    """``statistic`` of the pairs, and the ends of its 95 % interval: the percentile bootstrap over pairs.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Pairs are taken as independent: what
    lasts longer than a pair, such as a minute of another program's work, is in all of them and not in the interval.

    Returns:
        ``{"value", "low", "high"}``; no ends with fewer than `FEWEST_PAIRS` pairs.
    """
    pairs = np.asarray([tuned, base], dtype=np.float64)
    value = float(statistic(*pairs))
    count = pairs.shape[1]
    if count < FEWEST_PAIRS:
        return {"value": value, "low": None, "high": None}
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))  # seeded: the same times, the same interval
    low, high = np.percentile(statistic(*pairs[:, drawn]), [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}
