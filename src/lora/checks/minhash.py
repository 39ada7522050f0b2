"""Texts that are nearly the same, found without comparing all with all: MinHash and locality-sensitive hashing.

A text is the set of its runs of three words. Two sets are alike by the Jaccard index, what they share over what they
have together. The share of equal minima under random orders estimates it (Broder 1997, "On the resemblance and
containment of documents", section 4); only texts that agree in a whole band of minima are compared (Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4), and what is told of them is their true index.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH = 3  # words of a shingle: with fewer all questions of one form are alike, with more no short texts are
ORDERS = 128  # random orders; the estimate's deviation is then below 0.045
FOUND = 0.99  # of pairs just at the threshold this share shares a band
CHUNK = 1 << 16  # shingles worked on at a time: they stay in the cache
CROWD = 8  # texts of one bucket that are looked at: those of a crowded one are alike, and one is enough to name
CLOSEST = 4  # of a text's candidates, by the estimate, whose true index is computed
SLACK = 0.15  # what an estimate may lie below the threshold: over three deviations

# A character of a script without spaces between words counts as a word.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Pair:
    """Two texts that are alike: their places in what was compared, and their Jaccard index."""

    first: int
    second: int
    jaccard: float


class Shingles:
    """The shingles of texts, as 64-bit hashes, case and marks aside.

    Of a text of fewer words than a shingle has, all of them together are one; of one without a word, its characters.

    Attributes:
        hashes: (n,) of all texts, one after another; some may be there twice.
        starts: (texts + 1,) where those of each text begin.
    """

    def __init__(self, texts: Sequence[str], width: int = WIDTH) -> None:
        vocabulary: dict[str, int] = {"": 0}
        numbers = list[int]()
        lengths = np.empty(len(texts), dtype=np.int64)
        for place, text in enumerate(texts):
            words = _WORD.findall(text.casefold()) or [text]
            words += [""] * (width - len(words))
            lengths[place] = len(words)
            numbers += [vocabulary.setdefault(word, len(vocabulary)) for word in words]
        words_of = np.array([_hash(word) for word in vocabulary], dtype=np.uint64)[numbers]
        ends = np.cumsum(lengths)
        self.starts = np.concatenate([[0], np.cumsum(lengths - width + 1)])
        if not len(texts):
            self.hashes = np.empty(0, dtype=np.uint64)
            return
        mixed = np.zeros(len(words_of) - width + 1, dtype=np.uint64)
        for step in range(width):
            mixed = mix(mixed + words_of[step : step + len(mixed)])
        inside = np.ones(len(mixed), dtype=bool)
        for step in range(1, width):  # those that reach into the next text
            last = ends[:-1] - step
            inside[last] = False
        self.hashes = mixed[inside]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, place: int) -> Hashes:
        """The shingles of a text, each once, sorted."""
        return np.unique(self.hashes[self.starts[place] : self.starts[place + 1]])


def jaccard(first: Hashes, second: Hashes) -> float:
    """Of two sorted sets: what they share over what they have together."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def signatures(shingles: Shingles, orders: int = ORDERS, seed: int = 0) -> NDArray[np.uint32]:
    """(texts, orders): the least shingle of each text under each of the random orders."""
    random = np.random.default_rng(seed)
    factors = random.integers(0, 2**63, orders, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = random.integers(0, 2**63, orders, dtype=np.uint64)
    out = np.empty((orders, len(shingles)), dtype=np.uint32)
    first = 0
    while first < len(shingles):
        last = int(np.searchsorted(shingles.starts, shingles.starts[first] + CHUNK, side="right")) - 1
        last = max(last, first + 1)
        part = shingles.hashes[shingles.starts[first] : shingles.starts[last]]
        begins = shingles.starts[first:last] - shingles.starts[first]
        for order in range(orders):
            # Hashes are random already, so an affine map modulo 2^64 makes an order that is as good as any.
            keys = (part * factors[order] + shifts[order]) >> np.uint64(32)
            out[order, first:last] = np.minimum.reduceat(keys, begins)
        first = last
    return np.ascontiguousarray(out.T)


def band_rows(threshold: float, orders: int = ORDERS) -> int:
    """Minima of a band: as many as still let a pair at the threshold share one of the bands with `FOUND`."""
    fitting = [
        rows for rows in range(1, orders + 1) if 1 - (1 - threshold**rows) ** (orders // rows) >= FOUND
    ]  # fmt: skip
    return max(fitting, default=1)


def nearest(first: Sequence[str], second: Sequence[str], threshold: float) -> list[Pair]:
    """For each text of ``second`` the one of ``first`` that is most like it, where one is by ``threshold`` at least.

    The texts of ``first`` should differ from each other. Pairs come with the most alike first. Where very many texts
    are alike, another than the very nearest may be named.
    """
    if not first or not second:
        return []
    shingles = Shingles([*first, *second])
    minima = signatures(shingles)
    size = len(first)
    ones, others = _candidates(minima[:size], minima[size:], band_rows(threshold))
    estimates = _estimates(minima[:size], minima[size:], ones, others)
    likely = estimates >= threshold - SLACK
    ones, others, estimates = ones[likely], others[likely], estimates[likely]
    best: dict[int, Pair] = {}
    tried: dict[int, int] = {}
    for place in np.lexsort((ones, -estimates)):
        one, other = int(ones[place]), int(others[place])
        tried[other] = tried.get(other, 0) + 1
        if tried[other] > CLOSEST:
            continue
        index = jaccard(shingles.of(one), shingles.of(size + other))
        if index >= threshold and (other not in best or index > best[other].jaccard):
            best[other] = Pair(one, other, index)
    return sorted(best.values(), key=lambda pair: (-pair.jaccard, pair.second))


def _candidates(
    first: NDArray[np.uint32], second: NDArray[np.uint32], rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs that agree in a band, as places in ``first`` and in ``second``, each once."""
    found = [np.empty(0, dtype=np.int64)]
    for start in range(0, first.shape[1] - rows + 1, rows):
        one, other = (_band(minima[:, start : start + rows]) for minima in (first, second))
        order = np.argsort(one, kind="stable")
        low = np.searchsorted(one[order], other, side="left")
        high = np.searchsorted(one[order], other, side="right")
        count = np.minimum(high - low, CROWD)
        if not count.any():
            continue
        of = np.repeat(np.arange(len(other)), count)
        within = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
        found.append(order[low[of] + within] * len(second) + of)
    both = np.unique(np.concatenate(found))
    return both // len(second), both % len(second)


def _band(minima: NDArray[np.uint32]) -> Hashes:
    out = np.zeros(len(minima), dtype=np.uint64)
    for column in minima.T:
        out = mix(out + column.astype(np.uint64))
    return out


def _estimates(
    first: NDArray[np.uint32], second: NDArray[np.uint32], ones: NDArray[np.int64], others: NDArray[np.int64]
) -> NDArray[np.float64]:
    out = np.empty(len(ones))
    for start in range(0, len(ones), CHUNK):
        part = slice(start, start + CHUNK)
        out[part] = (first[ones[part]] == second[others[part]]).mean(axis=1)
    return out


def mix(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
    figure 17, with the constants of variant 13), after a step of its generator."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
