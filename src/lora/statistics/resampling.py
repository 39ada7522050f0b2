"""Resamples and left-out samples, as weights of units.

A resample of n units drawn with replacement is multinomial counts that add up to n (Efron, 1979, Bootstrap methods:
another look at the jackknife). Equal units share an entry, whose count is then multinomial with its share, exactly.
Poisson weights would be a little faster, but draw another number of rows each time, which widens intervals of what is
no ratio.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lora.statistics.metric import Evaluator
from lora.statistics.rows import Array, Units

RESAMPLES = 10_000  # the ends of a 95 % interval then rest on 250 of them each (Efron and Tibshirani advise over 1000)
FEWEST = 2000  # of many units so few, whose ends rest on 50 each
_DRAWN = 200_000_000  # weights of all resamples together, about a second: of more, resamples become fewer
LEFT_OUT = 1000  # units that are left out in turn at most: what is read off them is a mean over units
AT_ONCE = 1 << 20  # weights held at a time: 8 MiB
_FEW = 40  # where a cell stands for so many units on average, drawing its count is cheaper than drawing units


def affordable(units: Units) -> int:
    """How many resamples are drawn where the caller does not say: `RESAMPLES`, of more than 20,000 units fewer."""
    return min(RESAMPLES, max(FEWEST, _DRAWN // max(units.drawn, 1)))


def weights(units: Units, resamples: int, rng: np.random.Generator) -> Iterator[Array]:
    """Weights (b, u) of units, in parts that make ``resamples`` together; each row adds up to the number of units."""
    entries, drawn = len(units.sizes), units.drawn
    step = max(1, AT_ONCE // max(entries, drawn // 8, 1))
    shares = units.sizes / drawn
    single = drawn == entries  # then which unit is which entry does not matter: all are alike
    for start in range(0, resamples, step):
        part = min(step, resamples - start)
        if entries * _FEW < drawn:
            yield rng.multinomial(drawn, shares, size=part).astype(np.float64)
            continue
        out = np.empty((part, entries))
        for place in range(part):
            picked = rng.integers(0, drawn, drawn, dtype=np.uint32)
            out[place] = np.bincount(picked if single else units.which[picked], minlength=entries)
        yield out


def resample(values: Evaluator, units: Units, resamples: int, rng: np.random.Generator) -> Array:
    """(metrics, resamples) values of resamples."""
    return np.concatenate([values(part) for part in weights(units, resamples, rng)], axis=1)


def left_out(values: Evaluator, units: Units) -> tuple[Array, Array]:
    """Values (metrics, j) where one unit is left out, and how many units (j,) each of them speaks for.

    Of more than `LEFT_OUT` different units only so many, evenly over them, are left out.
    """
    entries = len(units.sizes)
    places = np.unique(np.linspace(0, entries - 1, min(entries, LEFT_OUT)).round().astype(np.intp))
    stands_for = units.sizes[places]
    stands_for = stands_for * (units.drawn / stands_for.sum())
    out = []
    step = max(1, AT_ONCE // entries)
    for start in range(0, len(places), step):
        part = places[start : start + step]
        without = np.repeat(units.sizes[None, :], len(part), axis=0)
        without[np.arange(len(part)), part] -= 1
        out.append(values(without))
    return np.concatenate(out, axis=1), stands_for


def skewness(left: Array, stands_for: Array) -> Array:
    """(metrics,) acceleration of BCa from the jackknife: Efron and Tibshirani (1993), eq. 14.15."""
    with np.errstate(all="ignore"):
        mean = np.sum(left * stands_for, axis=1, keepdims=True) / stands_for.sum()
        away = mean - left
        second, third = (away**2 * stands_for).sum(axis=1), (away**3 * stands_for).sum(axis=1)
        out = third / (6 * second**1.5)
    return np.where(np.isfinite(out), out, 0.0)
