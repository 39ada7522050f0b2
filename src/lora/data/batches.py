"""Which rows make up which batch: a function of (seed, epoch), so that a resumed run needs only epoch and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MEGA = 50  # batches whose rows are sorted together: enough for hardly any padding, few enough to keep the order random


class BatchPlan:
    """Batches of row indices for every epoch; each row exactly once an epoch.

    Arguments:
        lengths: tokens of each row.
        batch_size: rows of a batch; the remainder makes one smaller batch an epoch.
        seed: with the epoch's number it determines the batches; nothing else does.
        length_grouped: rows of like length share a batch (less padding). Batches come in random order.

    In epoch 0 the largest batch comes first: memory that does not suffice is then known at once, not after an hour.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, length_grouped: bool = True) -> None:
        _check(batch_size)
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.length_grouped = length_grouped

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def epoch(self, k: int) -> list[list[int]]:
        """The batches of epoch ``k`` (from 0), in the order in which they are trained on."""
        random = np.random.default_rng([self.seed, k])
        order = random.permutation(len(self.lengths))
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


def in_order(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches for evaluation: all rows, longest first; the caller puts the results back by the indices."""
    _check(batch_size)
    return _cut(np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable"), batch_size)


def _cut(order: np.ndarray, size: int) -> list[list[int]]:
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]


def _check(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
