"""Which rows make up which batch: a function of (seed, epoch), so that a resumed run needs only epoch and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MEGA = 50  # batches whose rows are sorted together: enough for hardly any padding, few enough to keep the order random


class BatchPlan:
    """Batches of row indices for every epoch; each row exactly once an epoch, unless ``shares`` say otherwise.

    Arguments:
        shares: rows and weight of each source, one after another; empty: one source, each row once. A source gives
            rows × weight rows to each epoch: of each row as many as the whole part of the weight, and for the rest some
            of the rows, of which every epoch takes the next. Over many epochs all rows are taken equally often.
        lengths: tokens of each row.
        batch_size: rows of a batch; the remainder makes one smaller batch an epoch.
        seed: with the epoch's number it determines the batches; nothing else does.
        length_grouped: rows of like length share a batch (less padding). Batches come in random order.

    In epoch 0 the largest batch comes first: memory that does not suffice is then known at once, not after an hour.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, length_grouped: bool = True,
        shares: Sequence[tuple[int, float]] = (),
    ) -> None:  # fmt: skip
        _check(batch_size)
        self.shares = [*shares] or [(len(lengths), 1.0)]
        if sum(rows for rows, _ in self.shares) != len(lengths):
            raise ValueError(f"shares of {sum(rows for rows, _ in self.shares)} rows, and there are {len(lengths)}")
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.length_grouped = length_grouped

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-sum(rows_taken(rows, weight) for rows, weight in self.shares) // self.batch_size)

    def epoch(self, k: int) -> list[list[int]]:
        """The batches of epoch ``k`` (from 0), in the order in which they are trained on."""
        random = np.random.default_rng([self.seed, k])
        taken = self._taken(k)
        order = taken[random.permutation(len(taken))]
        if self.length_grouped:
            mega = MEGA * self.batch_size
            parts = [order[start : start + mega] for start in range(0, len(order), mega)]
            order = np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")] for part in parts] or [order])
        batches = _cut(order, self.batch_size)
        if self.length_grouped:
            batches = [batches[place] for place in random.permutation(len(batches))]
        if k == 0 and batches:
            largest = max(
                range(len(batches)), key=lambda place: len(batches[place]) * self.lengths[batches[place]].max()
            )
            batches.insert(0, batches.pop(largest))
        return batches

    def _taken(self, k: int) -> np.ndarray:
        """The rows of epoch ``k``, by source."""
        out, start = list[np.ndarray](), 0
        for place, (rows, weight) in enumerate(self.shares):
            every, some = divmod(rows_taken(rows, weight), rows) if rows else (0, 0)
            out += [np.arange(start, start + rows)] * every
            if some:
                # A window over one order of the rows that moves on by its width: no row is twice in it.
                order = np.random.default_rng([self.seed, place, rows]).permutation(rows)
                out.append(start + order[(k * some + np.arange(some)) % rows])
            start += rows
        return np.concatenate(out) if out else np.arange(0)


def rows_taken(rows: int, weight: float) -> int:
    """How many rows an epoch takes of a source that has so many."""
    return max(round(rows * weight), min(rows, 1))


def in_order(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches for evaluation: all rows, longest first; the caller puts the results back by the indices."""
    _check(batch_size)
    return _cut(np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable"), batch_size)


def _cut(order: np.ndarray, size: int) -> list[list[int]]:
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]


def _check(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
