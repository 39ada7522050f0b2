"""Tests of two systems on the same rows that need no bootstrap: McNemar's, and exchanging the systems by row.

Shapes: u unit, b draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy.special import bdtr, ndtri

from lora.errors import ConfigError
from lora.statistics.metric import Evaluator, Metric, evaluator
from lora.statistics.resampling import AT_ONCE, affordable
from lora.statistics.rows import Array, Rows, Units, aligned

_ALL = 14  # units up to which all 2ᵘ exchanges are gone through instead of drawn


def mcnemar(only_a: int, only_b: int, mid: bool = True) -> float:
    """Two-sided p-value that a and b are right equally often, from the rows that only one of them has right.

    Exact: the binomial test of McNemar (1947). ``mid`` counts half of the probability of what was seen (Fagerland,
    Lydersen and Laake, 2013, BMC Medical Research Methodology 13:91): its level stays near the nominal one, where the
    exact test's falls far below.
    """
    fewer, both = min(only_a, only_b), only_a + only_b
    if both == 0:
        return 1.0
    at_most = float(bdtr(fewer, both, 0.5))
    below = float(bdtr(fewer - 1, both, 0.5)) if fewer else 0.0
    return min(1.0, at_most + below if mid else 2 * at_most)  # with mid: 2·at_most less what was seen, their difference


def bonett_price(only_a: int, only_b: int, rows: int, level: float = 0.95) -> tuple[float, float, float]:
    """Interval of the difference of two proportions on the same rows, and its standard error.

    Bonett and Price (2012), as Fagerland, Lydersen and Laake (2014, Statistics in Medicine 33:2850) advise it:
    Wald's with a row added to each of the two discordant cells.
    """
    a, b = (only_a + 1) / (rows + 2), (only_b + 1) / (rows + 2)
    error = math.sqrt((a + b - (a - b) ** 2) / (rows + 2))
    half = float(ndtri((1 + level) / 2)) * error
    return max(-1.0, a - b - half), min(1.0, a - b + half), error


def exchange_test(metric: Metric, a: Rows, b: Rows, *, seed: int = 0, draws: int | None = None) -> float:
    """Two-sided p-value of the paired permutation test: were it all one which system an answer comes from?

    The systems are exchanged in every row with probability one half (approximate randomisation: Noreen, 1989, chapter
    2); of a mean that is the sign-flip test. With few units all exchanges are gone through, and the test is exact. Rows
    of a group are exchanged together. nan where the metric is undefined.
    """
    if draws is not None and draws < 100:
        raise ConfigError(f"draws is {draws}; a test needs at least 100")
    a, b = aligned(a, b)
    if not len(a):
        return math.nan
    units = a.units
    both = _both(a, b)
    values = evaluator([metric], both, both.units)
    seen = _difference(values, units.sizes[None, :], np.zeros((1, len(units.sizes))))[0]
    if math.isnan(seen):
        return math.nan
    exhaustive = units.drawn <= _ALL
    rng = np.random.default_rng(seed)
    parts = _every(units) if exhaustive else _drawn(units, draws or affordable(units), rng)
    found = np.concatenate([_difference(values, units.sizes - moved, moved) for moved in parts])
    found = found[~np.isnan(found)]
    as_far = int((np.abs(found) >= abs(seen) - 1e-12 * max(1.0, abs(seen))).sum())
    return as_far / len(found) if exhaustive else (as_far + 1) / (len(found) + 1)


def _both(a: Rows, b: Rows) -> Rows:
    """Rows whose cells are those of ``a`` and then those of ``b``: to exchange is to move weight between the halves."""
    cells = np.vstack([a.cells, b.cells])
    which = np.concatenate([a.which, b.which + len(a.cells)])
    groups = None
    if a.groups is not None and b.groups is not None:
        groups = np.concatenate([a.groups, b.groups + a.groups.max() + 1])
    return Rows(a.kind, cells, which, a.labels, groups)


def _difference(values: Evaluator, stays: Array, moved: Array) -> Array:
    one = values(np.hstack([stays, moved]))[0]
    other = values(np.hstack([moved, stays]))[0]
    return np.asarray(one - other)


def _drawn(units: Units, draws: int, rng: np.random.Generator) -> Iterator[Array]:
    step = max(1, AT_ONCE // (2 * len(units.sizes)))
    sizes = units.sizes.astype(np.int64)
    single = bool((sizes == 1).all())
    for start in range(0, draws, step):
        shape = (min(step, draws - start), len(sizes))
        moved = rng.integers(0, 2, shape, dtype=np.uint8) if single else rng.binomial(sizes, 0.5, shape)
        yield moved.astype(np.float64)


def _every(units: Units) -> Iterator[Array]:
    bits = (np.arange(2**units.drawn)[:, None] >> np.arange(units.drawn)) & 1
    member = np.zeros((units.drawn, len(units.sizes)))
    member[np.arange(units.drawn), units.which] = 1
    yield bits.astype(np.float64) @ member
